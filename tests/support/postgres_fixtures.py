"""Fixtures for tests that need a PostgreSQL server: one for all tests of a worker process."""

from collections.abc import Iterator

import pytest

from tests.support.postgres import Pooler, Server, running_pooler, running_server, why_no_pooler, why_no_server


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """Return a running server; skip the test where none can be started."""
    if (reason := why_no_server()) is not None:
        pytest.skip(reason)
    with running_server() as server:
        yield server


@pytest.fixture(scope="session")
def pooler(postgres: Server) -> Iterator[Pooler]:
    """Return pgbouncer in transaction mode before the server; skip the test where it is missing."""
    if (reason := why_no_pooler()) is not None:
        pytest.skip(reason)
    with running_pooler(postgres) as pooler:
        yield pooler
