"""A PostgreSQL server, and pgbouncer before it, in a temporary folder, for as long as tests need them."""

import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from attrs import frozen

from nanobanana_async.ledger.postgres.leases import Lease

USER = "postgres"
PASSWORD = "s3cret/pa:ss"
QUOTED_PASSWORD = "s3cret%2Fpa%3Ass"
SHORT = Lease(beat_s=0.25, silence_s=2.0)
"""A lease for tests that wait for its end."""


def why_no_server() -> str | None:
    """Return why no server can be started here; None if one can."""
    if importlib.util.find_spec("psycopg") is None:
        return "psycopg is not installed (pip install 'nanobanana-async[postgres]')"
    if server_programs() is None:
        return "PostgreSQL is not installed (apt-get install postgresql)"
    import pwd  # not on Windows

    with suppress(KeyError):
        pwd.getpwnam(server_user() or USER)
        return None
    return "PostgreSQL does not run as root, and there is no user postgres" if server_user() else None


def why_no_pooler() -> str | None:
    """Return why pgbouncer can't be started here; None if it can."""
    return None if pooler_program() else "pgbouncer is not installed (apt-get install pgbouncer)"


def server_programs() -> Path | None:
    """Return the folder of the newest server's programs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


def pooler_program() -> str | None:
    """Return the path of pgbouncer."""
    return shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


def server_user() -> str | None:
    """Return the user as which the server runs; None: as this process, which is not root."""
    return USER if os.geteuid() == 0 else None


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Program:
    """A program of the server's user in its own folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its URL."""
        raise NotImplementedError

    def _start(self, *command: str) -> None:
        """Start it, and wait until it answers."""
        import psycopg

        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self.folder, user=server_user(), group=server_user()
            )
        deadline = time.perf_counter() + 20
        while True:
            with suppress(psycopg.OperationalError), psycopg.connect(self.url):
                return
            if self._process.poll() is not None or time.perf_counter() > deadline:
                raise RuntimeError((self.folder / "log").read_text())
            time.sleep(0.02)

    @property
    def is_running(self) -> bool:
        """Whether it was started and not stopped since."""
        return self._process is not None

    def stop(self, number: signal.Signals) -> None:
        """Send a signal and wait for the end."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            process.wait(20)


class Server(Program):
    """A server that trusts connections over its socket and asks for a password over TCP."""

    def __init__(self, folder: Path, programs: Path) -> None:
        super().__init__(folder)
        self._programs = programs
        self._make_data()

    def _make_data(self) -> None:
        password = self.folder / "password"
        password.write_text(PASSWORD)
        _give_away(self.folder, password)
        self._run_program(
            "initdb",
            *("-D", str(self.folder / "data"), "-U", USER, "--pwfile", str(password), "--no-sync", "-E", "UTF8"),
            *("--locale=C", "--auth-local=trust", "--auth-host=scram-sha-256", "--no-instructions"),
            "--wal-segsize=1",  # less to write at the start, and for a standby to copy
        )

    def _run_program(self, name: str, *options: str) -> None:
        command = [str(self._programs / name), *options]
        user = server_user()
        subprocess.run(command, check=True, capture_output=True, cwd=self.folder, user=user, group=user, timeout=60)

    def start(self) -> None:
        """Start it. Without fsync: no test takes the power away."""
        options = {"fsync": "off", "shared_buffers": "16MB", "max_connections": "60", "log_min_messages": "fatal"}
        self._start(
            str(self._programs / "postgres"),
            *("-D", str(self.folder / "data"), "-k", str(self.folder), "-h", "127.0.0.1", "-p", str(self.port)),
            *(f"--{name}={value}" for name, value in options.items()),
        )

    def crash(self) -> None:
        """End it without a shutdown: it recovers from its log at the next start."""
        self.stop(signal.SIGQUIT)

    def execute(self, *statements: str, schema: str | None = None) -> list[tuple[Any, ...]]:
        """Run statements, each in a transaction of its own; return the rows of the last one."""
        import psycopg

        cursor = None
        with psycopg.connect(self.url, autocommit=True) as db:
            if schema is not None:
                db.execute(f"SET search_path TO {schema}".encode())
            for statement in statements:
                cursor = db.execute(statement.encode())
            return cursor.fetchall() if cursor is not None and cursor.description is not None else []

    @property
    def url(self) -> str:
        """Its URL over the socket, where no password is asked for."""
        return f"postgresql://{USER}@/postgres?host={self.folder}&port={self.port}"

    @property
    def tcp_url(self) -> str:
        """Its URL over TCP, with the password."""
        return f"postgresql://{USER}:{QUOTED_PASSWORD}@127.0.0.1:{self.port}/postgres"


class Standby(Server):
    """A server that gets all commits of another one, asynchronously, until it loses its way to it."""

    def __init__(self, folder: Path, programs: Path, primary: Server) -> None:
        self._primary = primary
        super().__init__(folder, programs)

    def _make_data(self) -> None:
        primary = self._primary
        self._run_program(
            "pg_basebackup",
            *("-D", str(self.folder / "data"), "-h", str(primary.folder), "-p", str(primary.port), "-U", USER),
            *("-R", "-X", "stream", "--checkpoint=fast", "--no-sync"),
        )

    def catch_up(self) -> None:
        """Wait until it has all that its primary has committed."""
        ((written,),) = self._primary.execute("SELECT pg_current_wal_insert_lsn()::text")
        until = time.perf_counter() + 20
        while not self.execute(f"SELECT pg_last_wal_replay_lsn() >= '{written}'")[0][0]:
            assert time.perf_counter() < until, "the standby does not follow"
            time.sleep(0.01)

    def lose_primary(self) -> None:
        """Get no more commits: what the primary commits from now on is lost if this server is promoted."""
        self.execute("ALTER SYSTEM SET primary_conninfo = ''", "SELECT pg_reload_conf()")
        until = time.perf_counter() + 20
        while self.execute("SELECT count(*) FROM pg_stat_wal_receiver")[0][0]:
            assert time.perf_counter() < until, "the standby goes on"
            time.sleep(0.01)

    def promote(self) -> None:
        """Let it take writes."""
        self.execute("SELECT pg_promote()")


@frozen
class Pair:
    """A primary and its asynchronous standby."""

    primary: Server
    standby: Standby

    @property
    def url(self) -> str:
        """Their URL, which names both."""
        both = self.primary, self.standby
        folders, ports = (",".join(str(getattr(each, name)) for each in both) for name in ("folder", "port"))
        return f"postgresql://{USER}@/postgres?host={folders}&port={ports}"

    def fail_over(self) -> None:
        """Kill the primary, and promote the standby."""
        self.primary.crash()
        self.standby.promote()


class Pooler(Program):
    """pgbouncer in transaction mode: each transaction may get another connection of the server."""

    def __init__(self, folder: Path, server: Server, program: str) -> None:
        super().__init__(folder)
        users, settings = folder / "users.txt", folder / "pgbouncer.ini"
        users.write_text(f'"{USER}" ""\n')
        settings.write_text(
            f"[databases]\npostgres = host={server.folder} port={server.port} dbname=postgres user={USER}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\n"
            f"auth_type = trust\nauth_file = {users}\npool_mode = transaction\ndefault_pool_size = 4\n"
        )
        _give_away(folder, users, settings)
        self._start(program, str(settings))

    @property
    def url(self) -> str:
        """Its URL."""
        return f"postgresql://{USER}@127.0.0.1:{self.port}/postgres"


@contextmanager
def running_server() -> Iterator[Server]:
    """Run a server until the end of the block."""
    programs = server_programs()
    assert programs is not None
    with _folder() as folder:
        server = Server(folder, programs)
        try:
            server.start()
            yield server
        finally:
            server.crash()  # its data is thrown away: there is nothing to write back


@contextmanager
def running_pair(primary: Server) -> Iterator[Pair]:
    """Run a standby of a server until the end of the block; then the server runs again."""
    programs = server_programs()
    assert programs is not None
    with _folder() as folder:
        standby = Standby(folder, programs, primary)
        try:
            standby.start()
            yield Pair(primary, standby)
        finally:
            standby.crash()
            if not primary.is_running:
                primary.start()


@contextmanager
def running_pooler(server: Server) -> Iterator[Pooler]:
    """Run pgbouncer until the end of the block."""
    program = pooler_program()
    assert program is not None
    with _folder() as folder:
        pooler = Pooler(folder, server, program)
        try:
            yield pooler
        finally:
            pooler.stop(signal.SIGINT)


def new_schema() -> str:
    """Return the name of a schema that no other test uses."""
    return f"test_{secrets.token_hex(6)}"


@contextmanager
def _folder() -> Iterator[Path]:
    # Not pytest's: the server's user could not reach it, and the path of a socket must be short.
    with tempfile.TemporaryDirectory(prefix="nbpg-") as name:
        _give_away(Path(name))
        yield Path(name)


def _give_away(*paths: Path) -> None:
    if os.geteuid() == 0:
        for path in paths:
            shutil.chown(path, USER)
