"""The embedded PostgreSQL and Redis: real ones that end with us, however we end."""

import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import psycopg
import pytest
import redis

from app.embedded.child import Child, StartError
from app.embedded.postgres import Postgres
from app.embedded.redis import Redis
from tests.embedded.processes import alive, command, descendants, wait_until


def test_postgres_keeps_what_it_was_given(tmp_path):
    with Postgres(tmp_path, durable=False) as server, psycopg.connect(server.url) as connection:
        assert connection.info.server_version >= 180000
        assert connection.info.encoding == "utf-8"
        assert connection.execute("SHOW TimeZone").fetchone() == ("UTC",)
        connection.execute("CREATE TABLE kept AS SELECT 'häß' AS word")
    with Postgres(tmp_path, durable=False) as server, psycopg.connect(server.url) as connection:
        assert connection.execute("SELECT word FROM kept").fetchone() == ("häß",)


def test_a_durable_postgres_syncs(tmp_path):
    with Postgres(tmp_path) as server, psycopg.connect(server.url) as connection:
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            assert connection.execute(f"SHOW {setting}").fetchone() == ("on",)


def test_postgres_asks_for_its_password(tmp_path, servers):
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(servers["postgres"].replace("modelpress:", "modelpress:not", 1))
    with pytest.raises(psycopg.OperationalError, match="no password"):
        psycopg.connect(
            servers["postgres"].partition("://")[0] + "://modelpress@" + servers["postgres"].partition("@")[2]
        )


def test_redis_drops_nothing_keeps_nothing_and_asks_for_its_password(tmp_path):
    with Redis(tmp_path) as server, redis.Redis.from_url(server.url) as client:
        assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
        assert client.config_get("save")["save"] == ""
        with pytest.raises(redis.AuthenticationError), redis.Redis(port=server.port, retry=None) as stranger:
            stranger.ping()
        client.set("x", 1)
    with Redis(tmp_path) as server, redis.Redis.from_url(server.url) as client:
        assert client.keys() == []


def test_passwords_are_for_our_own_user_only_and_not_in_the_process_list(tmp_path):
    with Postgres(tmp_path / "postgres", durable=False) as postgres, Redis(tmp_path / "redis") as server:
        for folder in ("postgres", "redis"):
            password = tmp_path / folder / "password"
            assert stat.S_IMODE(password.stat().st_mode) == 0o600
            assert len(password.read_text()) >= 32
        listed = " ".join(command(pid) for pid in descendants(os.getpid()))
        assert str(tmp_path) in listed
        assert postgres.password not in listed
        assert server.password not in listed


@pytest.fixture
def owner(tmp_path):
    """A process of its own that owns both servers."""
    argv = [sys.executable, "-m", "tests.embedded.owner", tmp_path]
    root = Path(__file__).parents[2]
    with subprocess.Popen(argv, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "running\n"
        yield process
        process.kill()


def test_both_end_after_a_kill_9_of_their_owner_and_start_again(owner, tmp_path):
    children = descendants(owner.pid)
    assert len(children) >= 5
    owner.send_signal(signal.SIGKILL)
    with Postgres(tmp_path / "postgres", durable=False) as server:  # at once, while the former is still closing
        psycopg.connect(server.url).close()
    wait_until(lambda: not alive(children))


def test_no_server_runs_as_root(owner):
    users = {pid: Path(f"/proc/{pid}").stat().st_uid for pid in descendants(owner.pid)}
    assert users
    assert 0 not in users.values()


def test_a_start_that_fails_says_why(tmp_path):
    with Postgres(tmp_path, durable=False):
        pass
    (tmp_path / "data" / "PG_VERSION").write_text("9")
    with pytest.raises(StartError, match="version 9"), Postgres(tmp_path, durable=False):
        pass


def test_a_start_that_was_interrupted_is_made_good(tmp_path):
    (tmp_path / "data.new").mkdir()
    (tmp_path / "data.new" / "half").touch()
    with Postgres(tmp_path, durable=False) as server:
        psycopg.connect(server.url).close()


def test_a_child_belongs_to_the_main_thread(tmp_path):
    """The kernel would end it together with another thread that started it."""
    refused = []

    def start():
        try:
            Child(["true"], tmp_path / "log")
        except RuntimeError as error:
            refused.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert len(refused) == 1


def test_a_child_that_does_not_listen_is_killed(tmp_path):
    child = Child(["sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 0.1; done"], tmp_path / "log")
    wait_until(lambda: "deaf" in child.output())
    child.stop(0.2)
    assert child.process.returncode == -signal.SIGKILL


def test_the_output_of_a_child_is_its_own(tmp_path):
    log = tmp_path / "log"
    log.write_text("of another run\n")
    child = Child(["sh", "-c", "cat; exit 3"], log, stdin=b"hello\n")
    assert child.process.wait(10) == 3
    assert child.output() == "hello"
    assert log.read_text() == "of another run\nhello\n"
