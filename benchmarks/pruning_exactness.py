"""Pruned nets against the same nets with the same units made zero.

    python -m benchmarks.pruning_exactness CACHE [--data FOLDER] [--only MODEL ...] [--groups]

For every model of `benchmarks.zoo` half of each group's units, chosen at random, are removed, and in a second copy made
zero. Both must answer alike: with the batch and length that the analysis ran at, with a second batch, with a second
length; and the pruned net in ONNX Runtime as in the engine. *Moved* is how far the answers are from the whole model's.
`--groups` lists every group. Ends with 1 where a model is missed.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnxruntime
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.zoo import Entry, zoo
from workers.engine.graph import Graph
from workers.engine.readers import read_model
from workers.engine.shapes import FREE_SIZES, example_inputs, stats
from workers.engine.structure.groups import Group, find_groups, remove_units, zero_units
from workers.engine.writers.onnx import write_onnx

BOUND = 1e-5
RUNTIME_BOUND = 1e-4
"""Another program adds in another order."""


@dataclass
class Outcome:
    groups: list[Group] = field(default_factory=list)
    before: int = 0
    after: int = 0
    seconds: float = 0.0
    errors: dict[str, float | None] = field(default_factory=dict)
    """Relative error by what it was run with; None where the model itself runs with nothing of the kind."""
    moved: float = 0.0
    """How far the pruned net's answers are from the whole one's: nothing is shown where they stayed."""
    failure: str | None = None

    @property
    def passed(self) -> bool:
        bounds = {"runtime": RUNTIME_BOUND}
        measured = {name: error for name, error in self.errors.items() if error is not None}
        exact = all(error <= bounds.get(name, BOUND) for name, error in measured.items())
        return not self.failure and exact and self.moved > 10 * BOUND


def try_model(entry: Entry) -> Outcome:
    outcome = Outcome()
    try:
        _, graph = read_model(entry.path())
        if entry.structure_only:
            randomize(graph)
        started = time.perf_counter()
        outcome.groups = find_groups(graph)
        keep = half(outcome.groups)
        pruned, zeroed = graph.copy(), graph.copy()
        remove_units(pruned, keep)
        outcome.seconds = time.perf_counter() - started
        zero_units(zeroed, keep)
        outcome.before, outcome.after = stats(graph).parameters, stats(pruned).parameters
        outcome.errors = compare(graph, pruned, zeroed, entry.integers)
        inputs = first_inputs(graph, entry.integers)
        outcome.moved = error_of(answers(pruned, inputs), answers(graph, inputs))
    except Exception as error:  # noqa: BLE001 (any failure is a cell of the table)
        outcome.failure = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
    return outcome


def randomize(graph: Graph) -> None:
    """Weights as if new, for files that hold the same number everywhere."""
    generator = torch.Generator().manual_seed(0)
    for module in graph.module.modules():
        if isinstance(module, nn.BatchNorm2d) or hasattr(module, "running_var"):
            continue
        for parameter in module.parameters(recurse=False):
            fan = math.prod(parameter.shape[1:]) if parameter.dim() > 1 else 100
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * math.sqrt(2 / fan))


def half(groups: Sequence[Group]) -> dict[str, Tensor]:
    """Half of the units of every group that may lose some."""
    generator = torch.Generator().manual_seed(0)
    keep = {}
    for group in groups:
        if group.frozen is None:
            order = torch.randperm(group.units, generator=generator)
            keep[group.name] = torch.zeros(group.units, dtype=torch.bool)
            keep[group.name][order[: math.ceil(group.units / 2)]] = True
    return keep


def compare(graph: Graph, pruned: Graph, zeroed: Graph, integers: dict[str, int]) -> dict[str, float | None]:
    """Relative errors; the model's own sizes first, then another batch, another length, and another program."""
    first = next(free for free in FREE_SIZES if runs(graph, 2, free, integers) is not None)
    other = next((free for free in (*FREE_SIZES, 24) if free != first and is_other(graph, first, free, integers)), None)
    errors: dict[str, float | None] = {"own": 0.0, "batch": None, "length": None}
    for name, batch, free in (("own", 2, first), ("batch", 5, first), ("length", 3, other)):
        inputs = None if free is None else runs(graph, batch, free, integers)
        if inputs is not None:
            errors[name] = error_of(answers(pruned, inputs), answers(zeroed, inputs))
    inputs = first_inputs(graph, integers)
    session = onnxruntime.InferenceSession(write_onnx(pruned), providers=["CPUExecutionProvider"])
    feeds = {spec.name: tensor.numpy() for spec, tensor in zip(graph.inputs, inputs, strict=True)}
    found = [torch.from_numpy(array) for array in session.run(None, feeds)]
    errors["runtime"] = error_of(found, answers(pruned, inputs))
    return errors


def is_other(graph: Graph, first: int, free: int, integers: dict[str, int]) -> bool:
    """Whether the model takes this size, and has a dimension that it changes."""
    one, two = (example_inputs(graph, 2, size) for size in (first, free))
    if all(a.shape == b.shape for a, b in zip(one, two, strict=True)):
        return False
    return runs(graph, 3, free, integers) is not None


def runs(graph: Graph, batch: int, free: int, integers: dict[str, int]) -> tuple[Tensor, ...] | None:
    """Inputs of these sizes, or None where the model does not run with them."""
    generator = torch.Generator().manual_seed(batch * 1000 + free)
    inputs = []
    for spec, tensor in zip(graph.inputs, example_inputs(graph, batch, free), strict=True):
        if tensor.is_floating_point() or tensor.dtype is torch.bool:
            inputs.append(tensor)
        elif "mask" in spec.name:
            inputs.append(torch.ones_like(tensor))
        else:
            high = integers.get(spec.name, 2)
            inputs.append(torch.randint(0, high, tensor.shape, generator=generator).to(tensor.dtype))
    try:
        answers(graph, tuple(inputs))
    except (RuntimeError, ValueError, IndexError):
        return None
    return tuple(inputs)


def answers(graph: Graph, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    with torch.no_grad():
        return list(graph(*inputs))


def first_inputs(graph: Graph, integers: dict[str, int]) -> tuple[Tensor, ...]:
    tried = (runs(graph, 2, free, integers) for free in FREE_SIZES)
    return next(inputs for inputs in tried if inputs is not None)


def error_of(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """The largest relative error of an output."""
    errors = []
    for one, other in zip(found, wanted, strict=True):
        norm = float(other.double().norm())
        apart = float((one.double() - other.double()).norm())
        errors.append(apart / norm if norm else apart)
    return max(errors)


def told(groups: Sequence[Group]) -> str:
    """The main reasons for what is frozen."""
    reasons = Counter(group.frozen for group in groups if group.frozen)
    return "; ".join(f"{count} × {reason}" if count > 1 else str(reason) for reason, count in reasons.most_common(3))


def list_groups(console: Console, name: str, groups: Sequence[Group]) -> None:
    table = Table("group", "kind", "units", "layers", "slots", "frozen", title=name)
    for group in groups:
        layers = ", ".join(group.layers[1:4]) + (", …" if len(group.layers) > 4 else "")
        table.add_row(group.name, group.kind, str(group.units), layers, str(len(group.slots)), group.frozen or "")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--groups", action="store_true")
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 200)
    columns = (
        "groups",
        "prunable",
        "parameters",
        "at 50 %",
        "s",
        "own",
        "batch",
        "length",
        "runtime",
        "moved",
        "frozen",
    )
    table = Table("model", *columns)
    missed = []
    for name, entry in zoo(arguments.cache, arguments.data).items():
        if arguments.only and name not in arguments.only:
            continue
        outcome = try_model(entry)
        if not outcome.passed:
            missed.append(name)
        if arguments.groups:
            list_groups(console, name, outcome.groups)
        prunable = sum(1 for group in outcome.groups if group.frozen is None)
        figures = ["–" if value is None else f"{value:.1e}" for value in outcome.errors.values()]
        table.add_row(
            name,
            str(len(outcome.groups)),
            str(prunable),
            f"{outcome.before:,}",
            f"{outcome.after:,}",
            f"{outcome.seconds:.2f}",
            *(figures or ["failed", "", "", ""]),
            f"{outcome.moved:.2g}",
            outcome.failure or told(outcome.groups),
        )
    console.print(table)
    if missed:
        console.print(f"[red]missed by {', '.join(missed)}")
        sys.exit(1)


if __name__ == "__main__":
    main()
