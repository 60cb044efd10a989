"""The command by which a container says whether its worker lives."""

import os
import socket
import subprocess
import sys

import redis

from app.presence import announce


def health(redis_url: str) -> int:
    ours = {"REDIS_URL": redis_url, "DATABASE_URL": "postgresql://nowhere/none", "MODELPRESS_SECRET": "s" * 32}
    command = [sys.executable, "-m", "workers.health"]
    done = subprocess.run(command, env=os.environ | ours, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    return done.returncode


def test_healthy_while_a_worker_of_this_host_is_announced(redis_url: str) -> None:
    assert health(redis_url) == 1
    with redis.Redis.from_url(redis_url) as client:
        announce(client, "elsewhere:1", ["cpu"], [], 60)
        assert health(redis_url) == 1
        announce(client, f"{socket.gethostname()}:1", ["cpu"], [], 60)
    assert health(redis_url) == 0


def test_not_healthy_where_redis_is_down() -> None:
    assert health("redis://127.0.0.1:1/0") == 1
