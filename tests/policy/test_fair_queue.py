"""The order in which waiting jobs are served: priorities with a floor, fair shares of groups, FIFO in a group."""

import random
from collections import Counter
from collections.abc import Hashable
from typing import Any

import pytest

from nanobanana_async import ConcurrencyPolicy
from nanobanana_async.errors import ConfigurationError
from nanobanana_async.policy.fair_queue import (
    FLOOR_EVERY,
    MOST_IDLE,
    MOST_PASSED_OVER,
    FairQueue,
    Group,
    give_back,
)
from nanobanana_async.policy.turn_settings import check_group, check_priority


class Item:
    """A job that waits."""

    places = 0

    def __init__(self, group: Hashable = None, priority: int = 0, cost: float = 1.0) -> None:
        Item.places += 1
        self.place = Item.places
        self.group = group
        self.priority = priority
        self.cost = cost
        self.turn_cost: tuple[Group, float] | None = None

    def __lt__(self, other: Any) -> bool:
        return bool(self.place < other.place)


def queue_of(*items: Item, weights: dict[str, float] | None = None) -> FairQueue[Item]:
    queue: FairQueue[Item] = FairQueue(weights or {})
    for item in items:
        queue.add(item)
    return queue


def serve(queue: FairQueue[Item]) -> Item:
    first = queue.first()
    assert first is not None
    assert queue.serve_first(first.cost) is first
    return first


def groups_of(queue: FairQueue[Item], count: int) -> list[Hashable]:
    return [serve(queue).group for _ in range(count)]


def test_one_group_is_served_in_order_of_place() -> None:
    items = [Item() for _ in range(50)]
    shuffled = random.Random(1).sample(items, 50)
    queue = queue_of(*shuffled)
    assert len(queue) == 50
    assert set(queue) == set(items)
    assert [serve(queue) for _ in items] == items
    assert not queue
    assert queue.first() is None
    assert len(queue) == 0


def test_groups_take_turns_however_many_jobs_one_has() -> None:
    queue = queue_of(*[Item("batch") for _ in range(500)], *[Item("ann") for _ in range(3)])
    assert groups_of(queue, 8) == ["batch", "ann", "batch", "ann", "batch", "ann", "batch", "batch"]


def test_new_group_waits_for_one_job_of_each_other_group() -> None:
    queue = queue_of(*[Item(group) for group in "abcd" for _ in range(100)])
    groups_of(queue, 101)
    queue.add(Item("new"))
    assert "new" in groups_of(queue, 5)


def test_weights_share_the_slots() -> None:
    items = [Item(group) for group in ("a", "b") for _ in range(100)]
    served = Counter(groups_of(queue_of(*items, weights={"a": 3.0}), 80))
    assert served == {"a": 60, "b": 20}


def test_shares_are_slot_seconds_not_jobs() -> None:
    queue = queue_of(*[Item("long", cost=40.0) for _ in range(100)], *[Item("short", cost=10.0) for _ in range(100)])
    served = Counter(groups_of(queue, 50))
    assert served == {"short": 40, "long": 10}


@pytest.mark.parametrize("seed", range(5))
def test_difference_of_two_waiting_groups_is_bounded(seed: int) -> None:
    dice = random.Random(seed)
    weights = {"a": 1.0, "b": 2.0, "c": 0.5}
    queue = queue_of(
        *[Item(group, cost=dice.uniform(1.0, 9.0)) for group in weights for _ in range(300)], weights=weights
    )
    got = dict.fromkeys(weights, 0.0)
    for _ in range(300):
        item = serve(queue)
        got[str(item.group)] += item.cost / weights[str(item.group)]
        for one in weights:
            for other in weights:
                assert abs(got[one] - got[other]) <= 9.0 / weights[one] + 9.0 / weights[other]


def test_group_that_is_passed_over_waits_again_after_the_round() -> None:
    queue = queue_of(*[Item("a") for _ in range(3)], Item("b"), Item("c", priority=-1), Item("d"))
    assert queue.pass_over_first()  # a
    assert groups_of(queue, 1) == ["b"]
    assert queue.pass_over_first()  # d
    assert groups_of(queue, 1) == ["c"]
    assert (queue.first(), bool(queue), len(queue)) == (None, False, 4)
    queue.restore_passed_over()
    assert groups_of(queue, 4) == ["a", "d", "a", "a"]
    assert (queue.first(), len(queue)) == (None, 0)


def test_last_job_beside_a_passed_over_group_leaves_a_queue_that_works() -> None:
    queue = queue_of(Item("a"), Item("b"), Item("c", priority=-1))
    assert queue.pass_over_first()  # a
    assert serve(queue).group == "b"
    assert serve(queue).group == "c"  # not the empty level of a
    assert queue.first() is None
    queue.restore_passed_over()
    assert groups_of(queue, 1) == ["a"]
    assert not queue


def test_dropped_job_beside_a_passed_over_group_leaves_a_queue_that_works() -> None:
    waiting, raised = Item("a"), Item("b")
    queue = queue_of(waiting, raised)
    queue.raise_priority(raised, 1)
    assert queue.drop_first() is raised
    assert queue.pass_over_first()  # a; what stood for b is dropped
    assert queue.first() is None
    queue.restore_passed_over()
    assert groups_of(queue, 1) == ["a"]


def test_only_so_many_groups_are_passed_over_in_a_round() -> None:
    queue = queue_of(*[Item(f"user {number}") for number in range(MOST_PASSED_OVER + 1)])
    assert [queue.pass_over_first() for _ in range(MOST_PASSED_OVER + 1)] == [True] * MOST_PASSED_OVER + [False]
    queue.restore_passed_over()
    assert groups_of(queue, MOST_PASSED_OVER + 1) == [f"user {number}" for number in range(MOST_PASSED_OVER + 1)]


def test_idle_group_gains_no_credit() -> None:
    queue = queue_of(*[Item("busy") for _ in range(200)], Item("idle"))
    groups_of(queue, 100)  # meanwhile the other one has one job
    for _ in range(50):
        queue.add(Item("idle"))
    assert Counter(groups_of(queue, 40)) == {"busy": 20, "idle": 20}


def test_group_that_was_alone_has_no_debt() -> None:
    queue = queue_of(*[Item("alone") for _ in range(200)])
    groups_of(queue, 100)
    for _ in range(50):
        queue.add(Item("new"))
    assert Counter(groups_of(queue, 40)) == {"alone": 20, "new": 20}


def test_dropped_jobs_cost_nothing() -> None:
    queue = queue_of(*[Item("a") for _ in range(30)], *[Item("b") for _ in range(20)])
    for _ in range(10):
        first = queue.first()
        assert first is not None
        assert first.group == "a"
        assert queue.drop_first() is first
    assert Counter(groups_of(queue, 20)) == {"a": 10, "b": 10}


def test_refused_creates_are_given_back_and_keep_their_place() -> None:
    queue = queue_of(*[Item("a") for _ in range(20)], *[Item("b") for _ in range(20)])
    sent = [serve(queue) for _ in range(10)]
    refused = [item for item in sent if item.group == "a"]
    for item in refused:
        give_back(item)
        assert item.turn_cost is None
        give_back(item)  # once only
        queue.add(item)
    assert [serve(queue) for _ in refused] == refused
    assert Counter(groups_of(queue, 20)) == {"a": 10, "b": 10}


def test_cost_is_given_back_to_a_group_without_waiting_jobs() -> None:
    queue = queue_of(*[Item("b") for _ in range(20)])
    queue.add(lone := Item("a", cost=10.0))
    groups_of(queue, 3)
    give_back(lone)
    queue.add(Item("a"))
    assert "a" in groups_of(queue, 2)


def test_endless_refusals_do_not_fill_memory() -> None:
    queue = queue_of(*[Item("a") for _ in range(3)], *[Item("b") for _ in range(3)])
    for _ in range(1000):
        item = serve(queue)
        give_back(item)
        queue.add(item)
    (level,) = queue._levels.values()
    assert len(level.heap) <= 64 + 2 * 2 + 1
    assert sorted(groups_of(queue, 6), key=str) == ["a"] * 3 + ["b"] * 3


def test_higher_priority_goes_first() -> None:
    queue = queue_of(*[Item("batch") for _ in range(5)], Item("web", priority=5), Item("app", priority=-3))
    assert queue.waiting_above(0) == 1
    assert groups_of(queue, 7) == ["web", *["batch"] * 5, "app"]


def test_floor_serves_the_next_lower_priority() -> None:
    items = [Item(priority, priority) for priority in (2, 1, 0) for _ in range(1000)]
    served = groups_of(queue_of(*items), 1000)
    assert Counter(served) == {2: 900, 1: 90, 0: 10}
    assert max(len(run) for run in "".join("u" if each == 2 else " " for each in served).split()) == FLOOR_EVERY - 1


def test_single_urgent_jobs_never_meet_the_floor() -> None:
    queue = queue_of(*[Item("batch") for _ in range(100)])
    for _ in range(3 * FLOOR_EVERY):
        queue.add(Item("web", priority=1))
        assert groups_of(queue, 2) == ["web", "batch"]


def test_floor_is_not_owed_once_nothing_lower_waits() -> None:
    queue = queue_of(*[Item("web", priority=1) for _ in range(50)], Item("batch"))
    groups_of(queue, FLOOR_EVERY)
    assert groups_of(queue, 40) == ["web"] * 40
    queue.add(Item("batch"))
    assert groups_of(queue, 1) == ["web"]


def test_raised_job_moves_to_the_higher_priority() -> None:
    items = [Item("a") for _ in range(3)]
    queue = queue_of(*items)
    queue.raise_priority(items[2], 7)
    assert (len(queue), queue.waiting_above(0)) == (3, 1)
    assert [serve(queue) for _ in items] == [items[2], items[0], items[1]]
    assert queue.first() is None


def test_raised_job_leaves_no_level_behind() -> None:
    queue = queue_of(job := Item("a"))
    queue.raise_priority(job, 3)
    assert serve(queue) is job
    assert queue.first() is None
    assert not queue._levels


def test_job_that_no_longer_waits_can_be_raised() -> None:
    queue: FairQueue[Item] = FairQueue({})
    queue.raise_priority(job := Item(), 1)
    assert serve(queue) is job


def test_next_jobs_are_listed_in_the_order_of_their_turns() -> None:
    queue = queue_of(*(Item("a") for _ in range(6)), *(Item("b") for _ in range(3)), weights={"a": 2.0})
    queue.add(Item("c", priority=1))
    raised = Item("b")
    queue.add(raised)
    queue.raise_priority(raised, 1)
    listed = queue.next_jobs(20)
    assert listed == [serve(queue) for _ in range(len(queue))]
    assert queue.next_jobs(2) == []


def test_no_more_jobs_are_listed_than_asked_for() -> None:
    queue = queue_of(*(Item() for _ in range(9)))
    assert queue.next_jobs(4) == [serve(queue) for _ in range(4)]


@pytest.mark.parametrize("taken", range(5))
def test_removed_job_is_not_served(taken: int) -> None:
    items = [Item(group) for group in "aabab"]
    queue = queue_of(*items)
    queue.remove(items[taken], 0.0)
    assert len(queue) == 4
    never_there = queue_of(*(item for item in items if item is not items[taken]))
    assert [serve(queue) for _ in range(4)] == [serve(never_there) for _ in range(4)]
    assert not queue


def test_removals_take_turns_of_groups() -> None:
    queue = queue_of(*(Item("a") for _ in range(6)), *(Item("b") for _ in range(3)))
    removed = []
    for _ in range(6):
        (job,) = queue.next_jobs(1)
        queue.remove(job, 1.0)
        removed.append(job.group)
    assert removed == ["a", "b"] * 3


def test_removal_of_the_last_job_leaves_no_level_behind() -> None:
    queue = queue_of(item := Item("a", priority=3))
    queue.remove(item, 1.0)
    assert queue.first() is None
    assert (len(queue), bool(queue), queue.waiting_above(0)) == (0, False, 0)


def test_equal_places_of_two_groups_are_served() -> None:
    one, other = Item("a"), Item("b")
    other.place = one.place
    assert {serve(queue).group for queue in [queue_of(one, other)] for _ in range(2)} == {"a", "b"}


def test_million_groups_leave_nothing() -> None:
    queue = queue_of(*[Item("busy") for _ in range(3)])
    for number in range(20_000):  # the queue is never empty
        queue.add(Item(number))
        serve(queue)
    (level,) = queue._levels.values()
    assert len(level.groups) <= MOST_IDLE + 4
    assert len(level.heap) <= 64 + 2 * len(level.groups)
    while queue:
        serve(queue)
    assert not queue._levels


@pytest.mark.parametrize("priority", [1.5, "1", True, None, 101, -101])
def test_other_priorities_are_refused(priority: object) -> None:
    assert [check_priority(each) for each in (-100, 0, 100)] == [-100, 0, 100]
    with pytest.raises(ConfigurationError, match="priority must be a whole number from -100 to 100"):
        check_priority(priority)


@pytest.mark.parametrize("group", ["", "  ", 7, b"alice", "a" * 201, "a\nb", "\ud800"])
def test_other_groups_are_refused(group: object) -> None:
    with pytest.raises(ConfigurationError, match="group must be printable text of 1 to 200 characters"):
        check_group(group)


def test_weights_are_checked() -> None:
    assert ConcurrencyPolicy(group_weights={"alice": 2}).group_weights == {"alice": 2.0}
    assert hash(ConcurrencyPolicy(group_weights={"alice": 2})) == hash(ConcurrencyPolicy())
    for weights in ({"alice": 0}, {"alice": "2"}, {7: 1.0}, {None: 1.0}, ["alice"]):
        with pytest.raises(ConfigurationError):
            ConcurrencyPolicy(group_weights=weights)
