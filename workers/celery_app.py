"""`celery -A workers.celery_app worker`: wake-ups in, jobs worked off. This process never imports torch."""

from app.settings import get_settings
from workers.wiring import make_worker_app

app = make_worker_app(get_settings())
