"""The service process is small and starts at once: what is heavy belongs to the worker."""

import subprocess
import sys

import httpx

from tests.service.conftest import Server

HEAVY = ("torch", "onnx", "onnxruntime", "numpy", "pyarrow", "workers", "alembic")
MIB = 1 << 20


def test_the_service_imports_nothing_heavy() -> None:
    program = f"""
import sys
from app.main import create_app
from app.settings import Settings
app = create_app(Settings(database_url="postgresql://x/y", redis_url="redis://x", secret="x" * 32))
app.openapi()
import app.queue
print(*(name for name in {HEAVY!r} if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == ""


def test_it_is_small_after_work(server: Server) -> None:
    with server.client() as client:
        model = client.post("/v1/models?filename=a.onnx", content=b"x").json()
        client.get(f"/v1/models/{model['id']}").raise_for_status()
        client.get("/openapi.json").raise_for_status()
        client.get("/metrics").raise_for_status()
        ready: httpx.Response = client.get("/readyz")
        assert ready.status_code == 200
    assert server.memory < 150 * MIB
