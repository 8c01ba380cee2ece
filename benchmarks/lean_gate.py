"""A gateway that remembers nothing but how many jobs run: it costs little, and never grows."""

import heapq
import json
import random
from collections.abc import Callable

from benchmarks.ideal import Drawn
from nanobanana_async.gateways.contract import HttpRequest, HttpResponse

ANSWER_HEADERS = {"content-type": "application/json"}


def _body(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


REFUSAL = HttpResponse(
    status=429,
    headers=ANSWER_HEADERS,
    body=_body({"success": False, "error": {"code": "too_many_concurrent_jobs", "message": "Too many jobs"}}),
)


class LeanGate:
    """API Mall's dialect in a few lines; a task id says when its job ends.

    A transport for `Session(http=...)`. Without `limit` everything is taken, without `durations` no job ever ends.
    """

    def __init__(self, clock: Callable[[], float], *, limit: int | None = None, durations: Drawn | None = None) -> None:
        self._clock = clock
        self._limit = limit
        self._durations = durations
        self._rng = random.Random(0)
        self._ends: list[float] = []
        self.creates = self.queries = self.refused = 0

    async def open(self) -> None:
        """Do nothing."""

    async def aclose(self) -> None:
        """Do nothing."""

    async def send(self, request: HttpRequest, *, timeout_s: float, fresh_connection: bool = False) -> HttpResponse:
        """Answer at once."""
        return self.create() if request.method == "POST" else self.query(request.url.rpartition("/")[2])

    def create(self) -> HttpResponse:
        """Take a job, or refuse it."""
        now = self._clock()
        while self._ends and self._ends[0] <= now:
            heapq.heappop(self._ends)
        if self._limit is not None and len(self._ends) >= self._limit:
            self.refused += 1
            return REFUSAL
        self.creates += 1
        task_id = f"img_{self.creates}"
        if self._durations is not None:
            end = now + self._durations(self._rng)
            heapq.heappush(self._ends, end)
            task_id += f"_{round(end * 1000)}"
        data = {"task_id": task_id, "credits_used": 8, "remaining_credits": 1000, "model": "nano-banana-pro"}
        return HttpResponse(status=200, headers=ANSWER_HEADERS, body=_body({"success": True, "data": data}))

    def query(self, task_id: str) -> HttpResponse:
        """Say where a job stands."""
        self.queries += 1
        stamp = task_id.split("_")[2:]
        over = bool(stamp) and self._clock() * 1000 >= int(stamp[0])
        urls = {"resultUrls": [f"https://127.0.0.1/{task_id}.png"]} if over else None
        data = {"task_id": task_id, "status": "completed" if over else "processing", "output": urls}
        return HttpResponse(status=200, headers=ANSWER_HEADERS, body=_body({"success": True, "data": data}))
