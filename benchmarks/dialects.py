"""The protocols of the peers, spoken over one emulated account: the same jobs, the same limit, other words."""

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from aiohttp import web
from attrs import frozen

from nanobanana_async.emulator import API_KEY, EmulatedRequest, EmulatedResponse, GatewaySimulator

Clock = Callable[[], float]

CREATED_AT = datetime(2026, 1, 1, tzinfo=UTC).isoformat()
# Comfy's contract is the only one that promises a pace with each 429, and its client does not come again without.
COMFY_RETRY_AFTER_S = 2


@frozen(kw_only=True)
class Seen:
    """Where a job stands: pending, processing, completed or failed."""

    status: str
    urls: tuple[str, ...]


class Counter:
    """The account behind the dialects: an emulated simulator, asked in API Mall's own protocol."""

    def __init__(self, simulator: GatewaySimulator, clock: Clock) -> None:
        self._simulator = simulator
        self._clock = clock
        self._ended: dict[str, Seen] = {}

    def buy(self, prompt: str) -> str | None:
        """Return a task id, or None for a 429."""
        body = json.dumps({"model": "nano-banana-pro", "prompt": prompt}).encode()
        answer = self._ask("POST", "/api/v1/images/generate", body)
        if answer.status == 429:
            return None
        task_id: str = json.loads(answer.body)["data"]["task_id"]
        return task_id

    def poll(self, task_id: str) -> Seen:
        """Return where a job stands; it counts as a poll."""
        data = json.loads(self._ask("GET", f"/api/v1/images/{task_id}").body)["data"]
        seen = Seen(status=data["status"], urls=tuple((data["output"] or {}).get("resultUrls", ())))
        if seen.status in ("completed", "failed"):
            self._ended[task_id] = seen
        return seen

    def fetch(self, task_id: str) -> Seen | None:
        """Return a job that was seen to have ended, where a protocol has the result at another place; no poll."""
        return self._ended.get(task_id)

    def _ask(self, method: str, path: str, body: bytes = b"") -> EmulatedResponse:
        headers = {"authorization": f"Bearer {API_KEY}", "content-type": "application/json", "host": "127.0.0.1"}
        return self._simulator.handle(self._clock(), EmulatedRequest(method, path, {}, headers, body))


def fal(counter: Counter) -> list[web.RouteDef]:
    """Speak the queue protocol of fal."""
    words: Mapping[str, Mapping[str, object]] = {
        "pending": {"status": "IN_QUEUE", "queue_position": 0},
        "processing": {"status": "IN_PROGRESS", "logs": []},
        "completed": {"status": "COMPLETED", "logs": [], "metrics": {}},
        "failed": {"status": "COMPLETED", "logs": [], "error": "failed", "error_type": "failed"},
    }

    async def submit(request: web.Request) -> web.Response:
        task_id = counter.buy((await request.json())["prompt"])
        if task_id is None:
            return web.json_response({"detail": "Too many concurrent requests"}, status=429)
        url = f"{request.scheme}://{request.host}/bench/image/requests/{task_id}"
        urls = {"response_url": url, "status_url": f"{url}/status", "cancel_url": f"{url}/cancel"}
        return web.json_response({"request_id": task_id, **urls})

    async def status(request: web.Request) -> web.Response:
        return web.json_response(words[counter.poll(request.match_info["id"]).status])

    async def result(request: web.Request) -> web.Response:
        seen = counter.fetch(request.match_info["id"])
        urls = () if seen is None else seen.urls
        return web.json_response({"images": [{"url": url} for url in urls]}, status=200 if urls else 400)

    here = "/bench/image"
    return [
        web.post(here, submit),
        web.get(here + "/requests/{id}/status", status),
        web.get(here + "/requests/{id}", result),
    ]


def replicate(counter: Counter) -> list[web.RouteDef]:
    """Speak the predictions protocol of Replicate."""
    words = {"pending": "starting", "processing": "processing", "completed": "succeeded", "failed": "failed"}

    def prediction(task_id: str, seen: Seen) -> web.Response:
        return web.json_response(
            {
                "id": task_id,
                "model": "bench/image",
                "version": "1",
                "status": words[seen.status],
                "input": {},
                "output": list(seen.urls) or None,
                "logs": "",
                "error": None,
                "metrics": None,
                "created_at": CREATED_AT,
                "started_at": None,
                "completed_at": None,
                "urls": {},
            }
        )

    async def create(request: web.Request) -> web.Response:
        task_id = counter.buy((await request.json())["input"]["prompt"])
        if task_id is None:
            return web.json_response({"detail": "Too many concurrent predictions", "status": 429}, status=429)
        return prediction(task_id, Seen(status="pending", urls=()))

    async def get(request: web.Request) -> web.Response:
        task_id = request.match_info["id"]
        return prediction(task_id, counter.poll(task_id))

    return [web.post("/v1/predictions", create), web.get("/v1/predictions/{id}", get)]


def runway(counter: Counter) -> list[web.RouteDef]:
    """Speak the tasks protocol of Runway."""
    words: Mapping[str, Mapping[str, object]] = {
        "pending": {"status": "PENDING", "estimatedCost": {"credits": 8}},
        "processing": {"status": "RUNNING", "progress": 0.5, "estimatedCost": {"credits": 8}},
        "completed": {"status": "SUCCEEDED", "cost": {"credits": 8}},
        "failed": {"status": "FAILED", "failure": "failed", "cost": {"credits": 0}},
    }

    async def create(request: web.Request) -> web.Response:
        task_id = counter.buy((await request.json())["promptText"])
        if task_id is None:
            return web.json_response({"error": "Too many concurrent tasks"}, status=429)
        return web.json_response({"id": task_id, "estimatedCost": {"credits": 8}})

    async def retrieve(request: web.Request) -> web.Response:
        task_id = request.match_info["id"]
        seen = counter.poll(task_id)
        output = {"output": list(seen.urls)} if seen.urls else {}
        return web.json_response({"id": task_id, "createdAt": CREATED_AT, **words[seen.status], **output})

    return [web.post("/v1/text_to_image", create), web.get("/v1/tasks/{id}", retrieve)]


def comfy(counter: Counter) -> list[web.RouteDef]:
    """Speak the queued model requests of Comfy's router."""
    words = {"pending": "IN_QUEUE", "processing": "IN_PROGRESS", "completed": "COMPLETED", "failed": "COMPLETED"}

    async def submit(request: web.Request) -> web.Response:
        task_id = counter.buy((await request.json())["prompt"])
        if task_id is None:
            said = {"error_type": "concurrency_limit_exceeded", "detail": "Too many concurrent requests"}
            return web.json_response(said, status=429, headers={"Retry-After": str(COMFY_RETRY_AFTER_S)})
        return web.json_response({"request_id": task_id})

    async def status(request: web.Request) -> web.Response:
        seen = counter.poll(request.match_info["id"])
        failure = {"error_type": "generation_failed"} if seen.status == "failed" else {}
        return web.json_response({"status": words[seen.status], **failure})

    async def result(request: web.Request) -> web.Response:
        seen = counter.fetch(request.match_info["id"])
        urls = () if seen is None else seen.urls
        return web.json_response({"images": [{"url": url} for url in urls]}, status=200 if urls else 404)

    here = "/v2/models/bench/image/requests"
    return [
        web.post(here, submit),
        web.get(here + "/{id}/status", status),
        web.get(here + "/{id}", result),
    ]


def apimall(simulator: GatewaySimulator, clock: Clock) -> list[web.RouteDef]:
    """Speak API Mall's own protocol, as the emulator does."""

    async def ask(request: web.Request) -> web.Response:
        body = await request.read()
        answer = simulator.handle(
            clock(), EmulatedRequest(request.method, request.path, {}, dict(request.headers), body)
        )
        return web.Response(status=answer.status, headers=answer.headers, body=answer.body)

    return [web.post("/api/v1/images/generate", ask), web.get("/api/v1/images/{id}", ask)]
