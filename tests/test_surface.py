"""What the package root promises: exactly these names. Each addition is a promise, each removal breaks one."""

import ast
import importlib.metadata
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import nanobanana_async
from nanobanana_async import errors

PUBLIC = {
    "ApiMall",
    "Batch",
    "Budget",
    "BudgetState",
    "ConcurrencyPolicy",
    "DefApi",
    "FeedReport",
    "Gateway",
    "GeneratedImage",
    "GenerationResult",
    "ImageRequest",
    "Job",
    "JobState",
    "Ledger",
    "MemoryLedger",
    "Outcome",
    "NotOurs",
    "PollPolicy",
    "PostgresLedger",
    "Resolution",
    "RetryPolicy",
    "Session",
    "SessionPortal",
    "SessionStats",
    "SqliteLedger",
    "Timeouts",
    "__version__",
    "portal",
    "sweep",
}
ERRORS = {
    "AccessDenied",
    "AuthenticationError",
    "BatchStopped",
    "ConfigurationError",
    "UnexpectedResponse",
    "CreditLimitReached",
    "DownloadError",
    "GatewayError",
    "GatewayUnavailable",
    "IdempotencyConflict",
    "InsufficientCredits",
    "InvalidRequest",
    "JobError",
    "JobFailed",
    "JobUncertain",
    "JobUnfinished",
    "JobWithdrawn",
    "LedgerError",
    "NanoBananaError",
    "PromptBlocked",
    "RateLimited",
    "SaveError",
    "SessionClosed",
    "TaskNotFound",
    "TransportError",
}
# What `from nanobanana_async import ...` costs in a server: none of the extras, nothing of the emulator.
HEAVY = (
    "PIL",
    "cyclopts",
    "rich",
    "jinja2",
    "pytest",
    "tqdm",
    "opentelemetry",
    "IPython",
    "obstore",
    "psycopg",
    "nanobanana_async.emulator",
    "nanobanana_async.cli",
)


def test_the_surface_is_chosen_not_grown() -> None:
    assert set(nanobanana_async.__all__) == PUBLIC | ERRORS
    assert len(nanobanana_async.__all__) == len(set(nanobanana_async.__all__))


def test_every_public_name_resolves() -> None:
    missing = [name for name in nanobanana_async.__all__ if not hasattr(nanobanana_async, name)]
    assert missing == []
    assert set(nanobanana_async.__all__) <= set(dir(nanobanana_async))


def test_type_checkers_see_the_names_that_are_imported_when_used() -> None:
    tree = ast.parse(Path(nanobanana_async.__file__).read_text(encoding="utf-8"))
    (checked,) = (node.body for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in checked if isinstance(node, ast.ImportFrom)]
    assert len(imports) == len(checked)
    seen = {alias.name: str(node.module) for node in imports for alias in node.names}
    modules: dict[str, str] = vars(nanobanana_async)["_MODULES"]
    assert seen == {name: f"nanobanana_async.{module}" for name, module in modules.items()}
    assert {*seen, "__version__"} == set(nanobanana_async.__all__)


def test_star_import_brings_all_names() -> None:
    names: dict[str, object] = {}
    exec("from nanobanana_async import *", names)
    assert names.keys() - {"__builtins__"} == set(nanobanana_async.__all__)


def test_unknown_name_is_an_attribute_error() -> None:
    for name in ("Sesion", "_Session", "__wrapped__"):
        with pytest.raises(AttributeError, match=f"module 'nanobanana_async' has no attribute '{name}'"):
            getattr(nanobanana_async, name)
        assert not hasattr(nanobanana_async, name)


def test_nothing_else_is_visible_but_modules() -> None:
    visible = {name for name in dir(nanobanana_async) if not name.startswith("_")}
    strangers = {name for name in visible - PUBLIC - ERRORS if not inspect.ismodule(getattr(nanobanana_async, name))}
    assert strangers == set()


def test_every_error_is_public() -> None:
    ours = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, BaseException) and value.__module__ == errors.__name__
    }
    assert ours == ERRORS


def test_every_public_name_says_what_it_is() -> None:
    public = {name: getattr(nanobanana_async, name) for name in nanobanana_async.__all__}
    silent = [name for name, value in public.items() if not inspect.getdoc(value)]
    assert silent == ["Resolution"]  # an alias of words, which can have no docstring


def test_the_version_is_that_of_the_distribution() -> None:
    assert nanobanana_async.__version__ == importlib.metadata.version("nanobanana-async")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("statements", "brought"),
    [
        ("import nanobanana_async", ""),
        ("import nanobanana_async; nanobanana_async.errors.JobFailed", "nanobanana_async.errors"),
        ("import nanobanana_async; nanobanana_async.Session", "nanobanana_async.session"),
        ("from nanobanana_async import *", "nanobanana_async.session"),
    ],
)
def test_the_root_brings_what_is_used_and_no_extra(statements: str, brought: str) -> None:
    heavy = (*HEAVY, *(() if brought.endswith(".session") else ("aiohttp", "attrs", "nanobanana_async.session")))
    program = f"{statements}; import sys; print([name for name in {(*heavy, brought)!r} if name in sys.modules])"
    # A coverage run follows us into the child, and brings modules of its own.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environ, capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.strip() == (f"[{brought!r}]" if brought else "[]")
