"""pytest fixtures, enabled by `pytest_plugins = ["nanobanana_async.emulator.fixtures"]`."""

from collections.abc import AsyncIterator

try:
    import pytest
    import pytest_asyncio
except ModuleNotFoundError:
    raise ImportError("the fixtures need pytest: pip install pytest pytest-asyncio") from None

from nanobanana_async.emulator.emulator import Emulator


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker `emulator`."""
    config.addinivalue_line("markers", "emulator(**settings): settings of the nanobanana_emulator fixture")


@pytest_asyncio.fixture
async def nanobanana_emulator(request: pytest.FixtureRequest) -> AsyncIterator[Emulator]:
    """Run an emulator for one test, with the settings of `@pytest.mark.emulator(...)`."""
    settings = {}
    for marker in reversed(list(request.node.iter_markers("emulator"))):
        settings.update(marker.kwargs)
    async with Emulator(**settings) as emulator:
        yield emulator
