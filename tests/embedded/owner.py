"""A process that owns a PostgreSQL and a Redis, for tests that kill it."""

import sys
import time
from pathlib import Path

from app.embedded.postgres import Postgres
from app.embedded.redis import Redis

folder = Path(sys.argv[1])
with Postgres(folder / "postgres", durable=False), Redis(folder / "redis"):
    sys.stdout.write("running\n")
    sys.stdout.flush()
    time.sleep(600)
