"""`modelpress up`, as a user meets it: one process that starts everything, and leaves nothing behind."""

import os
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from app.auth_keys import new_key
from tests.embedded.processes import alive, clean_environment, command, descendants, wait_until

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def launch(home: Path, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "app.embedded", *(arguments or ["--port", "0"])],
        cwd=ROOT,
        env=clean_environment(MODELPRESS_HOME=str(home), PYTHONUNBUFFERED="1", **environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


class Up:
    """A start that has come as far as its last line."""

    def __init__(self, home: Path, **environment: str) -> None:
        self.home = home
        self.process = launch(home, **environment)
        self.said = ""
        for line in self.process.stdout:
            self.said += line
            if "Ctrl-C" in line:
                break
        else:
            raise AssertionError(self.said)
        self.url = re.search(r"http://127\.0\.0\.1:\d+", self.said)[0]

    def get(self, path: str, key: str | None = None) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.get(self.url + path, headers=headers, trust_env=False, timeout=30)

    def ready(self) -> bool:
        try:
            return self.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def processes(self) -> dict[int, str]:
        return {pid: command(pid) for pid in descendants(self.process.pid)}

    def find(self, word: str) -> set[int]:
        return {pid for pid, line in self.processes().items() if word in line}

    def with_runners(self) -> set[int]:
        """All its processes, once the worker has runners that wait for work: something below its zygote."""
        try:
            wait_until(lambda: any(map(descendants, self.find("workers.zygote"))), 90)
        except AssertionError:
            raise AssertionError((self.home / "logs" / "worker.log").read_text()[-2000:]) from None
        return descendants(self.process.pid)


@pytest.fixture
def home(tmp_path) -> Path:
    return tmp_path / "home"


@contextmanager
def started(home: Path, **environment: str) -> Iterator[Up]:
    up = Up(home, **environment)
    try:
        yield up
    finally:
        up.process.kill()
        up.process.wait()


@pytest.fixture(scope="module")
def running(tmp_path_factory) -> Iterator[Up]:
    """For tests that leave it running."""
    with started(tmp_path_factory.mktemp("running") / "home") as up:
        yield up


def test_it_serves_ends_cleanly_and_keeps_everything(home):
    with started(home) as up:
        key = (home / "api-key").read_text()
        assert stat.S_IMODE((home / "api-key").stat().st_mode) == 0o600
        assert key in up.said
        assert up.url + "/docs" in up.said
        assert up.get("/docs").status_code == 200
        assert up.get("/v1/models", key).json()["items"] == []
        assert up.get("/v1/models", new_key()).status_code == 401
        assert up.get("/v1/models").status_code == 401

        everything = up.with_runners()
        up.process.send_signal(signal.SIGINT)
        assert up.process.wait(60) == 0
        assert alive(everything) == set()
        assert not (home / "postgres/data/postmaster.pid").exists()

    with started(home) as again:
        assert key not in again.said
        assert str(home / "api-key") in again.said
        assert again.get("/v1/models", key).status_code == 200
        everything = descendants(again.process.pid)
        again.process.send_signal(signal.SIGTERM)
        assert again.process.wait(60) == 0
        assert alive(everything) == set()


def test_kill_9_leaves_no_process_behind_and_the_next_start_works(home):
    with started(home) as up:
        everything = up.with_runners()
        assert len(everything) > 10
        up.process.kill()
        wait_until(lambda: not alive(everything), 30)
    with started(home) as again:
        assert again.ready()


def test_a_second_start_is_refused_in_a_sentence(running):
    second = launch(running.home)
    said, _ = second.communicate(timeout=60)
    assert second.returncode == 1
    assert said == (
        f"Modelpress did not start: Modelpress already runs in {running.home} (process {running.process.pid})."
        " Stop that one first, or set MODELPRESS_HOME to another folder.\n"
    )
    assert running.ready()


def test_a_part_that_crashes_is_started_again(running):
    for part in ("uvicorn", "workers.reconciler", "celery", "redis-server", "bin/postgres"):
        victims = running.find(part)
        assert victims
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
        wait_until(lambda: running.find(part) - victims)  # noqa: B023 - called here
        wait_until(running.ready)


def test_a_port_that_is_taken_is_said_so(home):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = launch(home, "--port", str(port))
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"cannot listen on 127.0.0.1, port {port}" in said
    assert "--port" in said


def test_external_servers_switch_the_embedded_ones_off(home, database_url, redis_url):
    key = new_key()
    with started(home, DATABASE_URL=database_url, REDIS_URL=redis_url, MODELPRESS_API_KEY=key) as up:
        assert up.get("/v1/models", key).status_code == 200
        assert key not in up.said
        assert not (home / "api-key").exists()
        assert not any("bin/postgres" in line or "redis-server" in line for line in up.processes().values())
        up.process.terminate()
        assert up.process.wait(60) == 0


def test_a_database_that_does_not_answer_is_said_so(home):
    process = launch(home, DATABASE_URL="postgresql://nobody:x@127.0.0.1:1/none", REDIS_URL="redis://127.0.0.1:1")
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Modelpress did not start: the database does not answer" in said
    assert "Traceback" not in said


def test_a_setting_that_is_wrong_is_named(home):
    process = launch(home, MODELPRESS_SECRET="short")
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said == "Modelpress did not start: MODELPRESS_SECRET: String should have at least 32 characters\n"
