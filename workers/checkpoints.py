"""How far the trainings of a job have come, kept in the store for its next attempt, on whatever worker that is.

A runner leaves checkpoints in its run directory, `checkpoints/STEP/FILE.pt`, each renamed into place when it is whole.
They are taken from there as hostile bytes, and given back to nobody but the runner of the job's next attempt.
"""

import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import BinaryIO
from uuid import UUID

from sqlalchemy import Engine, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from app.blobs import unused
from app.db.tables import FINAL, Blob, Job, JobCheckpoint
from app.storage.base import CHUNK, BlobStore, StorageFullError
from app.storage.staging import drop_staged
from workers.ownership import Claim, Ownership
from workers.run_directory import open_file, open_folder

log = logging.getLogger(__name__)

FOLDER = "checkpoints"
STEP, FILE = re.compile(r"\d{1,2}"), re.compile(r"[a-z0-9-]{1,64}\.pt")
MOST_ENTRIES, MOST_FILES = 1000, 200
LEAST_BYTES = 64 << 20
BYTES_PER_INPUT_BYTE = 8
"""All checkpoints of a job may be so large: weights, the best of them, and what the optimizer remembers of each."""
PAUSE = 0.5
"""Seconds before a database that does not answer is asked again."""
SHARE = 0.1
"""Of the time of a run, that taking them may cost at most."""

Mark = tuple[int, int, int]
"""By which a file that was written anew is told from the one before."""


@dataclass
class Checkpoints:
    """Of one attempt. Nothing that goes wrong here ends a run: without them another attempt begins anew."""

    engine: Engine
    store: BlobStore
    ownership: Ownership
    claim: Claim
    run_dir: Path
    interval: float
    """Seconds from one look to the next, at least."""
    largest: int = LEAST_BYTES
    _known: dict[str, Mark] = field(default_factory=dict)
    _next: float = field(default_factory=time.monotonic)

    def bring(self, check: Callable[[], None], input_bytes: int) -> None:
        """Put into the run directory what an earlier attempt has left. `check` is called between pieces."""
        self.largest = LEAST_BYTES + BYTES_PER_INPUT_BYTE * input_bytes
        (self.run_dir / FOLDER).mkdir()
        while self.claim.attempt > 1:
            try:
                self._bring(check)
            except OperationalError as error:
                log.warning("job %s: the database does not answer: %s", self.claim.job_id, error)
                time.sleep(PAUSE)
                check()
            else:
                return

    def _bring(self, check: Callable[[], None]) -> None:
        kept = select(JobCheckpoint.name, JobCheckpoint.blob_id).where(JobCheckpoint.job_id == self.claim.job_id)
        with Session(self.engine) as session:
            rows = session.execute(kept).all()
        for name, blob_id in rows:
            path = self.run_dir / FOLDER / name
            path.parent.mkdir(exist_ok=True)
            try:
                with path.open("wb") as file:
                    for piece in self.store.read(blob_id):
                        file.write(piece)
                        check()
            except (KeyError, OSError) as error:
                log.warning("job %s: the checkpoint %s is not to be had: %s", self.claim.job_id, name, error)
                path.unlink(missing_ok=True)
            else:
                self._known[name] = _mark(path.stat())

    def keep(self, check: Callable[[], None], *, last: bool = False) -> None:
        """Store what is new, where it is time to. Raises what `check` raises, and FencedError."""
        if time.monotonic() < self._next and not last:
            return
        began = time.monotonic()
        try:
            self._keep(check)
        except (OSError, KeyError, StorageFullError, OperationalError) as error:
            log.warning("job %s: checkpoints are not kept: %s", self.claim.job_id, error)
        ended = time.monotonic()
        self._next = ended + max(self.interval, (ended - began) / SHARE)

    def _keep(self, check: Callable[[], None]) -> None:
        total = 0
        for name, file, about in islice(_found(self.run_dir), MOST_FILES):
            total += about.st_size
            if total > self.largest:
                log.warning("job %s: its checkpoints are larger than %d bytes", self.claim.job_id, self.largest)
                return
            if self._known.get(name) != _mark(about):
                self._store(name, file, about.st_size, check)
                self._known[name] = _mark(about)

    def _store(self, name: str, file: BinaryIO, size: int, check: Callable[[], None]) -> None:
        with self.store.writer(self.claim.tenant_id, size) as writer:
            left = size
            while left and (piece := file.read(min(CHUNK, left))):
                writer.write(piece)
                left -= len(piece)
                check()
            writer.finish()
            before = select(JobCheckpoint.blob_id).where(
                JobCheckpoint.job_id == self.claim.job_id, JobCheckpoint.name == name
            )
            with self.ownership.locked() as (session, job):
                outdated = session.scalar(before)
                row = {"job_id": job.id, "name": name, "blob_id": writer.publish(session)}
                session.execute(
                    insert(JobCheckpoint).values(row).on_conflict_do_update(index_elements=["job_id", "name"], set_=row)
                )
                dropped = release(session, [outdated]) if outdated else []
        remove(self.engine, self.store, dropped)


def drop_outlived(engine: Engine, store: BlobStore) -> None:
    """Remove the checkpoints of all jobs that have ended."""
    with Session(engine) as session, session.begin():
        outlived = select(JobCheckpoint).join(Job, Job.id == JobCheckpoint.job_id).where(Job.status.in_(FINAL))
        rows = session.scalars(outlived.with_for_update(of=JobCheckpoint, skip_locked=True)).all()
        for row in rows:
            session.delete(row)
        session.flush()
        dropped = release(session, [row.blob_id for row in rows])
    remove(engine, store, dropped)


def release(session: Session, blob_ids: list[UUID]) -> list[UUID]:
    """What nothing refers to any more is staged again, so that a crash before `remove` leaves it to the sweep.

    The lock waits for whoever is just taking such a blob over.
    """
    session.execute(select(Blob.id).where(Blob.id.in_(blob_ids)).order_by(Blob.id).with_for_update())
    staged = update(Blob).where(Blob.id.in_(blob_ids), unused()).values(state="staged").returning(Blob.id)
    return list(session.scalars(staged.execution_options(synchronize_session=False)))


def remove(engine: Engine, store: BlobStore, blob_ids: list[UUID]) -> None:
    """After the commit."""
    for blob_id in blob_ids:
        drop_staged(engine, blob_id, partial(store.remove, blob_id))


def _mark(about: os.stat_result) -> Mark:
    return about.st_ino, about.st_mtime_ns, about.st_size


def _found(run_dir: Path) -> Iterator[tuple[str, BinaryIO, os.stat_result]]:
    """Name, content and status of each checkpoint; whatever else lies there is passed over."""
    for step in _entries(run_dir, STEP):
        for name in _entries(run_dir, FILE, step):
            try:
                with open_folder(run_dir, FOLDER, step) as folder, open_file(folder, name) as (file, about):
                    yield f"{step}/{name}", file, about
            except OSError:
                continue  # renamed over, or a trap


def _entries(run_dir: Path, pattern: re.Pattern[str], *below: str) -> list[str]:
    try:
        with open_folder(run_dir, FOLDER, *below) as folder, os.scandir(folder) as entries:
            names = [entry.name for entry in islice(entries, MOST_ENTRIES)]
    except OSError:
        return []
    return sorted(name for name in names if pattern.fullmatch(name))
