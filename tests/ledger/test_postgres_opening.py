"""Opening a ledger on PostgreSQL: settings, errors that say what to do, tables and their versions."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from nanobanana_async import ApiMall, Session
from nanobanana_async.errors import ConfigurationError, LedgerError
from nanobanana_async.ledger.location import as_location
from nanobanana_async.ledger.postgres import driver
from nanobanana_async.ledger.postgres.ledger import PostgresLedger
from nanobanana_async.ledger.postgres.problems import to_ledger_error
from nanobanana_async.ledger.postgres.schema import CLIENT, Step, Tables, current_tables
from nanobanana_async.ledger.postgres.url import PostgresUrl
from tests.support.ledger_contract import job
from tests.support.postgres import PASSWORD, QUOTED_PASSWORD, Server, new_schema
from tests.support.rows import each_row

URL = "postgresql://fox:s3cret@db.example:5433/spring"


@each_row(
    ("url", "shown"),
    [
        (URL, "postgresql://fox:***@db.example:5433/spring"),
        ("postgres://fox@db.example/spring", "postgres://fox@db.example/spring"),
        ("postgresql:///spring?host=/run/pg&password=s3cret", "postgresql:///spring?host=/run/pg&password=***"),
        ("POSTGRES://fox:s3cret?#@db.example,[::1]:1/a", "postgres://fox:***@db.example,[::1]:1/a"),
        ("postgresql://:s3cret@db.example?sslpassword=k", "postgresql://:***@db.example?sslpassword=***"),
        ("postgresql://db/a?oauth_client_secret=s3cret&schema=b", "postgresql://db/a?oauth_client_secret=***&schema=b"),
        ("postgresql://db/a?scram_client_key=s3cret&passfile=f", "postgresql://db/a?scram_client_key=***&passfile=f"),
    ],
)
def test_url_is_shown_without_its_password(url: str, shown: str) -> None:
    ledger = PostgresLedger(url)
    assert repr(ledger) == f"PostgresLedger({shown!r})"
    assert str(ledger.location) == shown
    assert "s3cret" not in repr(PostgresUrl.parse(url))


@pytest.mark.parametrize(
    ("url", "said"),
    [(URL, "authentication with s3cret failed"), (f"{URL}?password=p%40ss", "password=p@ss and p%40ss are wrong")],
)
def test_message_is_shown_without_the_password(url: str, said: str) -> None:
    masked = PostgresUrl.parse(url).mask(said)
    assert "***" in masked
    for secret in ("s3cret", "p@ss", "p%40ss"):
        assert secret not in masked


def test_url_may_name_the_schema() -> None:
    url = PostgresUrl.parse(f"{URL}?sslmode=require&schema=my%20app&connect_timeout=3")
    assert (url.schema, url.url) == ("my app", f"{URL}?sslmode=require&connect_timeout=3")
    assert PostgresUrl.parse(str(url).replace("***", "s3cret")) == url
    assert PostgresUrl.parse(f"{URL}?schema=a", "b").schema == "b"
    assert PostgresUrl.parse(f"{URL}?schema=a").url == URL


# A password with special characters, of which libpq would take a part for a host, a port or an option.
SLIPS = [
    *("postgresql://fox:s3/cret@db", "postgresql://fox:a@s3cret@db", "postgresql://fox:a/b?s3cret@db"),
    *("postgresql://fox:s3cret", "postgresql://fox:s3cret x@db", "postgresql://fox:s3cret%@db", "postgresql://a%00b"),
    *("postgresql://db/a?pass%77ord=s3cret", "postgresql://db/a?password=s3cret x", "postgresql://fox:s3cret@[::1/db"),
]
NO_URLS = ["", "jobs.sqlite", "host=db password=s3cret", "mysql://db", "postgresql://a\0b", 5]


@each_row("url", [*NO_URLS, *SLIPS])
def test_anything_but_a_url_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ConfigurationError, match="needs a URL such as") as caught:
        PostgresLedger(url)
    assert "s3cret" not in str(caught.value)


@each_row(
    "url",
    [
        *(
            "postgresql+asyncpg://fox:s3cret@db/spring",
            "postgres:/fox:s3cret@db/spring",
            "pgsql://fox:s3cret@db/spring",
        ),
        *("postgresql//fox:s3cret@db/spring", "jdbc:postgresql://fox:s3cret@db/spring", '"postgres://fox:s3cret@db"'),
        *("psql postgresql://fox:s3cret@db/spring", "host=db password=s3cret", Path("postgresql://fox:s3cret@db")),
    ],
)
def test_url_with_a_slip_is_not_taken_for_a_path(url: str | Path) -> None:
    for take in (lambda: Session(ApiMall(api_key="k"), ledger=url), lambda: as_location("--ledger", url)):
        with pytest.raises(ConfigurationError, match="needs a URL such as") as caught:
            take()
        assert "s3cret" not in str(caught.value)


@each_row("schema", ["", "x" * 64, "pg_mine", "public", "a\0b", "a\udcff", "information_schema"])
def test_schema_of_others_or_without_a_name_is_refused(schema: str) -> None:
    with pytest.raises(ConfigurationError, match="schema"):
        PostgresLedger(URL, schema=schema)


@asynccontextmanager
async def opened(url: str, schema: str, *, read_only: bool = False) -> AsyncIterator[PostgresLedger]:
    ledger = PostgresLedger(url, schema=schema, read_only=read_only)
    await ledger.open()
    try:
        yield ledger
    finally:
        await ledger.aclose()


async def why_closed(url: str, schema: str | None = None, *, read_only: bool = False) -> str:
    """Return the message of the error with which opening fails, and check that no password is in it."""
    ledger = PostgresLedger(url, schema=schema or new_schema(), read_only=read_only)
    with pytest.raises(LedgerError) as caught:
        await ledger.open()
    error: BaseException | None = caught.value
    while error is not None:
        assert PASSWORD not in str(error)
        assert QUOTED_PASSWORD not in str(error)
        error = error.__cause__
    return str(caught.value)


async def test_unreachable_server_is_named() -> None:
    assert "the server can't be reached: check that it runs" in await why_closed("postgresql://fox@127.0.0.1:1/spring")


@pytest.mark.parametrize("path", ["./postgres.sqlite", "postgres/jobs.sqlite", "host.sqlite", "my postgresql: jobs"])
def test_path_that_names_postgres_is_a_path(path: str) -> None:
    assert as_location("--ledger", path) == Path(path)


@pytest.mark.parametrize("url", ["mysql://fox:s3cret@db/spring", "redis://:s3@cret@db"])
def test_url_of_another_database_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"not the URL '\w+://\*\*\*@db") as caught:
        as_location("--ledger", url)
    assert "cret" not in str(caught.value)


@each_row(
    ("url", "several"),
    [
        ("postgresql://a,b/spring", True),
        ("postgresql://[::1],[::2]:5433/spring", True),
        ("postgresql:///spring?host=a,b", True),
        ("postgresql:///spring?hostaddr=10.0.0.1%2C10.0.0.2", True),
        ("postgresql://fox:a,b@db/spring?application_name=a,b", False),
        ("postgresql:///spring?service=studio", False),
    ],
)
def test_several_servers_are_noticed(url: str, several: bool) -> None:
    assert PostgresUrl.parse(url).has_several_hosts is several


async def test_unknown_option_is_named_as_such() -> None:
    assert "check its form" in await why_closed("postgresql://fox@127.0.0.1:1/spring?no_such_option=1")


async def test_missing_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("nanobanana_async.ledger.postgres.con")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("problems", "schema"):
        monkeypatch.delitem(sys.modules, f"nanobanana_async.ledger.postgres.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    assert "pip install 'nanobanana-async[postgres]'" in await why_closed(URL)


@pytest.mark.slow
async def test_wrong_password_user_and_database_have_different_errors(postgres: Server) -> None:
    at = f"127.0.0.1:{postgres.port}"
    assert "check the user in the URL, and the password" in await why_closed(f"postgresql://postgres:no@{at}/postgres")
    assert "check the user in the URL, and the password" in await why_closed(f"postgresql://postgres@{at}/postgres")
    socket = postgres.url
    assert "there is no such database" in await why_closed(socket.replace("/postgres?", "/spring?"))
    assert "the server does not know this user" in await why_closed(socket.replace("postgres@", "fox@"))
    async with opened(postgres.tcp_url, new_schema()) as ledger:
        assert (await ledger.claim(job())).is_new


@pytest.mark.slow
async def test_user_without_rights_learns_what_an_administrator_must_do(postgres: Server) -> None:
    schema, url = new_schema(), postgres.url.replace("postgres@", "app@")
    postgres.execute("CREATE ROLE app LOGIN")
    said = await why_closed(url, schema)
    assert f'`CREATE SCHEMA IF NOT EXISTS "{schema}" AUTHORIZATION "app"` in database' in said
    postgres.execute(f"CREATE SCHEMA {schema}")
    assert "may not create tables in the schema" in await why_closed(url, schema)
    async with opened(postgres.url, schema):
        pass
    assert "let their owner grant USAGE" in await why_closed(url, schema)
    postgres.execute(
        f"GRANT USAGE ON SCHEMA {schema} TO app",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO app",
    )
    async with opened(url, schema) as ledger:
        assert (await ledger.claim(job())).is_new
    postgres.execute(f"DROP SCHEMA {schema} CASCADE", "DROP ROLE app")


@pytest.mark.slow
async def test_schema_with_tables_of_others_is_not_touched(postgres: Server) -> None:
    schema = new_schema()
    postgres.execute(f"CREATE SCHEMA {schema} CREATE TABLE orders (id int)")
    assert "holds other tables, such as 'orders': choose another schema" in await why_closed(postgres.url, schema)
    postgres.execute("CREATE TABLE meta (id int)", schema=schema)
    assert "`meta` is not that of a ledger" in await why_closed(postgres.url, schema)


@pytest.mark.slow
async def test_database_that_is_not_in_utf_8_is_refused(postgres: Server) -> None:
    postgres.execute("CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")
    assert "createdb --encoding UTF8" in await why_closed(postgres.url.replace("/postgres?", "/latin?"))
    postgres.execute("DROP DATABASE latin")


@pytest.mark.slow
async def test_reader_creates_nothing(postgres: Server) -> None:
    schema = new_schema()
    assert "open it for writing once" in await why_closed(postgres.url, schema, read_only=True)
    assert postgres.execute(f"SELECT 1 FROM pg_namespace WHERE nspname = '{schema}'") == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["postgres", "pooler"])
async def test_hosts_that_open_an_empty_database_together_make_one_ledger(
    kind: str, request: pytest.FixtureRequest
) -> None:
    url, schema = request.getfixturevalue(kind).url, new_schema()
    ledgers = [PostgresLedger(url, schema=schema) for _ in range(8)]
    async with asyncio.TaskGroup() as group:
        for ledger in ledgers:
            group.create_task(ledger.open())
    async with asyncio.TaskGroup() as group:
        claims = [group.create_task(ledger.claim(job())) for ledger in ledgers]
        secrets = [group.create_task(ledger.callback_secret()) for ledger in ledgers]
    assert sorted(claim.result().is_new for claim in claims) == [False] * 7 + [True]
    assert len({secret.result() for secret in secrets}) == 1
    for ledger in ledgers:
        await ledger.aclose()


def end_first_connections(monkeypatch: pytest.MonkeyPatch, server: Server, count: int) -> list[int]:
    """Let the server end the first connections of a ledger once they are made; return a list of all that are made."""
    connect, made = driver.connect, list[int]()

    def connect_and_end(*args: Any, **options: Any) -> driver.Connection:
        db = connect(*args, **options)
        made.append(db.info.backend_pid)
        if len(made) <= count:
            server.execute(f"SELECT pg_terminate_backend({made[-1]}, 5000)")
        return db

    monkeypatch.setattr(driver, "connect", connect_and_end)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("read_only", [False, True])
async def test_connection_that_breaks_during_opening_is_replaced_once(
    postgres: Server, monkeypatch: pytest.MonkeyPatch, *, read_only: bool
) -> None:
    schema = new_schema()
    async with opened(postgres.url, schema) as ledger:
        await ledger.claim(job())
    made = end_first_connections(monkeypatch, postgres, 1)
    async with opened(postgres.url, schema, read_only=read_only) as ledger:
        assert await ledger.find("order-1") == job()
    assert len(made) == 2
    made = end_first_connections(monkeypatch, postgres, 2)
    assert "terminating connection due to administrator command" in await why_closed(postgres.url, schema)
    assert len(made) == 2


TABLES = current_tables()
WIDER = Tables(script=TABLES.script, steps=[Step(script="ALTER TABLE jobs ADD COLUMN note text DEFAULT ''")])


@pytest.mark.slow
async def test_older_tables_are_migrated_while_old_clients_run(
    postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = new_schema()
    async with opened(postgres.url, schema) as old:
        await old.claim(job("a"))
        monkeypatch.setattr("nanobanana_async.ledger.postgres.connection.current_tables", lambda: WIDER)
        async with opened(postgres.url, schema) as new:
            assert await new.find("a") == job("a")
            await old.claim(job("b"))  # a step only adds: old clients go on
        monkeypatch.undo()
        async with opened(postgres.url, schema) as again:
            assert await again.find("b") == job("b")
    assert postgres.execute("SELECT version, min_client FROM meta", schema=schema) == [(2, 1)]
    assert postgres.execute("SELECT note FROM jobs", schema=schema) == [("",), ("",)]


@pytest.mark.slow
async def test_client_that_is_too_old_is_refused(postgres: Server) -> None:
    schema = new_schema()
    async with opened(postgres.url, schema) as ledger:
        await ledger.claim(job())
    postgres.execute(f"UPDATE meta SET min_client = {CLIENT + 1}", schema=schema)
    for read_only in (False, True):
        said = await why_closed(postgres.url, schema, read_only=read_only)
        assert "written by a newer nanobanana_async" in said
        assert "upgrade the library on this host" in said


@pytest.mark.slow
async def test_ledger_can_be_opened_again_and_only_once_at_a_time(postgres: Server) -> None:
    schema = new_schema()
    async with opened(postgres.url, schema) as ledger:
        with pytest.raises(LedgerError, match="give each session a PostgresLedger of its own"):
            await ledger.open()
        await ledger.claim(job())
        await ledger.aclose()
        with pytest.raises(LedgerError, match="is not open"):
            await ledger.claim(job())
        await ledger.open()
        assert await ledger.find("order-1") == job()


@pytest.mark.slow
async def test_dropped_tables_are_an_error_that_says_so(postgres: Server) -> None:
    schema = new_schema()
    async with opened(postgres.url, schema) as ledger:
        postgres.execute(f"DROP SCHEMA {schema} CASCADE")
        with pytest.raises(LedgerError, match="a table is missing: was the schema dropped"):
            await ledger.find("order-1")


@each_row(
    ("said", "advice"),
    [
        ("FATAL: the database system is not yet accepting connections", "starting or stopping"),
        ("FATAL: the database system is in recovery mode", "starting or stopping"),
        ('FATAL: database "spring" does not exist', "there is no such database"),
        ('FATAL: role "fox" does not exist', "does not know this user"),
        ("FATAL: server login has been failing, try again later", "the pooler can't reach the server"),
        ("server closed the connection unexpectedly", "can't be reached"),
    ],
)
def test_each_refusal_of_a_connection_has_its_advice(said: str, advice: str) -> None:
    error = to_ledger_error(psycopg.OperationalError(said), PostgresUrl.parse(URL), connecting=True)
    assert advice in error.message
