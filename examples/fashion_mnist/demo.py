"""The whole service on this machine, for one job: started in a temporary folder, used over HTTP, ended, removed.

`make demo` runs this. Its last lines are what the command line prints: the before/after table.
"""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

HERE = Path(__file__).parent
START_SECONDS = 120
STOP_SECONDS = 60
PROGRAM = [sys.executable, "-m", "modelpress"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_ready(url: str, service: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            if httpx.get(f"{url}/readyz", timeout=5, trust_env=False).is_success:
                return
        except httpx.TransportError:
            pass
        if service.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"the service did not start:\n{log.read_text()}")
        time.sleep(0.1)


def main() -> int:
    port = free_port()
    folder = Path(tempfile.mkdtemp(prefix="modelpress-demo-"))
    url = f"http://127.0.0.1:{port}"
    environment = {
        **os.environ,
        "MODELPRESS_HOME": str(folder / "home"),
        "MODELPRESS_URL": url,
        "MODELPRESS_API_KEY": secrets.token_urlsafe(24),
        "NO_PROXY": "127.0.0.1",
    }
    for name in ("DATABASE_URL", "REDIS_URL", "STORAGE_URL"):
        environment.pop(name, None)  # the demonstration leaves your own service alone
    log = folder / "service.log"
    print(f"starting PostgreSQL, Redis, the API and a worker (log: {log})", flush=True)
    with log.open("wb") as output:
        service = subprocess.Popen(
            [*PROGRAM, "up", "--port", str(port)], env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        wait_ready(url, service, log)
        print(f"compressing {HERE / 'resnet.onnx'} at {url}", flush=True)
        data = [word for use in ("train", "calibrate", "evaluate") for word in ("--data", f"{use}={HERE / use}.npz")]
        files = [*data, "--recipe", str(HERE / "recipe.json"), "--output", str(HERE / "resnet.compressed.onnx")]
        command = [*PROGRAM, "compress", str(HERE / "resnet.onnx"), *files]
        code = subprocess.run(command, env=environment, check=False).returncode
        if code:
            print(log.read_text(), file=sys.stderr)
        return code
    finally:
        service.terminate()
        try:
            service.wait(STOP_SECONDS)
        finally:
            service.kill()
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
