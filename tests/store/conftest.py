"""Fixtures of the tests of object stores: skipped, with the reason, where obstore or moto is not installed."""

from collections.abc import Iterator

import pytest

from tests.store.server import s3_process


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    """Run an S3-compatible server for the tests of this process."""
    pytest.importorskip("obstore", reason="obstore is not installed: pip install 'nanobanana-async[store]'")
    pytest.importorskip("moto", reason="moto is not installed: pip install 'moto[s3,server]'")
    with s3_process() as url:
        yield url
