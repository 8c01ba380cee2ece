"""Modules that take long to import, for tests that need them: every worker collects every file, and few run these."""

import importlib
import importlib.util
from typing import Any

import pytest


class LazyModule:
    """A module that is imported when an attribute of it is first read."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("_", "pytest")):  # pytest asks each global of a file what it is
            raise AttributeError(name)
        module = importlib.import_module(self._name)
        try:
            return getattr(module, name)
        except AttributeError:
            return importlib.import_module(f"{self._name}.{name}")


def lazy(name: str, missing: str = "") -> Any:
    """Return a module that is imported when it is first used; skips the file where it is not installed."""
    if missing and importlib.util.find_spec(name) is None:
        pytest.skip(missing, allow_module_level=True)
    return LazyModule(name)
