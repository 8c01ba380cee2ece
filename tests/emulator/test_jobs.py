"""The life of a job: states, delays, results, callbacks."""

import json
import random
from datetime import UTC, datetime
from typing import Any

import pytest

from nanobanana_async.emulator import Bimodal, Fixed, LogNormal
from nanobanana_async.emulator.addresses import is_loopback
from nanobanana_async.emulator.settings import Progress
from tests.emulator.calling import Caller, body_of
from tests.support.rows import each_row

STARTED_AT = datetime(2026, 3, 12, 9, 30, tzinfo=UTC)


def test_apimall_shows_every_field_of_the_reference_at_the_end() -> None:
    caller = Caller(started_at=STARTED_AT)
    caller.simulator.base_url = "http://cdn.test/"
    task_id = caller.bought()
    caller.now = 66.0
    folder = f"http://cdn.test/cdn/101d0/{task_id}"
    assert caller.polled(task_id) == {
        "task_id": task_id,
        "model": "nano-banana-pro",
        "status": "completed",
        "output": {"resultUrls": [f"{folder}/image-01.png"]},
        "primary_url": f"{folder}/result.png",
        "image_url": f"{folder}/cover.png",
        "error_message": None,
        "credits_used": 8,
        "credits_refunded": 0,
        "created_at": "2026-03-12T09:30:00.000Z",
        "updated_at": "2026-03-12T09:30:10.000Z",
        "completed_at": "2026-03-12T09:30:10.000Z",
    }


def test_job_passes_through_the_states_of_its_gateway() -> None:
    caller = Caller()
    mall, other = caller.bought(), caller.bought_defapi()
    seen: list[tuple[str, str]] = []
    for caller.now in (0.5, 1.5, 2.5, 10.0):
        seen.append((caller.polled(mall)["status"], caller.polled_defapi(other)["status"]))
    assert seen == [
        ("pending", "pending"),
        ("pending", "submitted"),
        ("processing", "in_progress"),
        ("completed", "success"),
    ]
    states = caller.stats().polls_by_status
    assert (states["pending"], states["submitted"], states["success"]) == (3, 1, 1)


def test_defapi_shows_the_callbacks_fields_under_data_or_at_the_top() -> None:
    inside, top = Caller(), Caller(query_shape="top")
    for caller in (inside, top):
        task_id = caller.bought_defapi()
        caller.now = 10.0
        body = body_of(caller.poll_defapi(task_id))
        payload: dict[str, Any] = body["data"] if caller is inside else body
        assert body["code"] == 0
        assert payload["consumed"] == "0.500000"
        assert payload["status_reason"] == {"message": None}
        assert payload["result"][0]["image"].endswith("/image-01.png")
        assert ("data" in body) is (caller is inside)


def test_defapi_can_return_data_uris() -> None:
    caller = Caller(data_uris=True)
    task_id = caller.bought_defapi(callback_url="http://127.0.0.1:9/x")
    caller.now = 10.0
    image = caller.polled_defapi(task_id)["result"][0]["image"]
    assert image.startswith("data:image/png;base64,iVBOR")
    (callback,) = caller.simulator.take_due(10.0)
    assert json.loads(callback.body)["result"] == [{"image": image}]


def test_failed_job_has_a_reason() -> None:
    plain, odd = Caller(), Caller(failure_field="failMsg")
    for caller, field in ((plain, "error_message"), (odd, "failMsg")):
        task_id, other = caller.bought("[fail]"), caller.bought_defapi("[fail]")
        caller.now = 10.0
        seen = caller.polled(task_id)
        assert (seen["status"], seen[field]) == ("failed", "The image could not be generated")
        assert (seen["output"], seen["primary_url"]) == (None, None)
        seen = caller.polled_defapi(other)
        assert (seen["status"], seen["result"], seen["consumed"]) == ("failed", None, "0.000000")
        assert seen["status_reason"] == {"message": "The image could not be generated"}


def test_several_images_have_several_links() -> None:
    caller = Caller()
    task_id = caller.bought(num_images=3, output_format="jpg")
    caller.now = 10.0
    urls = caller.polled(task_id)["output"]["resultUrls"]
    assert [url.rpartition("/")[2] for url in urls] == ["image-01.jpg", "image-02.jpg", "image-03.jpg"]
    assert len({caller.fetch(url).content() for url in urls}) == 3


def test_new_task_can_be_404_for_a_while() -> None:
    caller = Caller(visible_after_s=2.0)
    task_id = caller.bought()
    assert caller.poll(task_id).status == 404
    caller.now = 2.0
    assert caller.poll(task_id).status == 200


def test_completed_job_can_lack_image_urls_for_a_while() -> None:
    caller = Caller(images_after_s=5.0)
    task_id, other = caller.bought(), caller.bought_defapi()
    caller.now = 14.0
    seen = caller.polled(task_id)
    assert (seen["status"], seen["output"], seen["primary_url"]) == ("completed", {"resultUrls": []}, None)
    assert caller.polled_defapi(other)["result"] == []
    caller.now = 15.0
    assert caller.polled(task_id)["primary_url"]


def test_status_can_be_unknown_or_replaced() -> None:
    caller = Caller(unknown_status_probability=1.0, status_words={"completed": "COMPLETED"})
    task_id = caller.bought()
    assert caller.polled(task_id)["status"] == "unknown"
    caller.now = 10.0
    assert caller.polled(task_id)["status"] == "COMPLETED"


def test_same_seed_gives_the_same_durations() -> None:
    def ends(seed: int, polls: int) -> list[float]:
        settings = {"seed": seed, "duration": LogNormal(median_s=30), "unknown_status_probability": 0.5}
        caller = Caller(**settings)  # type: ignore[arg-type]
        for n in range(5):
            task_id = caller.bought(f"{n}")
            for _ in range(polls):
                caller.poll(task_id)
        return [job.ends_at for job in caller.simulator.jobs(0.0)]

    assert ends(1, 0) == ends(1, 3) != ends(2, 0)


def test_durations_follow_the_distribution_divided_by_speed() -> None:
    rng = random.Random(0)
    times = sorted(LogNormal(median_s=30, sigma=0.3)(rng) for _ in range(2001))
    assert 28 < times[1000] < 32
    both = {Bimodal(first=Fixed(1), second=Fixed(9), second_share=0.5)(rng) for _ in range(50)}
    assert both == {1, 9}
    caller = Caller(speed=5.0, failure_duration=Fixed(1.0))
    caller.buy("slow")
    caller.buy("[fail]")
    assert [job.ends_at for job in caller.simulator.jobs(0.0)] == [2.0, 0.2]


def test_failures_follow_their_probability() -> None:
    caller = Caller(failure_probability=0.3)
    for n in range(1000):
        caller.buy(f"{n}")
    caller.now = 10.0
    assert 250 < caller.stats().failed < 350


def test_delay_from_end_to_first_poll_is_measured() -> None:
    caller = Caller()
    tasks = [caller.bought(f"{n}") for n in range(3)]
    caller.now = 5.0
    caller.poll(tasks[0])
    for caller.now, task_id in ((10.5, tasks[0]), (11.5, tasks[1]), (99.0, tasks[1])):
        caller.poll(task_id)
    stats = caller.stats()
    assert (stats.seen, stats.unpolled, stats.ended, stats.running_now) == (2, 1, 3, 0)
    assert (stats.notice_delay_mean_s, stats.notice_delay_p99_s, stats.notice_delay_max_s) == (1.0, 1.5, 1.5)
    assert (stats.polls, stats.polls_per_job_max) == (4, 2)
    assert stats.polls_per_job_mean == pytest.approx(4 / 3)
    facts = list(caller.simulator.jobs(99.0))
    assert [job.first_seen_done_at for job in facts] == [10.5, 11.5, None]
    assert [job.prompt for job in facts] == ["0", "1", "2"]


@pytest.mark.parametrize(("progress", "expected"), [("number", 45), ("text", "45%")])
def test_running_job_may_say_its_progress(progress: Progress, expected: object) -> None:
    caller = Caller(progress=progress)
    tasks = caller.bought(), caller.bought_defapi()
    caller.now = 4.5
    assert [caller.polled(tasks[0])["progress"], caller.polled_defapi(tasks[1])["progress"]] == [expected] * 2
    caller.now = 10.0
    assert "progress" not in {**caller.polled(tasks[0]), **caller.polled_defapi(tasks[1])}


def test_running_job_says_no_progress_by_default() -> None:
    caller = Caller()
    assert "progress" not in {**caller.polled(caller.bought()), **caller.polled_defapi(caller.bought_defapi())}


def test_jobs_seen_long_ago_can_be_forgotten() -> None:
    caller = Caller(forget_seen_after_s=5.0)
    task_id = caller.bought(key="k")
    caller.now = 10.0
    caller.poll(task_id)
    caller.now = 14.9
    assert caller.poll(task_id).status == 200
    caller.now = 15.0
    assert caller.poll(task_id).status == 404
    assert caller.bought(key="k") != task_id
    assert caller.stats().double_charges == 1


def test_links_expire_and_a_poll_returns_new_ones() -> None:
    caller = Caller(links_expire_after_s=60.0, expired_link_status=410)
    task_id = caller.bought()
    caller.now = 10.0
    old = caller.polled(task_id)["primary_url"]
    assert caller.fetch(old).status == 200
    caller.now = 70.0
    assert caller.fetch(old).status == 410
    assert caller.fetch(caller.polled(task_id)["primary_url"]).status == 200


@pytest.mark.parametrize("path", ["/cdn/", "/cdn/0/img_1/image-01.png", "/cdn/x/y/z.png", "/cdn/0/TASK/image-02.png"])
def test_unknown_link_is_404(path: str) -> None:
    caller = Caller()
    task_id = caller.bought()
    assert caller.fetch("http://host" + path.replace("TASK", task_id)).status == 404


def test_download_with_credentials_is_counted() -> None:
    caller = Caller()
    caller.fetch("http://host/cdn/x", authorization="Bearer emulator-key")
    assert caller.stats().credential_leaks == 1


def test_a_callback_is_due_when_the_job_ends() -> None:
    caller = Caller(callback_delay_s=2.0)
    assert caller.simulator.next_due() is None
    task_id = caller.bought_defapi(callback_url="http://localhost:8/hook")
    assert caller.simulator.next_due() == 12.0
    assert caller.simulator.take_due(11.9) == []
    (callback,) = caller.simulator.take_due(12.0)
    assert (callback.url, callback.task_id) == ("http://localhost:8/hook", task_id)
    body = json.loads(callback.body)
    assert set(body) == {"result", "status", "task_id", "consumed", "status_reason"}
    assert body["status"] == "success"
    assert caller.simulator.next_due() is None


def test_callbacks_can_be_dropped_or_repeated_on_loopback_only() -> None:
    dropped = Caller(callback_drop_probability=1.0)
    doubled = Caller(callback_duplicate_probability=1.0)
    for caller in (dropped, doubled):
        caller.buy_defapi(callback_url="http://127.0.0.1:8/hook")
        caller.buy_defapi("abroad", callback_url="https://example.com/hook")
    assert [len(caller.simulator.take_due(10.0)) for caller in (dropped, doubled)] == [0, 2]
    assert (dropped.stats().callbacks_dropped, dropped.stats().callbacks_refused) == (1, 1)


@each_row(
    ("url", "stays"),
    [
        ("http://127.0.0.1/x", True),
        ("http://127.8.8.8:1/x", True),
        ("http://[::1]:80/", True),
        ("http://localhost/", True),
        ("http://localhost.example.com/", False),
        ("http://10.0.0.1/", False),
        ("http://127.0.0.1@example.com/", False),
        ("http://[", False),
        ("", False),
    ],
)
def test_is_loopback(url: str, stays: bool) -> None:
    assert is_loopback(url) is stays


@pytest.mark.slow
def test_many_jobs_are_fast_and_all_counted() -> None:
    caller = Caller(job_limit=1000)
    for n in range(8_000):
        caller.now = n * 0.015625
        caller.buy(f"{n}", key=f"{n}")
    caller.now += 10.0
    stats = caller.stats()
    assert (stats.creates_accepted, stats.ended, stats.running_max) == (8_000, 8_000, 640)
