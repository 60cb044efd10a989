"""The whole service as real processes: API, worker and reconciler, as `modelpress up` starts them."""

import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url

from app.auth_keys import new_key
from modelpress import Client
from tests.servers import TEMPLATE

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "fashion_mnist"
START_SECONDS = 120
STOP_SECONDS = 60


@dataclass(frozen=True)
class Service:
    url: str
    api_key: str
    home: Path

    @property
    def env(self) -> dict[str, str]:
        """For programs that shall use it."""
        ours = {"MODELPRESS_URL": self.url, "MODELPRESS_API_KEY": self.api_key, "MODELPRESS_HOME": str(self.home)}
        return os.environ | ours

    def client(self) -> Client:
        return Client(self.url, self.api_key)

    def run(self, *argv: str, cwd: Path | None = None, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        """The command line, as a user runs it."""
        command = [sys.executable, "-m", "modelpress", *argv]
        return subprocess.run(
            command, env=self.env, cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False
        )


@pytest.fixture(scope="session")
def service(servers: dict[str, str], worker_id: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """On a database of its own, so that tests beside it may empty theirs."""
    name = f"service_{worker_id}"
    with psycopg.connect(servers["postgres"], autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
    number = 40 if worker_id == "master" else 41 + int(worker_id.removeprefix("gw"))
    home = tmp_path_factory.mktemp("service")
    key = new_key()
    env = os.environ | {
        "DATABASE_URL": make_url(servers["postgres"]).set(database=name).render_as_string(hide_password=False),
        "REDIS_URL": servers["redis"].removesuffix("/0") + f"/{number}",
        "MODELPRESS_HOME": str(home),
        "MODELPRESS_API_KEY": key,
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "modelpress", "up", "--port", "0"]
    process = subprocess.Popen(command, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        yield Service(address(process), key, home)
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        finally:
            process.kill()


def address(process: subprocess.Popen[bytes]) -> str:
    """As it says itself, once it is ready."""
    assert process.stdout is not None
    said, deadline = b"", time.monotonic() + START_SECONDS
    while b"Ctrl-C" not in said:
        ready, _, _ = select.select([process.stdout], [], [], max(0, deadline - time.monotonic()))
        more = os.read(process.stdout.fileno(), 4096) if ready else b""
        if not more:
            raise RuntimeError(f"the service did not start:\n{said.decode()}")
        said += more
    found = re.search(rb"http://[\d.:]+", said)
    assert found is not None
    return found[0].decode()
