"""Jobs and tasks: a job gets a task only if every possible assignment agrees."""

from collections.abc import Hashable, Iterator, Mapping, Sequence

from hypothesis import given
from hypothesis import strategies as st

from nanobanana_async.policy.matching import MOST_TOGETHER, agreed_tasks

Possible = Mapping[str, Sequence[str]]


def found(possible: Possible, **alike: Hashable) -> dict[str, str]:
    return agreed_tasks(possible, {job: alike.get(job, job) for job in possible})


def explanations(possible: Possible) -> Iterator[dict[str, str]]:
    """Yield every assignment of a different possible task to each job."""
    if not possible:
        yield {}
        return
    job, *others = possible
    for task in possible[job]:
        left = {other: [each for each in possible[other] if each != task] for other in others}
        for rest in explanations(left):
            yield {job: task, **rest}


def test_only_task_is_the_jobs() -> None:
    assert found({"A": ["a"]}) == {"A": "a"}


def test_one_of_two_tasks_is_undecided() -> None:
    assert found({"A": ["a", "b"]}) == {}


def test_task_of_one_job_is_left_out_for_another() -> None:
    assert found({"A": ["a", "b"], "B": ["a"]}) == {"A": "b", "B": "a"}


def test_two_jobs_with_the_same_two_tasks_are_undecided() -> None:
    assert found({"A": ["a", "b"], "B": ["a", "b"], "C": ["a", "b", "c"]}) == {"C": "c"}


def test_alike_jobs_share_their_tasks_in_any_order() -> None:
    two = found({"A": ["a", "b"], "B": ["a", "b"]}, A="same", B="same")
    assert sorted(two.values()) == ["a", "b"]


def test_alike_jobs_with_a_task_too_many_are_undecided() -> None:
    tasks = ["a", "b", "c"]
    assert found({"A": tasks, "B": tasks}, A="same", B="same") == {}


def test_contradiction_decides_nothing_but_for_others() -> None:
    assert found({"A": ["a"], "B": ["a"], "C": ["c"], "D": []}) == {"C": "c"}


def test_chain_of_windows_is_decided_from_its_end() -> None:
    jobs = {f"J{n}": [f"t{n}", f"t{n + 1}"] for n in range(20)} | {"J20": ["t20"]}
    assert found(jobs) == {f"J{n}": f"t{n}" for n in range(21)}


def test_too_many_jobs_together_are_undecided() -> None:
    jobs = {f"J{n}": [f"t{n}", f"t{n + 1}"] for n in range(MOST_TOGETHER)}
    assert found({**jobs, "last": [f"t{MOST_TOGETHER}"], "other": ["x"]}) == {"other": "x"}


GRAPHS = st.dictionaries(st.sampled_from("ABCDE"), st.lists(st.sampled_from("abcdef"), unique=True), max_size=5)


@given(GRAPHS)
def test_matching_agrees_with_all_explanations(possible: dict[str, list[str]]) -> None:
    parts = list(explanations(possible))
    decided = found(possible)
    if parts:
        assert decided == {job: task for job, task in parts[0].items() if all(part[job] == task for part in parts)}


@given(GRAPHS, st.lists(st.sampled_from("abcdef"), unique=True, min_size=1))
def test_alike_jobs_get_tasks_that_every_explanation_gives_them(
    possible: dict[str, list[str]], shared: list[str]
) -> None:
    possible = {**possible, "X": shared, "Y": shared}
    decided = found(possible, X="same", Y="same")
    parts = list(explanations(possible))
    both = {decided[job] for job in ("X", "Y") if job in decided}
    if parts:
        assert all(both <= {part["X"], part["Y"]} for part in parts)
        certain = set.intersection(*({part["X"], part["Y"]} for part in parts))
        assert both == certain
