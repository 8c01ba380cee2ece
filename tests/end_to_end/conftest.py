"""What all tests of the folder share."""

import pytest

from nanobanana_async.engine import outage


@pytest.fixture(autouse=True)
def _faults_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give no job up for its answers: on a busy machine two repeats take the seconds after which a session does."""
    monkeypatch.setattr(outage, "HOPELESS_AFTER_S", 1000.0)
