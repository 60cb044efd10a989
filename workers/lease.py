"""Keeps an attempt's lease alive in a thread of its own, and tells when the attempt must stop and why."""

import logging
import threading
import time
from types import TracebackType
from typing import Self

from sqlalchemy.exc import SQLAlchemyError

from workers.ownership import Ownership
from workers.transitions import FencedError

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.4
"""How often the row is looked at: a cancellation is seen within this time."""


class StopRunError(Exception):
    """The attempt must end now, though nothing is wrong with it."""


class CanceledError(StopRunError):
    """The user asked for it."""


class DeadlineExceededError(StopRunError):
    """The job's time is over."""


class ShutdownError(StopRunError):
    """The worker ends, and the time that it gives its jobs is over."""


class Shutdown:
    """The worker's wish to end: nothing new begins, and what runs has some seconds left."""

    def __init__(self, grace_seconds: float) -> None:
        self._grace_seconds = grace_seconds
        self.begun = threading.Event()
        self._end = float("inf")

    def begin(self) -> None:
        self._end = min(self._end, time.monotonic() + self._grace_seconds)
        self.begun.set()

    def over(self) -> bool:
        return time.monotonic() > self._end


class Lease:
    """`with` it around an attempt, and call `check` often. A silent database costs the job once the lease is out."""

    def __init__(
        self,
        ownership: Ownership,
        lease_seconds: float,
        heartbeat_seconds: float,
        deadline_seconds: float,
        shutdown: Shutdown,
    ) -> None:
        self._ownership = ownership
        self._lease_seconds = lease_seconds
        self._heartbeat_seconds = heartbeat_seconds
        self._deadline = time.monotonic() + deadline_seconds
        self._shutdown = shutdown
        self._renewed = time.monotonic()
        self._fenced = False
        self._canceling = False
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"lease {ownership.job_id}", daemon=True)

    def check(self) -> None:
        """Raises FencedError or a StopRunError where there is a reason to stop."""
        self.check_ours()
        if self._canceling:
            raise CanceledError
        if time.monotonic() > self._deadline:
            raise DeadlineExceededError
        if self._shutdown.over():
            raise ShutdownError

    def check_ours(self) -> None:
        """Raises FencedError where the job is another attempt's by now."""
        if self.lost():
            raise FencedError(f"job {self._ownership.job_id}, attempt {self._ownership.attempt}")

    def lost(self) -> bool:
        return self._fenced or time.monotonic() - self._renewed > self._lease_seconds

    def _keep(self) -> None:
        while not self._done.wait(min(LOOK_SECONDS, self._heartbeat_seconds)):
            now = time.monotonic()
            try:
                if now - self._renewed >= self._heartbeat_seconds:
                    status = self._ownership.renew(self._lease_seconds)
                    self._renewed = now
                else:
                    status = self._ownership.status()
                self._canceling = status == "canceling"
            except FencedError:
                self._fenced = True
                return
            except SQLAlchemyError as error:
                log.warning("the database does not answer; the lease is not renewed: %s", error)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
