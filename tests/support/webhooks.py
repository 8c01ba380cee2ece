"""A fake API Mall with webhooks of the account, whose deliveries a test makes by hand, on virtual time."""

import asyncio
import hashlib
import hmac
import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

from nanobanana_async import Session
from nanobanana_async.gateways.contract import HttpRequest
from nanobanana_async.testing import FakeTransport, Reply
from nanobanana_async.webhooks import CallbackReceiver
from tests.support.callbacks import PUBLIC, ask
from tests.support.fakes import FakeGateway, apimall, virtual_loop
from tests.support.replies import json_reply, refused
from tests.support.shared_ledger import FakeProcess, SharedLedger

PATH = "/api/v1/webhooks"


class WebhookGateway(FakeGateway):
    """A fake API Mall that keeps webhooks, counts the polls of each task, and delivers to each active webhook."""

    def __init__(self, *, job_s: float = 2.0, limit: int | None = None) -> None:
        super().__init__(job_s=job_s, limit=limit)
        self.webhooks: dict[str, dict[str, Any]] = {}
        self.registered = 0
        self.asked: list[str] = []
        """The methods of the requests about webhooks, in order."""
        self.polled: Counter[str] = Counter()
        self.troubles: list[Reply] = []
        """The answers to the next requests about webhooks."""
        self.receivers: list[CallbackReceiver] = []
        """Where deliveries go: to each in turn, as behind a balancer."""
        self.delays_s: dict[str, float | None] = {}
        """How long after its end a task is delivered; None for never; at once if a task is not listed."""
        self.group: asyncio.TaskGroup | None = None
        """With it, each end is delivered by itself."""

    @property
    def urls(self) -> list[str]:
        return [webhook["url"] for webhook in self.webhooks.values()]

    def add(self, url: str, status: str = "active", secret: str | None = None) -> str:
        """Register a webhook."""
        self.registered += 1
        webhook_id = f"wh_{self.registered}"
        self.webhooks[webhook_id] = {"id": webhook_id, "url": url, "status": status, "secret_key": secret}
        return webhook_id

    def answer(self, request: HttpRequest) -> Reply:
        path = urlsplit(request.url).path
        if path.startswith(PATH):
            self.asked.append(request.method)
            return self.troubles.pop(0) if self.troubles else self._answer_about_webhooks(request, path)
        if request.method == "GET":
            task_id = request.url.rpartition("/")[2]
            self.polled[task_id] += 1
            if task_id not in self.tasks:
                return refused(404, "task_not_found", "task not found")
        before = self.sold
        reply = super().answer(request)
        if self.sold > before and self.group is not None:
            self.group.create_task(self._deliver_at_end(f"t{self.sold}"))
        return reply

    def _answer_about_webhooks(self, request: HttpRequest, path: str) -> Reply:
        match request.method:
            case "POST":
                fields = json.loads(request.body or b"")
                assert fields["events"] == ["job.completed", "job.failed"]
                data: Any = self.webhooks[self.add(fields["url"], secret=fields["secret_key"])]
            case "DELETE":
                data = self.webhooks.pop(path.removeprefix(f"{PATH}/"), None)
                if data is None:
                    return refused(404, "webhook_not_found", "Webhook not found")
            case _:
                data = {"items": [*self.webhooks.values()]}
        return json_reply(200, {"success": True, "data": data, "request_id": "req_3"})

    async def _deliver_at_end(self, task_id: str) -> None:
        delay_s = self.delays_s.get(task_id, 0.0)
        if delay_s is not None:
            await asyncio.sleep(self.job_s + delay_s)
            for webhook in [*self.webhooks.values()]:
                await self.deliver(task_id, webhook=webhook)

    async def deliver(
        self,
        task_id: str,
        *,
        webhook: Mapping[str, Any] | None = None,
        age_s: float = 0.0,
        headers: Mapping[str, str] | None = None,
    ) -> int:
        """Deliver the end of a task to a webhook, by default the only one, signed as API Mall's relative does."""
        if webhook is None:
            (webhook,) = self.webhooks.values()
        body = delivery_body(task_id)
        if headers is None:
            headers = signed(body, str(webhook["secret_key"]), age_s=age_s)
        return await self.call(webhook["url"], body, headers)

    async def call(self, url: str, body: bytes, headers: Mapping[str, str] | None = None) -> int:
        """Send a body to a URL; return the status of the answer."""
        receiver = self.receivers.pop(0)
        self.receivers.append(receiver)
        return (await ask(receiver, urlsplit(url).path, (body,), headers=headers or {})).status


def delivery_body(task_id: object, event: str = "job.completed") -> bytes:
    """Return what a delivery says."""
    data = {"url": "https://evil.example/a.png", "credits_charged": 0.000001}
    return json.dumps({"event": event, "task_id": task_id, "status": "completed", "data": data}).encode()


def signed(body: bytes, secret: str, *, age_s: float = 0.0) -> dict[str, str]:
    """Return the headers of a delivery that was signed some time ago."""
    timestamp = str(int(virtual_loop().utcnow().timestamp() - age_s))
    mac = hmac.digest(secret.encode(), f"{timestamp}.".encode() + body, hashlib.sha256)
    return {"X-Nano-Timestamp": timestamp, "X-Nano-Signature": mac.hex()}


def receiving(session: Session, gateway: WebhookGateway, public_url: str = PUBLIC) -> CallbackReceiver:
    """Give a session, not yet open, a receiver to which the gateway delivers."""
    receiver = CallbackReceiver(session, public_url=public_url)
    gateway.receivers.append(receiver)
    return receiver


@asynccontextmanager
async def hooked(
    gateway: WebhookGateway, *, public_url: str = PUBLIC, latency_s: float = 0.05, **settings: Any
) -> AsyncIterator[Session]:
    """Open a session with a receiver, whose gateway delivers each end; wait until it has registered its webhook."""
    session = apimall(FakeTransport(gateway.answer, latency_s=latency_s), **settings)
    receiver = receiving(session, gateway, public_url)
    try:
        async with session:
            await asyncio.sleep(4 * latency_s)
            async with asyncio.TaskGroup() as gateway.group:
                yield session
            gateway.group = None
    finally:
        gateway.receivers.remove(receiver)


def process(shared: SharedLedger, gateway: WebhookGateway, **settings: Any) -> FakeProcess:
    """Return a process with a receiver, not yet begun."""
    made = FakeProcess(shared, gateway.answer, session_of=apimall, **settings)
    receiving(made.session, gateway)
    return made
