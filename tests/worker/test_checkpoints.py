"""What a training has reached outlives the attempt, for the same job alone, and goes with its end."""

import os
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import Engine, func, select, update
from sqlalchemy.orm import Session

from app.db.tables import Blob, BlobChunk, Job, JobCheckpoint
from app.settings import Settings
from app.storage.base import BlobStore
from tests.worker.conftest import stand_in_pool
from tests.worker.jobs import Desk, program, until
from workers.checkpoints import Checkpoints, drop_outlived
from workers.ownership import Claim, Ownership, claim
from workers.transitions import FencedError
from workers.worker import Worker


def never() -> None:
    """There is no reason to stop."""


def epochs(desk: Desk, job_id: UUID, **columns: int) -> list[int]:
    return [event["values"]["epoch"] for event in desk.events(job_id, "metric", **columns)]


def kept(engine: Engine) -> dict[str, UUID]:
    with Session(engine) as session:
        return {row.name: row.blob_id for row in session.scalars(select(JobCheckpoint))}


@pytest.mark.usefixtures("worker")
def test_a_training_whose_runner_crashes_goes_on_where_it_was(desk: Desk) -> None:
    job_id = desk.compress(program("train", epochs=5, crashes_at=3))
    assert desk.wait(job_id, "succeeded").attempt == 2
    assert epochs(desk, job_id) == [1, 2, 3, 4, 5]
    assert len(desk.results(job_id)) == 1


def test_another_worker_goes_on_from_what_was_kept_while_it_ran(desk: Desk, settings: Settings) -> None:
    """Nothing on the first one's disk is needed."""
    workers = [settings.model_copy(update={"scratch": settings.home / name}) for name in ("one", "two")]
    first = Worker(workers[0], ("cpu",), stand_in_pool())
    first.start()
    job_id = desk.compress(program("train", epochs=8, seconds=0.3))
    until(lambda: bool(kept(desk.engine)))
    first.close()
    assert desk.job(job_id).status == "queued"
    second = Worker(workers[1], ("cpu",), stand_in_pool())
    second.start()
    try:
        desk.wait(job_id, "succeeded")
    finally:
        second.close()
    anew = epochs(desk, job_id, attempt=2)
    assert 1 < anew[0] <= 8
    assert anew == list(range(int(anew[0]), 9))


@pytest.mark.parametrize("store", ["postgres", "file"], indirect=True)
def test_checkpoints_go_when_their_job_has_ended(desk: Desk, attempt: Checkpoints, store: BlobStore) -> None:
    write(attempt.run_dir, "0/training-0.pt", b"first")
    attempt.keep(never, last=True)
    write(attempt.run_dir, "0/training-0.pt", b"second")
    attempt.keep(never, last=True)
    blob_id = kept(desk.engine)["0/training-0.pt"]
    assert b"".join(store.read(blob_id)) == b"second"
    assert count(desk.engine, Blob) == 2  # the model, and the newest checkpoint
    drop_outlived(desk.engine, store)
    assert kept(desk.engine), "the job has not ended"
    attempt.ownership.cancel()
    drop_outlived(desk.engine, store)
    assert not kept(desk.engine)
    assert count(desk.engine, Blob) == 1
    assert count(desk.engine, BlobChunk) == (1 if store.backend == "postgres" else 0)
    with pytest.raises(KeyError):
        list(store.read(blob_id))


def test_a_checkpoint_with_the_content_of_an_upload_leaves_the_upload(
    desk: Desk, attempt: Checkpoints, store: BlobStore
) -> None:
    upload = program("hang")  # what the job of `attempt` was given
    write(attempt.run_dir, "0/training-0.pt", upload)
    attempt.keep(never, last=True)
    attempt.ownership.cancel()
    drop_outlived(desk.engine, store)
    with Session(desk.engine) as session:
        (blob,) = session.scalars(select(Blob))
    assert b"".join(store.read(blob.id)) == upload


def test_a_fenced_attempt_keeps_nothing(desk: Desk, attempt: Checkpoints) -> None:
    write(attempt.run_dir, "0/training-0.pt", b"late")
    with Session(desk.engine) as session:
        session.execute(update(Job).values(attempt=Job.attempt + 1))
        session.commit()
    with pytest.raises(FencedError):
        attempt.keep(never, last=True)
    assert not kept(desk.engine)
    assert count(desk.engine, Blob) == 1


def test_only_plain_files_of_the_expected_names_are_taken(attempt: Checkpoints, tmp_path: Path) -> None:
    secret = tmp_path / "secret.pt"
    secret.write_bytes(b"of somebody else")
    write(attempt.run_dir, "0/training-0.pt", b"mine")
    folder = attempt.run_dir / "checkpoints"
    (folder / "0/link.pt").symlink_to(secret)
    (folder / "0/hard.pt").hardlink_to(secret)
    os.mkfifo(folder / "0/pipe.pt")
    (folder / "0/folder.pt").mkdir()
    write(attempt.run_dir, "0/half.new", b"not whole")
    write(attempt.run_dir, "0/UPPER.pt", b"another name")
    (folder / "1").symlink_to(tmp_path)
    write(attempt.run_dir, "elsewhere/training-0.pt", b"no step")
    attempt.keep(never, last=True)
    assert list(kept(attempt.engine)) == ["0/training-0.pt"]


def test_a_folder_that_became_a_link_is_not_followed(attempt: Checkpoints, tmp_path: Path) -> None:
    write(tmp_path, "0/training-0.pt", b"of somebody else")
    (attempt.run_dir / "checkpoints").rmdir()
    (attempt.run_dir / "checkpoints").symlink_to(tmp_path / "checkpoints")
    attempt.keep(never, last=True)
    assert not kept(attempt.engine)


def test_what_is_too_large_is_left_and_costs_nothing_but_its_use(attempt: Checkpoints) -> None:
    write(attempt.run_dir, "0/training-0.pt", b"x" * 10)
    write(attempt.run_dir, "1/training-0.pt", b"")
    os.truncate(attempt.run_dir / "checkpoints/1/training-0.pt", attempt.largest)
    attempt.keep(never, last=True)
    assert list(kept(attempt.engine)) == ["0/training-0.pt"]


def test_an_attempt_is_given_the_checkpoints_of_its_own_job_alone(
    desk: Desk, attempt: Checkpoints, tmp_path: Path
) -> None:
    write(attempt.run_dir, "0/training-0.pt", b"of the first job")
    attempt.keep(never, last=True)
    other = next_attempt(attempt_at(desk, tmp_path / "other"), tmp_path / "another")
    assert list((other.run_dir / "checkpoints").iterdir()) == []
    again = next_attempt(attempt, tmp_path / "again")
    assert (again.run_dir / "checkpoints/0/training-0.pt").read_bytes() == b"of the first job"


def test_what_was_brought_is_not_stored_again(attempt: Checkpoints, tmp_path: Path) -> None:
    write(attempt.run_dir, "0/training-0.pt", b"of the first attempt")
    attempt.keep(never, last=True)
    before = kept(attempt.engine)
    again = next_attempt(attempt, tmp_path / "again")

    def refuse() -> None:
        pytest.fail("nothing is new")

    again.keep(refuse, last=True)
    assert kept(attempt.engine) == before


@pytest.fixture
def attempt(desk: Desk, tmp_path: Path) -> Checkpoints:
    return attempt_at(desk, tmp_path / "run")


def attempt_at(desk: Desk, run_dir: Path) -> Checkpoints:
    """A job's first attempt, whose runner has not begun."""
    desk.compress(program("hang"))
    claimed: Claim | None = claim(desk.engine, ("cpu",), "worker", 60)
    assert claimed is not None
    run_dir.mkdir()
    ownership = Ownership(desk.engine, claimed.job_id, claimed.attempt)
    checkpoints = Checkpoints(desk.engine, desk.store, ownership, claimed, run_dir, interval=0)
    checkpoints.bring(never, 0)
    return checkpoints


def next_attempt(before: Checkpoints, run_dir: Path) -> Checkpoints:
    """Of the same job, with what the one before has left."""
    run_dir.mkdir()
    again = replace(before.claim, attempt=before.claim.attempt + 1)
    checkpoints = Checkpoints(before.engine, before.store, before.ownership, again, run_dir, before.interval)
    checkpoints.bring(never, 0)
    return checkpoints


def write(run_dir: Path, name: str, content: bytes) -> None:
    path = run_dir / "checkpoints" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name("temporary")
    temporary.write_bytes(content)
    temporary.rename(path)


def count(engine: Engine, table: type[Blob | BlobChunk]) -> int:
    with Session(engine) as session:
        return session.scalars(select(func.count()).select_from(table)).one()
