"""One attempt at one job: inputs out, a runner started and watched, results in, and the row moved on."""

import logging
import re
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

from app.settings import Settings
from app.storage.base import CHUNK, BlobStore, BlobWriter, StorageFullError
from modelpress.run import Limits, ResultFile, RunError, RunResult
from workers import diagnosis
from workers.checkpoints import Checkpoints
from workers.inputs import CannotStartError, Inputs
from workers.lease import CanceledError, DeadlineExceededError, Lease, Shutdown, ShutdownError
from workers.outcomes import finish_compression, finish_inspection
from workers.ownership import Claim, Ownership
from workers.pool import Pool
from workers.run_directory import InvalidResultError, Scratch, open_output, read_result
from workers.server_paths import without_server_paths
from workers.transitions import FencedError
from workers.watch import Watch

log = logging.getLogger(__name__)

LONGEST_MESSAGE = 4000
FILE_BYTES = 4 << 30
FILE_BYTES_PER_INPUT_BYTE = 8


@dataclass(frozen=True)
class Supervisor:
    settings: Settings
    engine: Engine
    store: BlobStore
    pool: Pool
    scratch: Scratch
    shutdown: Shutdown
    threads: int
    """Of one run."""
    memory_bytes: int
    """Of one run."""

    def attempt(self, claim: Claim) -> None:
        """Returns when the attempt is over, whatever came of it."""
        ownership = Ownership(self.engine, claim.job_id, claim.attempt)
        lease = Lease(
            ownership,
            self.settings.lease_seconds,
            self.settings.heartbeat_seconds,
            claim.deadline_seconds,
            self.shutdown,
        )
        log.info("job %s: attempt %d of %s begins", claim.job_id, claim.attempt, claim.kind)
        try:
            with self.scratch.run_directory(claim.job_id.hex) as run_dir, lease:
                checkpoints = Checkpoints(
                    self.engine, self.store, ownership, claim, run_dir, self.settings.heartbeat_seconds
                )
                self._attempt(Attempt(claim, ownership, lease, run_dir, checkpoints))
        except FencedError:
            log.warning("job %s: attempt %d is not ours any more; nothing is written", claim.job_id, claim.attempt)
        except OSError:
            ownership.give_back()  # our scratch folder cannot be written, which is no fault of the job
            raise
        except OperationalError:
            log.exception("job %s: the database is away; the job is taken back when its lease ends", claim.job_id)

    def _attempt(self, attempt: "Attempt") -> None:
        try:
            self._run(attempt)
        except CannotStartError as reason:
            self._fail(attempt, reason.error)
        except CanceledError:
            attempt.insist(lambda: attempt.ownership.cancel(attempt.log))
        except DeadlineExceededError:
            self._fail(attempt, diagnosis.deadline_exceeded(attempt.claim.deadline_seconds))
        except ShutdownError:
            attempt.keep_checkpoints()
            attempt.insist(attempt.ownership.give_back)
        except (FencedError, OperationalError):
            raise
        except Exception:
            log.exception("job %s: attempt %d failed beside the run", attempt.claim.job_id, attempt.claim.attempt)
            self._fail(attempt, diagnosis.worker_failed())

    def _run(self, attempt: "Attempt") -> None:
        inputs = Inputs(self.engine, self.store, attempt.claim, attempt.run_dir, attempt.lease.check)
        spec = inputs.spec(Limits(threads=self.threads, memory_bytes=self.memory_bytes), self.pool.sandbox)
        (attempt.run_dir / "job.json").write_text(spec.model_dump_json())
        if attempt.claim.kind == "compress":
            attempt.checkpoints.bring(attempt.lease.check, inputs.bytes)
        kills = diagnosis.kernel_memory_kills()
        file_bytes = FILE_BYTES + FILE_BYTES_PER_INPUT_BYTE * inputs.bytes
        with self.pool.run(attempt.run_dir, self.memory_bytes, file_bytes) as runner:
            watch = Watch(runner, attempt.ownership, attempt.check)
            try:
                watch.until_end()
            finally:
                attempt.log = without_server_paths(watch.log, attempt.run_dir)
        status = runner.status or 0
        if status != 0:
            kernel_killed = diagnosis.kernel_memory_kills() > kills
            error = diagnosis.crash(status, runner.peak_bytes, self.memory_bytes, kernel_killed=kernel_killed)
            self._fail(attempt, error)
            return
        try:
            self._conclude(attempt, read_result(attempt.run_dir))
        except InvalidResultError as reason:
            message = f"The runner ended well, but its result cannot be used: {reason}."
            self._fail(attempt, RunError(code="invalid_result", message=message))
        except StorageFullError:
            message = "The storage has no room for the result. Free some space there; the job is tried again."
            self._fail(attempt, RunError(code="storage_full", message=message, retryable=True))

    def _conclude(self, attempt: "Attempt", result: RunResult) -> None:
        claim, ownership = attempt.claim, attempt.ownership
        if result.error is not None:
            message = without_server_paths(result.error.message[:LONGEST_MESSAGE], attempt.run_dir)
            self._fail(attempt, result.error.model_copy(update={"message": message}))
        elif claim.kind != "compress":
            spec = result.model if claim.kind == "inspect_model" else result.dataset
            if spec is None:
                raise InvalidResultError("it does not say what was read")
            attempt.insist(lambda: finish_inspection(ownership, spec, attempt.log))
        else:
            if result.model is None or result.report is None or not result.files:
                raise InvalidResultError("model, report or files are missing")
            if len({file.format for file in result.files}) < len(result.files):
                raise InvalidResultError("a format is there twice")
            model, report = result.model, result.report
            with ExitStack() as stack:
                files = [(file, self._stored(attempt, file, stack)) for file in result.files]
                attempt.insist(lambda: finish_compression(ownership, model, report, files, attempt.log))
        log.info("job %s: attempt %d is over", claim.job_id, claim.attempt)

    def _stored(self, attempt: "Attempt", result: ResultFile, stack: ExitStack) -> BlobWriter:
        path = PurePosixPath(result.path)
        if path.parent != PurePosixPath("out"):
            raise InvalidResultError(f"{result.path!r} does not lie in out/")
        if not re.fullmatch(r"\.[a-z0-9]{1,15}", path.suffix):
            raise InvalidResultError(f"{result.path!r} has no suffix that a file may be sent with")
        with open_output(attempt.run_dir, path.name) as (file, size):
            writer = stack.enter_context(self.store.writer(attempt.claim.tenant_id, size))
            while piece := file.read(CHUNK):
                writer.write(piece)
                attempt.lease.check()
        writer.finish()
        return writer

    def _fail(self, attempt: "Attempt", error: RunError) -> None:
        log.info("job %s: attempt %d failed: %s", attempt.claim.job_id, attempt.claim.attempt, error.code)
        ownership = attempt.ownership
        if error.retryable:
            attempt.keep_checkpoints()
            attempt.insist(lambda: ownership.retry(error, self.settings.retry_seconds, attempt.log))
        else:
            attempt.insist(lambda: ownership.fail(error, attempt.log))


@dataclass
class Attempt:
    claim: Claim
    ownership: Ownership
    lease: Lease
    run_dir: Path
    checkpoints: Checkpoints
    log: str = ""

    def check(self) -> None:
        """Raises what the lease raises; keeps checkpoints on the way."""
        self.lease.check()
        self.checkpoints.keep(self.lease.check)

    def keep_checkpoints(self) -> None:
        """The last ones, for the next attempt, though there is a reason to stop."""
        self.checkpoints.keep(self.lease.check_ours, last=True)

    def insist(self, write: Callable[[], object]) -> None:
        """The attempt's last write, tried until the lease is out: a database that restarts must not cost the work."""
        while True:
            try:
                write()
            except OperationalError as error:
                if self.lease.lost():
                    raise
                log.warning("job %s: the database does not answer: %s", self.claim.job_id, error)
                time.sleep(0.5)
            else:
                return
