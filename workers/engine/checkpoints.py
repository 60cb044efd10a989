"""How far a training has come, in a file that the next attempt at the job goes on from."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modelpress.steps import Step
from workers.engine.context import Context

WRITING_SHARE = 0.05
"""Of the time: where epochs are short, some end without a checkpoint."""


class Checkpoints:
    """The file of one training. Without a folder in the context nothing is kept and nothing found."""

    def __init__(self, context: Context, step: Step, module: nn.Module, examples: int) -> None:
        number = next(context.trainings)
        self._path = None if context.checkpoints is None else context.checkpoints / f"training-{number}.pt"
        self._context = context
        self._key = _key(context, step, module, examples)
        self._next = 0.0

    def read(self) -> dict[str, Any] | None:
        """What was last kept of this training; None where there is nothing, or it belongs to another or is damaged."""
        if self._path is None or not self._path.exists():
            return None
        try:
            kept = torch.load(self._path, map_location="cpu", weights_only=True)
        except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError):
            kept = None
        if isinstance(kept, dict) and kept.pop("key", None) == self._key:
            return kept
        self._context.notes.append("what an earlier attempt had left of this training does not fit it: it began anew")
        return None

    @property
    def due(self) -> bool:
        return self._path is not None and time.monotonic() >= self._next

    def write(self, state: dict[str, Any]) -> None:
        """Whole or not at all. A checkpoint that finds no room is told of, and costs nothing but its use."""
        if self._path is None:
            return
        began = time.monotonic()
        try:
            _replace(self._path, state | {"key": self._key})
        except OSError as error:
            self._path.with_suffix(".new").unlink(missing_ok=True)
            self._context.warnings.append(f"no checkpoint could be kept, so that another attempt begins anew: {error}")
            self._path = None
            return
        ended = time.monotonic()
        self._next = ended + (ended - began) / WRITING_SHARE


def _replace(path: Path, state: dict[str, Any]) -> None:
    temporary = path.with_suffix(".new")
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


def _key(context: Context, step: Step, module: nn.Module, examples: int) -> str:
    """Equal for trainings of which one can go on where the other stopped."""
    shapes = [(name, str(value.dtype), *value.shape) for name, value in module.state_dict().items()]
    told = [step.model_dump(mode="json"), context.seed, examples, shapes]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()
