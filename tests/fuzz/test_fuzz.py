"""A short form of `python -m tests.fuzz`: what failed before, the seeds, and a few inputs of each target."""

import functools
import json
from collections.abc import Mapping

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.fuzz.target import CORPUS, Findings, Target, TooMuchWork, place_of, reduced

short = settings(
    max_examples=15,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)


@functools.cache
def all_targets() -> Mapping[str, Target]:
    """Return the targets; imported here, since they import most of the package, and each worker imports this file."""
    for name, extra in (("starlette", "serve"), ("mcp", "mcp"), ("psycopg", "postgres")):
        pytest.importorskip(name, reason=f"{name} is not installed: pip install 'nanobanana-async[{extra}]'")
    from tests.fuzz.table import TARGETS

    return TARGETS


def test_inputs_that_once_failed_give_typed_errors() -> None:
    for target in all_targets().values():
        for path in target.corpus():
            try:
                target.play(path.read_bytes())
            except Exception as error:
                error.add_note(str(path))
                raise


@pytest.mark.slow
def test_any_input_gives_a_value_or_a_typed_error() -> None:
    found = {}
    for target in all_targets().values():
        findings = Findings(target)
        for seed in target.seeds:
            findings.play(seed)
        short(given(target.inputs)(findings.play))()
        assert findings.executions > len(target.seeds)
        found.update({(target.name, where): (data, trace) for where, (data, trace) in findings.found.items()})
    assert found == {}


def test_each_seed_is_of_the_form_that_its_target_reads() -> None:
    """Otherwise the fuzzers would only ever see refusals."""
    refused = []
    for target in all_targets().values():
        findings = Findings(target)
        for seed in target.seeds:
            findings.play(seed)
        if not findings.accepted:
            refused.append(target.name)
    assert refused == []


def test_each_file_of_the_corpus_belongs_to_a_target() -> None:
    assert {path.name for path in CORPUS.iterdir() if path.is_dir()} <= set(all_targets())
    assert max((path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()), default=0) <= 8192


def _careless(data: bytes) -> None:
    json.loads(data)["a"]["b"]


CARELESS = Target(
    name="careless", run=_careless, errors=(ValueError,), seeds=(b'{"a": {"b": 1}, "c": [1, 2, 3]}',), words=(b'"a"',)
)


def test_control_a_careless_parser_is_found_and_its_input_reduced() -> None:
    findings = Findings(CARELESS)
    settings(short, max_examples=300)(given(CARELESS.inputs)(findings.play))()
    kinds = {where.partition(" ")[0] for where in findings.found}
    assert {"KeyError", "TypeError"} & kinds
    for data, _ in findings.found.values():
        shorter = reduced(CARELESS, data)
        with pytest.raises((KeyError, TypeError)) as caught:
            CARELESS.play(shorter)
        assert place_of(caught.value) in findings.found
        assert len(shorter) <= len(data)


def _endless(_: bytes) -> None:
    while True:
        pass


def test_control_a_parser_that_does_not_end_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fuzz.target.MOST_WORK_S", 0.05)
    findings = Findings(Target(name="endless", run=_endless))
    findings.play(b"")
    (where,) = findings.found
    assert where.startswith(TooMuchWork.__name__)


def test_executions_are_shared_by_the_cost_of_the_targets() -> None:
    from tests.fuzz.__main__ import lanes_of, shares

    targets = [*all_targets().values()]
    counts = shares(targets, 1_000_000)
    assert sum(counts) == 1_000_000
    by_name = dict(zip(all_targets(), counts, strict=True))
    assert by_name["values"] > 5 * by_name["sqlite-file"] > 0
    for target, count in zip(targets, counts, strict=True):
        for guided in (True, False):
            assert sum(part for _, part in lanes_of(target, count, guided=guided)) == count
