"""Imports go strictly downstairs; this test stands on the stairs.

A *room* is a module or folder right under the package, a *floor* a set of rooms that do not know each other. A file may
import from its own room and from lower floors, and nothing else of ours.
"""

import ast
import functools
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "nanobanana_async"
MAX_LINES = 320

FLOORS: tuple[frozenset[str], ...] = (
    frozenset({"_version"}),
    frozenset({"commands", "errors", "escaping", "file_locks"}),
    frozenset({"candidates", "failures", "misspelt", "validators", "values"}),
    frozenset({"extra", "formatting", "keys", "references"}),
    frozenset({"notebook_html"}),
    frozenset({"models"}),
    frozenset({"jobs"}),
    frozenset({"accounts", "asgi"}),
    frozenset({"gateways", "policy"}),
    frozenset({"config", "events", "loop_guard"}),
    frozenset({"http", "ledger"}),
    frozenset({"images"}),
    frozenset({"engine"}),
    frozenset({"connections", "handle", "image_saver", "reference_host", "stats"}),
    frozenset({"callers"}),
    frozenset({"recovery", "session_accounts"}),
    frozenset({"batch"}),
    frozenset({"purchases"}),
    frozenset({"session"}),
    frozenset({"webhooks", "otel", "session_portal"}),
    frozenset({"report", "emulator", "mcp_server", "serve"}),
    frozenset({"testing"}),
    frozenset({"cli"}),
    frozenset({"__main__"}),
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

# The root re-exports the face of the library: only what is built on that face may import it.
ROOT_FLOOR = FLOOR_OF["webhooks"]

# Above the line: no await, no clock, no socket.
THOUGHT = frozenset(
    {
        "_version",
        "accounts",
        "candidates",
        "commands",
        "errors",
        "escaping",
        "extra",
        "failures",
        "formatting",
        "misspelt",
        "validators",
        "values",
        "notebook_html",
        "references",
        "models",
        "jobs",
    }
    | {"gateways", "policy"}
)
IO_MODULES = frozenset(
    {"aiohttp", "anyio", "asyncio", "concurrent", "http", "logging", "select", "selectors", "signal", "socket"}
    | {"sqlite3", "ssl", "subprocess", "threading", "time", "urllib.request"}
)
CLOCK_READERS = frozenset({"now", "today", "utcnow"})

# Who may bring which guest into the house. A guest that is not listed may be met anywhere below the line.
GUESTS = {
    "cyclopts": frozenset({"cli"}),
    "rich": frozenset({"cli"}),
    "platformdirs": frozenset({"cli"}),
    "jinja2": frozenset({"report"}),
    "tqdm": frozenset({"batch"}),
    "opentelemetry": frozenset({"otel"}),
    "prometheus_client": frozenset({"otel"}),
    "sqlite3": frozenset({"ledger"}),
    "psycopg": frozenset({"ledger"}),
    "PIL": frozenset({"emulator", "images"}),
    "mcp": frozenset({"mcp_server"}),
    "mcp_types": frozenset({"mcp_server"}),
    "pydantic": frozenset({"mcp_server"}),
    "obstore": frozenset({"images"}),
    "starlette": frozenset({"serve", "cli"}),
    "uvicorn": frozenset({"cli"}),
    "pytest": frozenset({"emulator", "testing"}),
    "pytest_asyncio": frozenset({"emulator", "testing"}),
}
# The emulator is no client of a gateway, but it calls back, and shares no code with the transport.
NAMES_AIOHTTP_ERRORS = frozenset({"http", "images", "emulator"})


def parsed(package: Path) -> Iterator[tuple[str, str, ast.Module]]:
    """Yield each file's path for people, its room and its tree."""
    for file in sorted(package.rglob("*.py")):
        path = file.relative_to(package)
        room = path.parts[0].removesuffix(".py")
        yield path.as_posix(), room, tree_of(file.read_text(encoding="utf-8"))


@functools.cache
def tree_of(source: str) -> ast.Module:
    """Parse a file; five tests go through the whole package."""
    return ast.parse(source)


@functools.cache
def nodes_of(tree: ast.Module) -> tuple[ast.AST, ...]:
    """Return all nodes of a file."""
    return tuple(ast.walk(tree))


@pytest.fixture(scope="module", autouse=True)
def _short_memory() -> Iterator[None]:
    """Forget the trees after the last test here: with them each garbage collection of the worker would take longer."""
    yield
    tree_of.cache_clear()
    nodes_of.cache_clear()


def imported(tree: ast.Module) -> Iterator[tuple[int, str, tuple[str, ...]]]:
    """Yield each import: its line, the module, the names taken from it (none for a plain `import`)."""
    for node in nodes_of(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, ()
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield node.lineno, module, tuple(alias.name for alias in node.names)


def _wrong_step(package: str, room: str, module: str, names: tuple[str, ...]) -> str | None:
    if module.startswith("."):
        return "a relative import hides its floor"
    if module.split(".")[0] != package:
        return None
    if not names:
        return f"write `from {module} import ...`"
    if module == package:
        allowed = FLOOR_OF[room] >= ROOT_FLOOR
        return None if allowed else f"{room} imports the root"
    there = module.split(".")[1]
    if there == room:
        return None
    if there not in FLOOR_OF:
        return f"{there} has no floor"
    if room == "emulator":
        return f"emulator imports {there}: it is an independent witness"
    return f"{room} imports {there}" if FLOOR_OF[there] >= FLOOR_OF[room] else None


def wrong_imports(package: Path) -> list[str]:
    """Return each import of the package that does not go downwards."""
    found: list[str] = []
    for path, room, tree in parsed(package):
        if room == "__init__":
            continue
        if room not in FLOOR_OF:
            found.append(f"{path}: {room} has no floor")
            continue
        for line, module, names in imported(tree):
            steps = (_wrong_step(package.name, room, step, names) for step in _steps(package.name, module, names))
            found.extend(f"{path}:{line}: {wrong}" for wrong in steps if wrong)
    return found


def _steps(package: str, module: str, names: tuple[str, ...]) -> list[str]:
    """Return the modules that an import steps into: `from package import jobs` steps into jobs, not into the root."""
    if module != package or not names:
        return [module]
    return sorted({f"{package}.{name}" if name in FLOOR_OF else package for name in names})


def unquiet_thoughts(package: Path) -> list[str]:
    """Return each await, clock or input/output in a file that must be pure."""
    found: list[str] = []
    for path, room, tree in parsed(package):
        if room not in THOUGHT:
            continue
        for line, module, _ in imported(tree):
            if module in IO_MODULES or module.split(".")[0] in IO_MODULES:
                found.append(f"{path}:{line}: imports {module}")
        for node in nodes_of(tree):
            if isinstance(node, ast.AsyncFunctionDef) and not _is_signature(node):
                found.append(f"{path}:{node.lineno}: awaits")
            elif isinstance(node, ast.Attribute) and node.attr in CLOCK_READERS:
                found.append(f"{path}:{node.lineno}: reads a clock")
    return found


def _is_signature(node: ast.AsyncFunctionDef) -> bool:
    # A protocol may say that others will await; the words are docstring and dots.
    return all(isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) for line in node.body)


def misplaced_guests(package: Path) -> list[str]:
    """Return each third-party import in a part of the package that must not use it."""
    return [
        f"{path}:{line}: {room} imports {module}"
        for path, room, tree in parsed(package)
        for line, module, _ in imported(tree)
        if room not in GUESTS.get(module.split(".")[0], {room})
    ]


def foreign_errors(package: Path) -> list[str]:
    """Return each aiohttp exception named outside the transport: its repr may print the Authorization header."""
    aiohttp = importlib.import_module("aiohttp")
    errors = {name for name in dir(aiohttp) if _is_exception(getattr(aiohttp, name))}
    found: list[str] = []
    for path, room, tree in parsed(package):
        if room in NAMES_AIOHTTP_ERRORS:
            continue
        for line, module, names in imported(tree):
            if module in {"aiohttp", "aiohttp.client_exceptions"}:
                found.extend(f"{path}:{line}: names aiohttp.{name}" for name in names if name in errors)
        found.extend(
            f"{path}:{node.lineno}: names aiohttp.{node.attr}"
            for node in nodes_of(tree)
            if isinstance(node, ast.Attribute) and node.attr in errors and _is_name(node.value, "aiohttp")
        )
    return found


def _is_exception(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, BaseException)


def _is_name(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def hidden_cycles(package: Path) -> list[str]:
    """Return each use of `TYPE_CHECKING` below the root: it hides an import cycle. `not TYPE_CHECKING` hides none."""
    return [
        f"{path}:{node.lineno}: TYPE_CHECKING"
        for path, _, tree in parsed(package)
        if path != "__init__.py"
        for whole in nodes_of(tree)
        if not (isinstance(whole, ast.UnaryOp) and isinstance(whole.op, ast.Not))
        for node in ast.iter_child_nodes(whole)
        if (isinstance(node, ast.Name) and node.id == "TYPE_CHECKING")
        or (isinstance(node, ast.Attribute) and node.attr == "TYPE_CHECKING")
    ]


def long_files(package: Path) -> list[str]:
    """Return each file that is too long."""
    lengths = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in package.rglob("*.py")}
    return [f"{file.name}: {lines} lines" for file, lines in sorted(lengths.items()) if lines > MAX_LINES]


def imports_of_root(package: Path) -> list[str]:
    """Return each module that the root itself imports: what is imported for type checkers does not count."""
    tree = ast.parse((package / "__init__.py").read_text(encoding="utf-8"))
    at_run_time = [
        node for node in tree.body if not (isinstance(node, ast.If) and _is_name(node.test, "TYPE_CHECKING"))
    ]
    return [module for node in at_run_time for _, module, _ in imported(ast.Module([node], []))]


def private_uses_of_sessions(package: Path) -> list[str]:
    """Return each use of a private part of a session outside of its own files: `session.engine_of` is the way."""
    return [
        f"{path}:{node.lineno}: {ast.unparse(node)}"
        for path, room, tree in parsed(package)
        if room not in {"session", "purchases", "webhooks"}
        for node in nodes_of(tree)
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and ast.unparse(node.value).rpartition(".")[2] in {"session", "_session"}
    ]


def test_no_file_uses_private_parts_of_a_session() -> None:
    assert private_uses_of_sessions(PACKAGE) == []


def test_every_import_goes_downwards() -> None:
    assert wrong_imports(PACKAGE) == []


def test_pure_files_do_no_input_or_output() -> None:
    assert unquiet_thoughts(PACKAGE) == []


def test_third_party_imports_stay_in_their_parts() -> None:
    assert misplaced_guests(PACKAGE) == []


def test_aiohttp_exceptions_are_named_in_the_transport_only() -> None:
    assert foreign_errors(PACKAGE) == []


def test_no_import_is_for_type_checkers_only() -> None:
    assert hidden_cycles(PACKAGE) == []


def test_every_file_is_short() -> None:
    assert long_files(PACKAGE) == []


def test_the_root_imports_only_the_version() -> None:
    assert imports_of_root(PACKAGE) == ["sys", "typing", "nanobanana_async._version"]


def test_every_room_has_exactly_one_floor() -> None:
    assert sum(len(rooms) for rooms in FLOORS) == len(FLOOR_OF)
    assert set(FLOOR_OF) >= THOUGHT


def a_house_with(tmp_path: Path, **files: str) -> Path:
    """Build a small tree; `__` in a name stands for a slash."""
    package = tmp_path / "house"
    for name, text in files.items():
        file = package / f"{name.replace('__', '/')}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return package


@pytest.mark.parametrize(
    ("file", "line", "complaint"),
    [
        ("jobs", "from house.session import Session", "jobs imports session"),
        ("gateways__apimall", "from house.policy.retry import decide", "gateways imports policy"),
        ("engine__wire", "from house import Session", "engine imports the root"),
        ("jobs", "from house import session", "jobs imports session"),
        ("emulator__app", "from house.errors import NanoBananaError", "independent witness"),
        ("session", "def late():\n    from house.cli.app import run", "session imports cli"),
        ("session", "import house.errors", "write `from house.errors import ...`"),
        ("session", "from .errors import JobError", "relative"),
        ("session", "from house.attic import thing", "attic has no floor"),
        ("attic", "thing = 1", "attic has no floor"),
    ],
)
def test_wrong_import_is_found(tmp_path: Path, file: str, line: str, complaint: str) -> None:
    found = wrong_imports(a_house_with(tmp_path, **{file: line}))
    assert len(found) == 1
    assert complaint in found[0]


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("session", "from house.engine.wire import Wire"),
        ("engine__buying", "from house.engine.wire import Wire"),
        ("session", "from house import errors"),
        ("emulator__handle", "from house import ApiMall"),
        ("cli__app", "from house import Session"),
        ("jobs", "from decimal import Decimal"),
    ],
)
def test_right_import_is_accepted(tmp_path: Path, file: str, line: str) -> None:
    assert wrong_imports(a_house_with(tmp_path, **{file: line})) == []


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("async def act():\n    return 1", "awaits"),
        ("import time", "imports time"),
        ("from aiohttp import web", "imports aiohttp"),
        ("import urllib.request", "imports urllib.request"),
        ("from datetime import UTC, datetime\nborn = datetime.now(UTC)", "reads a clock"),
    ],
)
def test_pure_file_with_side_effects_is_found(tmp_path: Path, text: str, complaint: str) -> None:
    assert complaint in unquiet_thoughts(a_house_with(tmp_path, policy__retry=text))[0]
    assert unquiet_thoughts(a_house_with(tmp_path, policy__retry="", session=text)) == []


def test_protocol_may_declare_async_methods(tmp_path: Path) -> None:
    promise = 'class Transport:\n    async def open(self) -> None:\n        """Open."""\n        ...'
    assert unquiet_thoughts(a_house_with(tmp_path, gateways__contract=promise)) == []


def test_other_violations_are_found(tmp_path: Path) -> None:
    package = a_house_with(
        tmp_path,
        session="import aiohttp\nimport rich\nx = aiohttp.ClientError",
        batch="from aiohttp import ClientTimeout, ServerTimeoutError",
        jobs="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    x = 1",
        models="\n" * (MAX_LINES + 1),
        serve="self.session._engine\nself._session.stats()\nsession.__dict__",
    )
    lazy = "if TYPE_CHECKING:\n    from house.jobs import Job\nfrom house.errors import JobError"
    (package / "__init__.py").write_text(lazy, encoding="utf-8")
    assert misplaced_guests(package) == ["session.py:2: session imports rich"]
    assert foreign_errors(package) == [
        "batch.py:1: names aiohttp.ServerTimeoutError",
        "session.py:3: names aiohttp.ClientError",
    ]
    assert hidden_cycles(package) == ["jobs.py:2: TYPE_CHECKING"]
    assert private_uses_of_sessions(package) == ["serve.py:1: self.session._engine"]
    assert long_files(package) == [f"models.py: {MAX_LINES + 1} lines"]
    assert imports_of_root(package) == ["house.errors"]
