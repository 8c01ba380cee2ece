"""The files that people and earlier runs wrote: rows of a batch, settings, tokens, results, lists of images."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from nanobanana_async.cli.batch.folder import FolderOwner
from nanobanana_async.cli.batch.results import OldResults, Result
from nanobanana_async.cli.batch.spreadsheet import write_spreadsheet
from nanobanana_async.cli.batch.store_marker import _facts_in
from nanobanana_async.cli.open_runs import _Run
from nanobanana_async.cli.settings import file as settings
from nanobanana_async.cli.settings.sources import connection_in, options_of
from nanobanana_async.errors import ConfigurationError, InvalidRequest
from nanobanana_async.extra import to_extra, value_of_text
from nanobanana_async.images.destination import is_sidecar_of
from nanobanana_async.images.manifest import Manifest
from nanobanana_async.images.names import FIELDS, NameFacts, NameTemplate, row_name, safe_name, slug
from nanobanana_async.images.saved import PurchasedImage, SavedImages, find_saved, listed_name
from nanobanana_async.report import ReportRow
from nanobanana_async.serve.bearer_tokens import find_token, parse_tokens
from tests.fuzz.scratch import file_with, scratch
from tests.fuzz.target import VALUES, Target, json_of, json_shapes, objects_with, parts_of, texts_of


def _settings(data: bytes) -> None:
    path = file_with(data, "config.toml")
    path.chmod(0o600)
    for profile in (None, "work"):
        found = settings.read(path, profile)
        for layer in found.layers:
            for command in ("generate", "batch", "jobs"):
                json.dumps(options_of(layer, command), default=str)
        connection_in(found, None)


def _tokens(data: bytes) -> None:
    text = data.decode("utf-8-sig", errors="replace")
    for token in parse_tokens(text):
        assert token.batch
        assert token.budget is None or token.budget.max_credits >= 0
        assert find_token([token], f"Bearer {text[:40]}") in (None, token)


def _result(data: bytes) -> None:
    """A line of results.jsonl, and what the next run does with it."""
    result = Result.from_json(data)
    result.files_intact(scratch())
    again = Result.from_json(result.to_json().encode())
    assert again.to_json() == result.to_json()
    assert isinstance(result.row.index, int)
    assert isinstance(result.row.job_key, str)
    assert hash((result.row.job_key, result.row.key)) is not None
    _ = result.row.seconds
    write_spreadsheet(scratch(), lambda: [result], ",")


def _results(data: bytes) -> None:
    path = file_with(data, "results.jsonl")
    offsets = OldResults.read(path).offsets
    assert all(0 <= offset < max(1, len(data)) for offset in offsets.values())


IMAGE = PurchasedImage(key="order-1", task_id="t1", index=0)


def _metadata(data: bytes) -> None:
    """metadata.jsonl and SHA256SUMS of a folder, which any program may have edited."""
    folder = scratch() / "images"
    folder.mkdir(exist_ok=True)
    text = data if data.startswith(b"{") else IMAGE.line_prefix + data
    (folder / "metadata.jsonl").write_bytes(text)
    saved = SavedImages.read(folder)
    assert saved.find("order-1", "t1", [0, 1]) is None
    saved.find("x", "y", [])
    assert isinstance(saved.files_of_earlier_jobs("row", "order-1"), list)
    assert find_saved(folder, IMAGE) is None
    name = listed_name(folder, IMAGE)
    assert name is None or "/" not in name
    (folder / "SHA256SUMS").write_bytes(data)
    with Manifest(folder) as manifest:
        assert all(isinstance(each, tuple) for each in manifest.listed("a.png"))


def _marker(data: bytes) -> None:
    owner = FolderOwner.from_json(data)
    assert isinstance(owner.batch, str)
    assert owner.to_json()


def _own_files(data: bytes) -> None:
    """Sidecars, the mark in a store, and what a killed `generate` left."""
    assert is_sidecar_of(data, {"job_key": "a", "task_id": "b", "image": 1}) in (True, False)
    assert isinstance(_facts_in(data), dict)
    run = _Run.read(file_with(data, "run.json"), Path("jobs.sqlite"))
    assert all(isinstance(key, str) and isinstance(request, str) for key, request in run.jobs.items())


def _names(data: bytes) -> None:
    parts = parts_of(data)
    text, metadata = texts_of(parts.body), json_of(parts.body)
    for each in (safe_name(text), slug(text), row_name(None, NameFacts(row=1, key=text or None, prompt=text))):
        assert each
        assert len(each) <= 130
        assert "/" not in each
        assert "\\" not in each
        assert each.isascii()
        assert not each.startswith(".")
    template = NameTemplate("--names", parts.first or text, FIELDS)
    stem = row_name(template, NameFacts(row=7, key=text, prompt=text, metadata=metadata))
    assert stem.isascii()
    assert len(stem) <= 130
    assert "/" not in stem


def _extra(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    value_of_text(text)
    extra = to_extra(text)
    assert to_extra(json.dumps(dict(extra))) == extra


_RESULT = (
    Result(
        row=ReportRow(
            index=0,
            number=1,
            job_key="k",
            status="succeeded",
            prompt="a fox",
            images=("images/a.png",),
            created_at=datetime(2026, 1, 1, tzinfo=UTC),
        ),
        sha256=("0" * 64,),
        sizes=(9,),
        saved_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    .to_json()
    .encode()
)
_RESULT_NAMES = [*ReportRow.__annotations__, "sha256", "bytes", "saved_at", "earlier_images"]
_SAVED = IMAGE.line("a.png", "0" * 64)
_TOML = b"""gateway = "apimall"
base_url = "https://gateway.example"
api_key_variable = "WORK_KEY"
allow_networks = ["10.0.0.5/32"]
max_credits = 5.5
extra = { seed = 7 }
[batch]
names = "{row:04}-{slug}"
[profile.work]
gateway = "defapi"
[profile.work.jobs]
ledger = "/a/b"
"""


def _result_of(changes: dict[str, Any]) -> bytes:
    return json.dumps({**json.loads(_RESULT), **changes}).encode()


TARGETS = (
    Target(
        name="settings",
        run=_settings,
        errors=(ConfigurationError,),
        seeds=(_TOML,),
        words=tuple(name.encode() for name in (*settings.CONNECTION, *settings.NETWORK, *settings.OPTIONS)),
        cost=3,
    ),
    Target(
        name="tokens",
        run=_tokens,
        errors=(ConfigurationError,),
        seeds=(b"ann:" + b"a" * 20 + b":500\n# b\nbob:" + b"b" * 20,),
        words=(b":NaN", b":1e999", b":-1"),
    ),
    Target(
        name="result",
        run=_result,
        errors=(ValueError,),
        seeds=(_RESULT,),
        words=tuple(f'"{name}"'.encode() for name in _RESULT_NAMES),
        shapes=st.dictionaries(st.sampled_from(_RESULT_NAMES), VALUES, max_size=3).map(_result_of),
        cost=10,
    ),
    Target(
        name="results",
        run=_results,
        seeds=(_RESULT + b"\n" + _RESULT, b"\n{}\n"),
        shapes=st.lists(
            st.dictionaries(st.sampled_from(_RESULT_NAMES), VALUES, max_size=3).map(_result_of), max_size=3
        ).map(b"\n".join),
        cost=3,
    ),
    Target(
        name="metadata",
        run=_metadata,
        seeds=(_SAVED, b'"file_name": "a.png", "sha256": "0", "key": "row"}\n'),
        words=(b'"file_name"', b'"sha256"', b'"key"', b"\\u0000", b"\\ud800", b"../"),
        shapes=objects_with(["job_key", "task_id", "image", "file_name", "sha256", "key"]).map(
            lambda facts: (json.dumps(facts) + "\n").encode()
        )
        | st.fixed_dictionaries({"file_name": VALUES, "sha256": VALUES, "key": st.just("row") | VALUES}).map(
            lambda facts: (json.dumps(facts)[1:] + "\n").encode()
        ),
        cost=10,
    ),
    Target(
        name="folder-marker",
        run=_marker,
        errors=(ValueError,),
        seeds=(b'{"batch": "a", "emulated": false, "store": "s3://b"}',),
        shapes=json_shapes(objects_with(["batch", "emulated", "store", "names"])),
    ),
    Target(
        name="own-files",
        run=_own_files,
        errors=(ConfigurationError,),
        seeds=(b'{"ledger": "a", "jobs": {"k": "r"}}', b'{"job_key": "a"}'),
        shapes=json_shapes(objects_with(["ledger", "jobs", "job_key", "task_id", "image"])),
        cost=3,
    ),
    Target(
        name="names",
        run=_names,
        errors=(ConfigurationError, InvalidRequest),
        seeds=(b'{row:04}-{slug}-{metadata[a]}\n\n{"a": 1}', b"{key}\n\nx", b"CON.txt"),
        words=(b"{row", b"{slug}", b"{key}", b"{metadata["),
    ),
    Target(
        name="extra",
        run=_extra,
        errors=(InvalidRequest,),
        seeds=(b'{"seed": 7, "a": {"b": [1, 2.5]}}',),
        shapes=json_shapes(VALUES),
    ),
)
