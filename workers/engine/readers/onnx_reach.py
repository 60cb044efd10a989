"""What of a file the op table does not reach, and why: told shortly, in the notes of the model."""

from __future__ import annotations

from collections.abc import Iterable

from onnx import NodeProto

from workers.engine.onnx_names import op_name

UNKNOWN = "not in the op table"
CONTROL_FLOW = "what runs is decided while the model runs"
TOGETHER = "other things than tensors of numbers pass between them"
WHOLE = "some of it runs only with all the rest"
MOST_TOLD = 8
"""Kinds of ops, and reasons, that are told one by one."""


class OutOfReach:
    def __init__(self) -> None:
        self._kinds: dict[str, tuple[int, str]] = {}

    def add(self, nodes: Iterable[NodeProto], why: str) -> None:
        """The first reason stands for all nodes of its kind."""
        for node in nodes:
            count, reason = self._kinds.get(op_name(node), (0, why))
            self._kinds[op_name(node)] = (count + 1, reason)

    def told(self, specialised: int) -> list[str]:
        """Notes. `specialised`: how many `If` have given way to one of their branches."""
        notes = []
        if specialised:
            notes.append(f"{specialised} × If has a condition that never changes: the branch that runs is kept")
        by_reason: dict[str, list[str]] = {}
        for op, (count, why) in self._kinds.items():
            by_reason.setdefault(why, []).append(f"{count} × {op}")
        told = _list([f"{_list(ops)} ({why})" for why, ops in by_reason.items()])
        if told:
            notes.append(
                f"out of reach, and kept as they are: {told}. Their weights can be stored smaller, but nothing is "
                "trained through them or cut out of them, and their work is not counted"
            )
        return notes


def _list(parts: list[str]) -> str:
    more = [f"{len(parts) - MOST_TOLD} others"] if len(parts) > MOST_TOLD else []
    return ", ".join([*parts[:MOST_TOLD], *more])
