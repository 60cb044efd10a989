"""PostgreSQL and Redis for one test session, shared by its workers.

The first test that needs them starts this file as a process of its own; it ends with the session's owner, however
that ends. `template` is a database that the migrations have built, to be cloned.
"""

import fcntl
import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path

import psycopg

from app.db.migrate import upgrade
from app.embedded.postgres import Postgres
from app.embedded.redis import Redis

TEMPLATE = "template"
START_SECONDS = 90


def shared(folder: Path, owner: int) -> dict[str, str]:
    """The servers' addresses; starts them where no other worker of this session has yet."""
    with (folder / "servers.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ready = folder / "servers.json"
        if not ready.exists():
            log = folder / "servers.log"
            with log.open("wb") as output:
                holder = subprocess.Popen(
                    [sys.executable, "-m", "tests.servers", str(folder), str(owner)],
                    cwd=Path(__file__).parent.parent,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
            deadline = time.monotonic() + START_SECONDS
            while not ready.exists():
                if holder.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the servers for tests did not start:\n{log.read_text()}")
                time.sleep(0.02)
        addresses: dict[str, str] = json.loads(ready.read_text())
        return addresses


def hold(folder: Path, owner: int) -> None:
    end_of_owner = os.pidfd_open(owner)
    with Postgres(folder / "postgres", durable=False) as postgres, Redis(folder / "redis") as redis:
        with psycopg.connect(postgres.url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {TEMPLATE}")
        upgrade(postgres.url_of(TEMPLATE))
        fresh = folder / "servers.new"
        fresh.write_text(json.dumps({"postgres": postgres.url, "redis": redis.url}))
        fresh.rename(folder / "servers.json")
        select.select([end_of_owner], [], [])


if __name__ == "__main__":
    hold(Path(sys.argv[1]), int(sys.argv[2]))
