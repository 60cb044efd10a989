"""Examples on the training device, in batches that the model takes: many exported models know one batch size only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.engine.context import Batches, Context
from workers.engine.errors import StepError
from workers.engine.graph import Graph

PROBED = 256


@dataclass(frozen=True)
class Batch:
    """`indices` (on the CPU) say which of the dataset's examples these are."""

    inputs: tuple[Tensor, ...]
    labels: Tensor | None
    indices: Tensor


def training_data(context: Context) -> Batches:
    if context.train is None or context.train.examples < 2:
        raise StepError("training needs data: send a dataset of at least two examples as data.train")
    return context.train


def labels_of(batch: Batch) -> Tensor:
    if batch.labels is None:
        raise StepError("labels are needed and the training data has none: name them in task.label")
    return batch.labels


def batch_of(data: Batches, indices: Tensor, device: torch.device) -> Batch:
    inputs, labels = data.take(indices)
    return Batch(tuple(x.to(device) for x in inputs), None if labels is None else labels.to(device), indices)


def probe_of(data: Batches, context: Context, size: int | None) -> Batch:
    """Some examples by which the kind and the spread of a model's answers are judged."""
    order = torch.randperm(data.examples, generator=torch.Generator().manual_seed(context.seed))[:PROBED]
    return batch_of(data, order if size is None else whole(order, size), context.device)


def whole(indices: Tensor, size: int) -> Tensor:
    """As many of these as make full batches."""
    return indices[: len(indices) // size * size]


def fixed_batch(graph: Graph, context: Context) -> int | None:
    """As `batch_taken`, of what is trained. Raises StepError where the data does not fill one batch."""
    data = training_data(context)
    size = batch_taken(graph, data, context.device)
    if size and data.examples < size:
        raise StepError(f"the model takes {size} examples at a time and the training data has {data.examples}")
    return size


def batch_taken(graph: Graph, data: Batches, device: torch.device) -> int | None:
    """The one batch size that the graph, on this device, takes, or None where it takes any.

    A size that stands in the signature may be there by habit only, so a batch of twice the size is tried.
    """
    size = next((s.shape[0] for s in graph.inputs if s.shape and isinstance(s.shape[0], int) and s.shape[0] > 0), None)
    if size is None:
        return None
    if data.examples >= 2 * size and _takes(graph, batch_of(data, torch.arange(2 * size), device), size):
        return None
    return size


@torch.no_grad()
def answers(ask: Callable[..., tuple[Tensor, ...]], inputs: tuple[Tensor, ...], size: int | None) -> list[Tensor]:
    """Every output for these inputs, asked for `size` examples at a time, the last ones filled up.

    An output that has no row an example is stacked: one for each time.
    """
    examples = max((len(x) for x in inputs if x.ndim), default=1)
    if size is None or size == examples:
        return list(ask(*inputs))
    pieces = [torch.arange(start, start + size).clamp_max(examples - 1) for start in range(0, examples, size)]
    asked = [ask(*(x[rows.to(x.device)] if x.ndim else x for x in inputs)) for rows in pieces]
    return [
        torch.cat(parts)[:examples] if parts[0].shape[:1] == (size,) else torch.stack(parts)
        for parts in zip(*asked, strict=True)
    ]


def _takes(graph: Graph, batch: Batch, size: int) -> bool:
    one_by_one = answers(graph, batch.inputs, size)
    try:
        with torch.no_grad():
            together = graph(*batch.inputs)
    except RuntimeError:
        return False
    return all(
        a.shape == b.shape and torch.allclose(a.float(), b.float(), rtol=1e-3, atol=1e-4)
        for a, b in zip(together, one_by_one, strict=True)
    )


@contextmanager
def on_device(graph: Graph, device: torch.device) -> Iterator[None]:
    """The graph on this device, and back where it was."""
    home = next((parameter.device for parameter in graph.module.parameters()), device)
    graph.module.to(device)
    try:
        yield
    finally:
        graph.module.to(home)
