"""Wake-ups for workers. The row is the job: a message only says "look", so it may be lost, doubled or late."""

import logging
from uuid import UUID

from celery import Celery
from kombu.exceptions import KombuError
from redis.exceptions import RedisError

LOOK = "modelpress.look"
QUEUES = ("cpu", "gpu", "ingest")

log = logging.getLogger(__name__)


def make_celery(redis_url: str) -> Celery:
    """Early acknowledgement, JSON only, no result backend; a Redis that is down fails a call within seconds."""
    celery = Celery("modelpress", broker=redis_url)
    celery.conf.update(
        accept_content=["json"],
        task_serializer="json",
        task_ignore_result=True,
        task_default_queue="cpu",
        task_acks_late=False,
        task_publish_retry=False,
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_enable_remote_control=False,
        broker_connection_retry_on_startup=True,
        broker_transport_options={"socket_connect_timeout": 2, "socket_timeout": 10, "max_retries": 0},
    )
    return celery


def wake(celery: Celery, queue: str, job_id: UUID) -> None:
    """Blocks for a moment. A failing Redis is no error of the caller: the reconciler sends again."""
    try:
        celery.send_task(LOOK, args=[str(job_id)], queue=queue, ignore_result=True, retry=False)
    except (KombuError, RedisError, OSError):
        log.warning("no wake-up for job %s on %s: the reconciler will send one", job_id, queue, exc_info=True)
