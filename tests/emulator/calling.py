"""Call a `GatewaySimulator` without sockets, with requests as in the references."""

import json
from typing import Any, Unpack

from nanobanana_async.emulator import (
    EmulatedRequest,
    EmulatedResponse,
    EmulatorOptions,
    EmulatorSettings,
    EmulatorStats,
    Fixed,
    GatewaySimulator,
)

APIMALL_CREATE = "/api/v1/images/generate"
APIMALL_QUERY = "/api/v1/images/"
DEFAPI_CREATE = "/api/image/gen"
DEFAPI_QUERY = "/api/task/query"
HEADERS = {"Authorization": "Bearer emulator-key", "Content-Type": "application/json"}


def body_of(answer: EmulatedResponse) -> Any:
    return json.loads(answer.content())


class Caller:
    """Calls a simulator whose jobs take ten seconds by default; tests set `now`."""

    def __init__(self, **settings: Unpack[EmulatorOptions]) -> None:
        options: dict[str, Any] = {"duration": Fixed(10.0), "image_scale": 0.05, **settings}
        self.simulator = GatewaySimulator(EmulatorSettings(**options))
        self.now = 0.0

    def post(self, path: str, body: bytes, **headers: str) -> EmulatedResponse:
        sent = {**HEADERS, **{name.replace("_", "-"): value for name, value in headers.items()}}
        return self.simulator.handle(self.now, EmulatedRequest("POST", path, {}, sent, body))

    def buy(self, prompt: str = "a fox", *, key: str | None = None, **fields: Any) -> EmulatedResponse:
        body = {"model": "nano-banana-pro", "prompt": prompt, **fields}
        headers = {} if key is None else {"Idempotency_Key": key}
        return self.post(APIMALL_CREATE, json.dumps(body).encode(), **headers)

    def buy_defapi(self, prompt: str = "a fox", **fields: Any) -> EmulatedResponse:
        body = {"model": "google/gempix2", "prompt": prompt, **fields}
        return self.post(DEFAPI_CREATE, json.dumps(body).encode())

    def bought(self, prompt: str = "a fox", **fields: Any) -> str:
        return str(body_of(self.buy(prompt, **fields))["data"]["task_id"])

    def bought_defapi(self, prompt: str = "a fox", **fields: Any) -> str:
        return str(body_of(self.buy_defapi(prompt, **fields))["data"]["task_id"])

    def poll(self, task_id: str) -> EmulatedResponse:
        return self.simulator.handle(self.now, EmulatedRequest("GET", APIMALL_QUERY + task_id, {}, HEADERS))

    def poll_defapi(self, task_id: str) -> EmulatedResponse:
        query = {"task_id": task_id}
        return self.simulator.handle(self.now, EmulatedRequest("GET", DEFAPI_QUERY, query, HEADERS))

    def polled(self, task_id: str) -> Any:
        return body_of(self.poll(task_id))["data"]

    def polled_defapi(self, task_id: str) -> Any:
        return body_of(self.poll_defapi(task_id))["data"]

    def fetch(self, url: str, **headers: str) -> EmulatedResponse:
        path = "/" + url.split("/", 3)[3]
        return self.simulator.handle(self.now, EmulatedRequest("GET", path, {}, headers))

    def stats(self) -> EmulatorStats:
        return self.simulator.stats(self.now)
