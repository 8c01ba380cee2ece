"""The parts of the schema: tables, columns, indexes and the like, and which of them are missing."""

import re
from importlib.resources import files

from nanobanana_async.ledger.postgres.pipeline import Statement, Work
from nanobanana_async.ledger.postgres.statements import PostgresTable

_PART = re.compile(r"^CREATE (?:UNIQUE )?(TABLE|INDEX|VIEW|FUNCTION|TRIGGER) (\w+)(.*?);$", re.MULTILINE | re.DOTALL)
_COLUMN = re.compile(r"^    ([a-z_]+) ", re.MULTILINE)
_OURS = "(SELECT oid FROM pg_namespace WHERE nspname = current_schema())"
_PARTS = (
    "SELECT CASE relkind WHEN 'r' THEN 'table' WHEN 'v' THEN 'view' ELSE 'index' END || ' ' || relname FROM pg_class"
    f" WHERE relnamespace = {_OURS} UNION ALL SELECT 'function ' || proname FROM pg_proc WHERE pronamespace = {_OURS}"
    " UNION ALL SELECT 'column ' || relname || '.' || attname FROM pg_attribute JOIN pg_class AS t ON t.oid = attrelid"
    f" WHERE relnamespace = {_OURS} AND relkind = 'r' AND NOT attisdropped"
    " UNION ALL SELECT 'trigger ' || tgname FROM pg_trigger JOIN pg_class AS t ON t.oid = tgrelid"
    f" WHERE relnamespace = {_OURS}"
)


def script() -> str:
    """Return the SQL that creates all parts."""
    return files("nanobanana_async.ledger.postgres").joinpath("schema.sql").read_text(encoding="utf-8")


def parts_of(sql: str) -> list[str]:
    """Return the parts that a script creates, such as "table jobs"."""
    parts = []
    for kind, name, body in _PART.findall(sql):
        parts.append(f"{kind.lower()} {name}")
        parts += [f"column {name}.{column}" for column in _COLUMN.findall(body) if kind == "TABLE"]
    return parts


def missing_parts(table: PostgresTable) -> Work[list[str]]:
    """Return what the schema lacks of its tables, columns, indexes and the like."""
    (rows,) = yield [Statement(_PARTS)]
    found = {part for (part,) in rows}
    return [part for part in parts_of(script()) if part not in found]
