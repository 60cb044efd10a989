"""The whole service on this machine for as long as a benchmark takes, in a folder of its own."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from modelpress.client import Client

START_SECONDS, STOP_SECONDS = 120, 60


@contextmanager
def service(folder: Path) -> Iterator[Client]:
    """PostgreSQL, Redis, the API and a worker, as `modelpress up` starts them; a client for it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    key = secrets.token_urlsafe(24)
    own = {"MODELPRESS_HOME": str(folder / "home"), "MODELPRESS_API_KEY": key, "NO_PROXY": "127.0.0.1"}
    others = {name: value for name, value in os.environ.items() if not name.endswith("_URL")}  # not another service's
    log = folder / "service.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "modelpress", "up", "--port", str(port)],
            env=others | own,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(url, process, log)
        with Client(url, key) as client:
            yield client
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        finally:
            process.kill()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/readyz", timeout=5, trust_env=False).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise SystemExit(f"the service did not start:\n{log.read_text()}")
