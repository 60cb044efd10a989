"""A runner's event lines, thinned: a training loop may tell thousands of figures, the database keeps some hundreds."""

from collections import Counter, deque
from typing import Any

from pydantic import TypeAdapter, ValidationError

from modelpress.run import Event, MetricEvent, ProgressEvent, WarningEvent
from workers.outcomes import plain
from workers.ownership import News

LONGEST_LINE = 1 << 14
MOST_STEPS = 64
MOST_WARNINGS = 100
LONGEST_WARNING = 1000
FULL_DETAIL = 200
"""So many metrics of a step are kept one by one, then as many again from every second, from every fourth, and so on."""

_event: TypeAdapter[Event] = TypeAdapter(Event)


class Inbox:
    """Takes bytes as they come, gives events as they are worth keeping. `refused` counts lines that are no events."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.refused = 0
        self._line = bytearray()
        self._progress: dict[str, Any] | None = None
        self._events: deque[tuple[str, dict[str, Any]]] = deque(maxlen=10 * FULL_DETAIL)
        self._seen: Counter[str] = Counter()
        self._skipped: dict[str, MetricEvent] = {}

    def feed(self, data: bytes) -> None:
        self._line += data
        *lines, rest = self._line.split(b"\n")
        self._line = rest
        for line in lines:
            self._take_line(line)
        if len(self._line) > LONGEST_LINE:
            self._line.clear()
            self.refused += 1

    def take(self, *, last: bool = False) -> News | None:
        """What is new since the last call. With `last`, the final metric of every step is among it."""
        if last:
            for event in self._skipped.values():
                self._keep(event)
            self._skipped.clear()
        if self._progress is None and not self._events:
            return None
        news = News(self._progress, tuple(self._events))
        self._progress = None
        self._events.clear()
        return news

    def put_back(self, news: News) -> None:
        """It could not be written; a later progress outdates an earlier one."""
        self._progress = self._progress or news.progress
        self._events.extendleft(reversed(news.events))

    def _take_line(self, line: bytes | bytearray) -> None:
        if len(line) > LONGEST_LINE:
            self.refused += 1
            return
        try:
            event = _event.validate_json(bytes(line))
        except ValidationError:
            self.refused += 1
            return
        if isinstance(event, ProgressEvent):
            self._progress = plain(event.progress)
        elif isinstance(event, WarningEvent):
            self._warn(event)
        elif event.step not in self._seen and len(self._seen) == MOST_STEPS:
            self.refused += 1
        elif self._worth_keeping(event.step):
            self._skipped.pop(event.step, None)
            self._keep(event)
        else:
            self._skipped[event.step] = event

    def _warn(self, event: WarningEvent) -> None:
        message = event.message[:LONGEST_WARNING].replace("\0", "�")
        if message not in self.warnings and len(self.warnings) < MOST_WARNINGS:
            self.warnings.append(message)
            self._events.append(("warning", {"message": message}))

    def _worth_keeping(self, step: str) -> bool:
        self._seen[step] += 1
        stride, number = 1, self._seen[step]
        while number > FULL_DETAIL * stride:
            number -= FULL_DETAIL * stride
            stride *= 2
        return number % stride == 0

    def _keep(self, event: MetricEvent) -> None:
        kept = plain(event)
        self._events.append(("metric", {"step": kept["step"], "values": kept["values"]}))
