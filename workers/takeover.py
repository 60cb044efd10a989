"""Jobs whose worker is gone go on to another."""

import logging

from sqlalchemy import ColumnElement, Engine, select
from sqlalchemy.orm import Session

from app.db.tables import Job
from workers import diagnosis, transitions
from workers.transitions import OWNED

log = logging.getLogger(__name__)


def take_back(engine: Engine, lost: ColumnElement[bool]) -> int:
    """Queued again, failed where attempts ran out, canceled where that was asked for. Returns how many there were."""
    query = select(Job).where(Job.status.in_(OWNED), lost).limit(1).with_for_update(skip_locked=True)
    taken = 0
    while True:
        with Session(engine, autoflush=False) as session, session.begin():
            job = session.scalar(query)
            if job is None:
                return taken
            transitions.requeue(session, job, diagnosis.worker_lost(), 0)
            log.warning("job %s: attempt %d is lost with its worker", job.id, job.attempt)
            taken += 1
