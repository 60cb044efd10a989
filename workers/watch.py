"""Follows one run: its events into the database, its output into a bounded log, until it ends or must be ended."""

import contextlib
import logging
import os
import selectors
import signal
import time
from collections.abc import Callable

from sqlalchemy.exc import OperationalError

from workers.events import Inbox
from workers.ownership import Ownership
from workers.pool import Runner

log = logging.getLogger(__name__)

FLUSH_SECONDS = 0.25
LAST_WORDS_SECONDS = 0.2
LOG_BYTES = 64 << 10
PIECE = 1 << 16
CUT = b"[the beginning is cut off]\n"


class Watch:
    """`inbox` and `log` hold what the run has told so far."""

    def __init__(self, runner: Runner, ownership: Ownership, check: Callable[[], None]) -> None:
        self.runner = runner
        self.inbox = Inbox()
        self._ownership = ownership
        self._check = check
        self._log = bytearray()
        self._flushed = time.monotonic()
        self._selector = selectors.DefaultSelector()
        for file in (runner.events, runner.log, runner.exit):
            os.set_blocking(file, False)
            self._selector.register(file, selectors.EVENT_READ)

    def until_end(self) -> None:
        """Returns once the runner has ended and all it said is taken. What `check` raises, or FencedError, ends it."""
        try:
            while self.runner.status is None:
                self._listen(FLUSH_SECONDS)
                self._check()
                self._flush()
        except BaseException:
            self._kill()
            raise
        finally:
            self._drain()
            self._selector.close()
        self._flush(last=True)

    @property
    def log(self) -> str:
        text = self._log.decode(errors="replace").replace("\0", "�")
        if self.inbox.refused:
            text += f"[{self.inbox.refused} lines on the event pipe were no events]\n"
        return text

    def _listen(self, seconds: float) -> bool:
        """True where anything but the end was heard."""
        heard = False
        for key, _ in self._selector.select(seconds):
            if key.fd == self.runner.exit:
                continue
            with contextlib.suppress(BlockingIOError):
                data = os.read(key.fd, PIECE)
                heard = True
                if not data:
                    self._selector.unregister(key.fd)
                elif key.fd == self.runner.events:
                    self.inbox.feed(data)
                else:
                    self._write_log(data)
        return heard

    def _write_log(self, data: bytes) -> None:
        self._log += data
        if len(self._log) > LOG_BYTES + PIECE:
            end = bytes(self._log[-LOG_BYTES:])
            self._log[:] = CUT + end[end.find(b"\n") + 1 :]  # from a whole line on: half a path would not be hidden

    def _flush(self, *, last: bool = False) -> None:
        now = time.monotonic()
        if now - self._flushed < FLUSH_SECONDS and not last:
            return
        self._flushed = now
        news = self.inbox.take(last=last)
        if news is None:
            return
        try:
            self._ownership.report(news)
        except OperationalError as error:
            log.warning("the database does not answer; events wait: %s", error)
            self.inbox.put_back(news)

    def _kill(self) -> None:
        """SIGTERM first: the runner writes into its log where it was."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            self.runner.kill(number)
            end = time.monotonic() + LAST_WORDS_SECONDS
            while self.runner.status is None and (left := end - time.monotonic()) > 0:
                self._listen(left)

    def _drain(self) -> None:
        """What stands in the pipes. A process that escaped may hold them open for ever, so no end is waited for."""
        end = time.monotonic() + 1
        while time.monotonic() < end and self._listen(0):
            pass
