"""What the machinery around a run costs: from a row and its wake-up to `succeeded`, for a run that does nothing.

    python -m benchmarks.job_overhead

Starts PostgreSQL, Redis and a Celery worker of its own in a temporary folder. Goal: median of 20 at most 0.3 s.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from uuid import UUID

from sqlalchemy import Engine
from sqlalchemy.orm import Session
from uuid6 import uuid7

from app.db.migrate import upgrade
from app.db.session import make_engine
from app.db.tables import Job, Model, ModelFile, Tenant
from app.embedded.postgres import Postgres
from app.embedded.redis import Redis
from app.queue import make_celery, wake
from app.storage import open_store

ROOT = Path(__file__).parents[1]
JOBS = 20
MODEL = bytes(180_000)


def upload(engine: Engine) -> tuple[UUID, UUID]:
    """Tenant and model."""
    with Session(engine) as session:
        tenant = Tenant(name="benchmark")
        session.add(tenant)
        session.commit()
        tenant_id = tenant.id
    with Session(engine) as session, open_store("postgres:", engine).writer(tenant_id) as writer:
        writer.write(MODEL)
        writer.finish()
        model = Model(id=uuid7(), tenant_id=tenant_id, name="zeros", filename="zeros.onnx", status="ready", spec={})
        session.add(model)
        session.flush()
        session.add(ModelFile(model_id=model.id, format="onnx", suffix=".onnx", blob_id=writer.publish(session)))
        session.commit()
        return tenant_id, model.id


def one_job(engine: Engine, redis_url: str, tenant_id: UUID, model_id: UUID) -> float:
    celery = make_celery(redis_url)
    start = time.perf_counter()
    with Session(engine) as session:
        request = {"recipe": [{"step": "half_precision"}]}
        job = Job(id=uuid7(), tenant_id=tenant_id, queue="cpu", model_id=model_id, request=request, deadline_seconds=60)
        session.add(job)
        session.commit()
        job_id = job.id
    wake(celery, "cpu", job_id)
    while True:
        with Session(engine) as session:
            job = session.get_one(Job, job_id)
            if job.status == "succeeded":
                return time.perf_counter() - start
            if job.status == "failed":
                raise RuntimeError(job.error)
        time.sleep(0.002)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Postgres(folder / "postgres") as postgres, Redis(folder / "redis") as redis:
            upgrade(postgres.url)
            environment = {
                "DATABASE_URL": postgres.url,
                "REDIS_URL": redis.url,
                "MODELPRESS_HOME": str(folder / "home"),
                "MODELPRESS_SECRET": "s" * 32,
                "MODELPRESS_POLL_SECONDS": "60",
            }
            worker = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", "benchmarks.idle_worker", "worker"],
                env={**os.environ, **environment},
                cwd=ROOT,
            )
            try:
                engine = make_engine(postgres.url)
                tenant_id, model_id = upload(engine)
                one_job(engine, redis.url, tenant_id, model_id)
                seconds = sorted(one_job(engine, redis.url, tenant_id, model_id) for _ in range(JOBS))
            finally:
                worker.terminate()
                worker.wait()
    print(f"{JOBS} jobs: median {statistics.median(seconds):.3f} s, best {seconds[0]:.3f} s, worst {seconds[-1]:.3f} s")


if __name__ == "__main__":
    main()
