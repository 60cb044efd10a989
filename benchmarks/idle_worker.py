"""The Celery worker of `benchmarks.job_overhead`: the real one, around an engine that does nothing."""

from pathlib import Path

from app.settings import get_settings
from workers.pool import Pool
from workers.wiring import make_worker_app

app = make_worker_app(get_settings(), Pool(2, "benchmarks.idle_engine", (Path(__file__).parents[1],)))
