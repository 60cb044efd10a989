"""Celery around a worker: a message means "look", and a signal to the process means "give your jobs back in time"."""

import logging
from typing import Any

from celery import Celery, Task, signals
from kombu.entity import Exchange, Queue

from app.queue import LOOK, make_celery
from app.settings import Settings
from workers import kernel, machine
from workers.pool import Pool
from workers.worker import INGEST, Worker, slots

log = logging.getLogger(__name__)


def make_worker_app(settings: Settings, pool: Pool | None = None) -> Celery:
    """`pool` takes the place of the one that runs the engine."""
    app = make_celery(settings.redis_url)
    queues = ["cpu", *(["gpu"] if machine.has_gpu() else []), INGEST]
    app.conf.update(
        task_queues=[_queue(name) for name in queues],
        worker_pool="threads",
        # As many threads as there are slots, so that a message stays in Redis for another worker while all are taken.
        worker_concurrency=slots(settings) + settings.ingest_slots,
        worker_disable_prefetch=True,
    )
    held: list[Worker] = []

    def look(task: Task, job_id: str) -> None:  # noqa: ARG001  # the message is a hint: the best waiting job is taken
        held[0].look(task.request.delivery_info["routing_key"])

    def set_up_logging(loglevel: int, **_: Any) -> None:
        logging.basicConfig(level=loglevel, format="%(asctime)s %(levelname)s %(name)s: %(message)s")

    def start(**_: Any) -> None:
        kernel.hide_memory()  # a runner may be of our user, and where the kernel has no Landlock it could look
        try:
            worker = Worker(settings, list(app.amqp.queues.consume_from), pool)
            worker.start()
        except Exception:
            log.exception("the worker cannot start")
            raise SystemExit(1) from None  # Celery goes on after any other exception, with a worker that does nothing
        held.append(worker)

    def stop(**_: Any) -> None:
        for worker in held:
            worker.stop()

    def close(**_: Any) -> None:
        for worker in held:
            worker.close()

    app.task(look, name=LOOK, bind=True)
    signals.setup_logging.connect(set_up_logging, weak=False)
    signals.worker_init.connect(start, weak=False)
    signals.worker_shutting_down.connect(stop, weak=False)
    signals.worker_shutdown.connect(close, weak=False)
    return app


def _queue(name: str) -> Queue:
    """As `send_task(queue=name)` makes it on the other side."""
    return Queue(name, Exchange(name), routing_key=name)  # type: ignore[no-untyped-call]  # kombu has only some types
