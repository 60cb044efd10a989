"""Server-sent events of a job, with what it takes to go on after a broken connection."""

import json

from modelpress.client.errors import ModelpressError
from modelpress.client.flows import TRIES, backoff
from modelpress.client.resources import JobEvent

FINAL = frozenset({"succeeded", "failed", "canceled"})


class EventFeed:
    """Takes the lines of a stream, gives the events. `last` is where the next connection has to go on."""

    def __init__(self, after: int = 0) -> None:
        self.last = after
        self.finished = False
        self._status: str | None = None
        self._failures = 0
        self._fields: dict[str, str] = {}

    def line(self, line: str) -> JobEvent | None:
        """The event that this line ends, if any."""
        if not line:
            return self._end()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data" and "data" in self._fields:
            value = f"{self._fields['data']}\n{value}"
        self._fields[name] = value
        return None

    def ended(self) -> float:
        """The service closed the stream, as after a job's end. Returns the seconds to wait before asking again."""
        self._fields = {}
        self.finished = self._status in FINAL or self._status is None
        return 0 if self.finished else backoff(1)

    def failed(self, error: ModelpressError) -> float:
        """The connection broke, or none could be made. Raises the error where trying again is of no use."""
        self._fields = {}
        self._failures += 1
        if error.code != "unreachable" or self._failures == TRIES:
            raise error
        return backoff(self._failures)

    def _end(self) -> JobEvent | None:
        fields, self._fields = self._fields, {}
        if "data" not in fields:
            return None  # a comment that keeps the connection alive
        event = JobEvent.model_validate(json.loads(fields["data"]))
        if event.id <= self.last:
            return None
        self.last = event.id
        if event.type == "status":
            self._status = event.data["status"]  # a final one is not the end where the job was tried again since
        self._failures = 0
        return event
