"""The exchange of an owner with the others of its account, as one short transaction on the account's row.

It is committed without a disk flush, apart from the flushes of jobs: the shares are hints, and no job depends on them.
It waits for another exchange for a moment only, and is not repeated when the server is away: what is granted lasts.
"""

import json
import math
from typing import Any

from attrs import frozen

from nanobanana_async.ledger.postgres.pipeline import Call, Statement, Work
from nanobanana_async.ledger.postgres.statements import PostgresTable
from nanobanana_async.policy.account_state import AccountState, Share
from nanobanana_async.policy.sharing import Allotment, Report, exchange

LOCK_TIMEOUT_S = 0.5
"""How long an exchange waits for that of another owner. Writes of jobs wait behind it."""

_ADD_ACCOUNT = "INSERT INTO accounts (account) VALUES (%(account)s) ON CONFLICT (account) DO NOTHING"
_LOCK_ACCOUNT = "SELECT state FROM accounts WHERE account = %(account)s FOR UPDATE"
_LIVING = "EXISTS (SELECT FROM owners AS o WHERE o.id = {}.owner AND o.buried_by IS NULL)"
_FIELDS = (  # of a share
    *("granted", "target", "held", "slots_in_flight", "queued", "urgent", "interactive", "reserve", "used", "spoke_at"),
    *("hungry_at", "reports"),
)
_COLUMNS = tuple("in_flight" if name == "slots_in_flight" else name for name in _FIELDS)
_MAY_RUN = (
    f"SELECT CASE WHEN {_LIVING.format('j')} THEN j.owner END AS owner, state, slots FROM jobs AS j"
    " WHERE account = %(account)s AND state IN ('submitting', 'running', 'uncertain')"
    " AND coalesce(running_since, first_sent_at, created_at)"
    " >= clock_timestamp() - make_interval(secs => %(longest_s)s::float8)"
)
# One statement, so that it sees a burial or an adoption as a whole.
_READ = (
    "SELECT extract(epoch FROM clock_timestamp())::float8,"
    " (SELECT json_agg(json_build_array(owner, number)) FROM (SELECT owner, sum(slots) AS number"
    f" FROM ({_MAY_RUN}) AS may_run WHERE owner IS NULL OR state <> 'uncertain' GROUP BY owner) AS counted),"
    f" (SELECT json_agg(json_build_array(owner, {', '.join(_COLUMNS)})) FROM shares AS s"
    f" WHERE account = %(account)s AND {_LIVING.format('s')})"
)
_WRITE_STATE = "UPDATE accounts SET state = %(state)s WHERE account = %(account)s"
_WRITE_SHARE = (
    f"INSERT INTO shares (account, owner, {', '.join(_COLUMNS)})"
    f" VALUES (%(account)s, %(me)s, {', '.join(f'%({column})s' for column in _COLUMNS)})"
    f" ON CONFLICT (account, owner) DO UPDATE SET {', '.join(f'{column} = excluded.{column}' for column in _COLUMNS)}"
)


@frozen
class Exchange(Call[Allotment]):
    """A call that runs in a transaction of its own, without a disk flush, and once only."""


def exchange_of(account: str, report: Report) -> Exchange:
    """Return the call for an exchange of this owner."""
    return Exchange(lambda table: _exchange(table.owner, account, report))


def read_account(table: PostgresTable, account: str) -> Work[AccountState | None]:
    """Return what the owners of an account learned together, without their shares; None if none has exchanged."""
    (found,) = yield [Statement("SELECT state FROM accounts WHERE account = %(account)s", {"account": account})]
    return AccountState.from_json(found[0][0], {}) if found and found[0][0] is not None else None


def _exchange(me: int, account: str, report: Report) -> Work[Allotment]:
    whose = {"account": account, "longest_s": min(report.max_run_s, 1e9)}
    _, ((text,),), ((now, counted, found),) = yield [
        Statement(_ADD_ACCOUNT, whose, returns_rows=False),
        Statement(_LOCK_ACCOUNT, whose),
        Statement(_READ, whose),
    ]
    state = AccountState.from_json(text, {int(row[0]): _share(row[1:]) for row in _rows_in(found)})
    allotment = exchange(state, me, report, now, {row[0]: row[1] for row in _rows_in(counted)})
    yield [
        Statement(_WRITE_STATE, {"account": account, "state": state.to_json()}, returns_rows=False),
        Statement(_WRITE_SHARE, {"account": account, **_columns(state.shares[me])}, returns_rows=False),
    ]
    return allotment


def _rows_in(aggregate: Any) -> list[Any]:
    """Return the rows of a JSON aggregate, which the driver may have read as JSON or as text."""
    return aggregate if isinstance(aggregate, list) else json.loads(aggregate or "[]")


def _share(row: list[object]) -> Share:
    fields = dict(zip(_FIELDS, row, strict=True))
    hungry_at = fields.pop("hungry_at")
    return Share(**fields, hungry_at=-math.inf if hungry_at is None else hungry_at)  # type: ignore[arg-type]


def _columns(share: Share) -> dict[str, object]:
    columns = {column: getattr(share, name) for column, name in zip(_COLUMNS, _FIELDS, strict=True)}
    return {**columns, "hungry_at": None if share.hungry_at == -math.inf else share.hungry_at}
