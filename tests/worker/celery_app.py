"""What `workers.celery_app` is, with the stand-in for the engine."""

from app.settings import get_settings
from tests.worker.conftest import stand_in_pool
from workers.wiring import make_worker_app

app = make_worker_app(get_settings(), stand_in_pool())
