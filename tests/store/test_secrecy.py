"""The credentials of a store are in no log, error, repr, file or page, also where the store echoes them."""

import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("obstore", reason="obstore is not installed: pip install 'nanobanana-async[store]'")

from obstore.store import S3Store

from nanobanana_async import BatchStopped, ConfigurationError
from nanobanana_async.images.target import as_target
from tests.secrecy.canary import Listener, outcome_of, sightings
from tests.store.server import ACCESS_KEY, S3, SECRET_KEY, at_random, bucket, emulated, environment_of
from tests.support.command import ended, environment, started
from tests.support.loopback import quick

SECRETS = (ACCESS_KEY, SECRET_KEY)
VARIABLES = {
    "AWS_ACCESS_KEY_ID": ACCESS_KEY,
    "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
    "AZURE_STORAGE_ACCOUNT_KEY": SECRET_KEY,
    "GOOGLE_SERVICE_ACCOUNT_KEY": SECRET_KEY,
}
REFUSED: dict[str, Any] = {
    "user and password": f"s3://{ACCESS_KEY}:{SECRET_KEY}@bucket/x",
    "user": f"gs://{ACCESS_KEY}@bucket/x",
    "signature": f"az://container/x?sig={SECRET_KEY}",
    "https": f"https://{ACCESS_KEY}:{SECRET_KEY}@bucket.example/x",
    "no account": "az://container/x",
    "bad key": "gs://bucket/x",
    "prefix": (S3Store("bucket", access_key_id=ACCESS_KEY, secret_access_key=SECRET_KEY, region="x"), ".."),
}

IN_ENVIRONMENT = ("no account", "bad key")


@pytest.fixture
async def s3(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[S3]:
    async with bucket(s3_url) as made:
        for name, value in environment_of(made).items():
            monkeypatch.setenv(name, value)
        yield made


def set_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the environment here: no frame of a test holds its values."""
    for variable, value in VARIABLES.items():
        monkeypatch.setenv(variable, value)


def test_control_the_canary_is_found_in_a_store() -> None:
    assert sightings(S3Store("b", access_key_id=ACCESS_KEY, secret_access_key=SECRET_KEY).config, *SECRETS)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_target_shows_no_credentials(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_variables(monkeypatch)
    error = outcome_of(lambda: as_target("save_to", REFUSED[name]))
    assert isinstance(error, ConfigurationError)
    assert (error.__context__, error.__cause__) == (None, None)
    shown = [str(error), repr(error), repr(vars(error)), repr(error.args)]
    if name in IN_ENVIRONMENT:  # of a URL with credentials the caller's own frames have the text
        shown = sightings(error, *SECRETS)
    assert not [text for text in shown if any(secret in text for secret in SECRETS)]


@pytest.mark.slow
async def test_failing_store_shows_no_credentials(s3: S3) -> None:
    log = logging.getLogger()
    listener, level = Listener(), log.level
    log.addHandler(listener)
    log.setLevel(logging.DEBUG)
    try:
        faults = at_random(0.5, 3, ("no permission",))
        s3.faults = lambda method, name: None if "check-" in name else faults(method, name)
        async with emulated() as emulator, quick(emulator) as session:
            store = S3Store(
                s3.bucket,
                endpoint=s3.url,
                access_key_id=ACCESS_KEY,
                secret_access_key=SECRET_KEY,
                region="us-east-1",
                client_options={"allow_http": True},
            )
            errors: list[BaseException] = []
            shown = []
            for target in (f"s3://{s3.bucket}/one", (store, "two")):
                async for outcome in session.generate_many([f"a fox {number}" for number in range(12)], save_to=target):
                    errors += [outcome.error] if outcome.error is not None else []
                    shown += sightings(outcome.to_dict(), *SECRETS) + sightings(outcome._repr_html_(), *SECRETS)
            s3.faults = lambda *_: "no permission"
            with pytest.raises(BatchStopped) as stopped:
                _ = [each async for each in session.generate_many(["a fox"], save_to=f"s3://{s3.bucket}/three")]
            errors.append(stopped.value.cause)
        assert len(errors) > 5
        for error in errors:
            shown += sightings(error, *SECRETS)
    finally:
        log.removeHandler(listener)
        log.setLevel(level)
    assert shown == []
    assert not [said for said in listener.said if any(secret in said for secret in SECRETS)]


@pytest.mark.slow
async def test_command_shows_no_credentials(s3: S3, tmp_path: Path) -> None:
    (tmp_path / "foxes.txt").write_text("".join(f"a fox {number}\n" for number in range(12)))
    faults = at_random(0.5, 3, ("no permission",))
    s3.faults = lambda method, name: None if "check-" in name else faults(method, name)
    async with emulated() as emulator:
        environ = {**environment(emulator), **environment_of(s3)}
        command = ("batch", "foxes.txt", "-o", f"s3://{s3.bucket}/x", "--sidecar")
        async with started(*command, environ=environ, folder=tmp_path) as process:
            said = await ended(process)
    assert "no permission" in said.err
    written = [path for path in (tmp_path / "foxes").rglob("*") if path.is_file()]
    assert {path.name for path in written} >= {"index.html", "results.jsonl", "results.csv", "jobs.sqlite"}
    for secret in SECRETS:
        assert secret not in said.out + said.err
        assert not [path for path in written if secret.encode() in path.read_bytes()]
    assert not [name for name, (content, _) in (await s3.objects()).items() if SECRET_KEY.encode() in content]
