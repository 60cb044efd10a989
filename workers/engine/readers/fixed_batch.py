"""Opens the batch of a program that was exported with a fixed one, where it answers every example by itself.

Exporters write the batch that they saw into reshapes and expansions. Here these numbers are replaced by what they stand
for, and the result has to prove itself: run on one example more, it must answer every window of the old batch as the
program did. Where it does not, the program stays as it is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from workers.engine.graph import Graph
from workers.engine.ops.elementwise import divide, maximum, minimum
from workers.engine.ops.indexing import slice_
from workers.engine.ops.shapes import concat, expand, reshape, shape
from workers.engine.shapes import example_inputs, propagate_inputs

TOLERANCE = {"rtol": 1e-3, "atol": 1e-4}
JOINING = {torch.add, torch.sub, torch.mul, torch.where, divide, maximum, minimum, concat}
"""Functions that take a row for every example from each of their inputs."""


def open_batch(graph: Graph) -> Graph:
    """A graph with an open batch, or this one, with a note that says which."""
    batch = _fixed(graph)
    if batch is None:
        return graph
    opened = graph.copy()
    opened.inputs = tuple(spec.model_copy(update={"shape": ("batch", *spec.shape[1:])}) for spec in graph.inputs)
    try:
        propagate_inputs(graph, _examples(graph, batch))
        _generalize(opened, [node.meta.get("shape") for node in graph.module.graph.nodes], batch)
        outputs = _proved(graph, opened, batch)
    except Exception as error:  # noqa: BLE001  # whatever a graph that was made for one batch can make torch raise
        reason = str(error).partition("\n")[0][:120]
        graph.notes.append(
            f"the program was exported with a batch of {batch}, and runs with no other ({reason}): export it with "
            "dynamic_shapes to open the batch"
        )
        return graph
    opened.outputs = tuple(
        spec.model_copy(update={"shape": ("batch", *spec.shape[1:])}) if moves else spec
        for spec, moves in zip(graph.outputs, outputs, strict=True)
    )
    opened.notes.append(
        f"the program was exported with a batch of {batch}; it answers every example by itself, so the batch was opened"
    )
    return opened


def _fixed(graph: Graph) -> int | None:
    """The batch that all inputs have; None where it is open, or they differ."""
    firsts = {spec.shape[0] if spec.shape else None for spec in graph.inputs}
    (first, *others) = firsts or {None}
    return first if isinstance(first, int) and not others else None


def _examples(graph: Graph, batch: int) -> tuple[Tensor, ...]:
    """Integers are 0 or 1, which every table has."""
    generator = torch.Generator().manual_seed(1)
    return tuple(
        tensor
        if tensor.is_floating_point()
        else torch.randint(0, 2, tensor.shape, generator=generator).to(tensor.dtype)
        for tensor in example_inputs(graph, batch, 16)
    )


def _generalize(graph: Graph, shapes: list[Any], batch: int) -> None:
    """`shapes` of all nodes in order, at the fixed batch."""
    whole = graph.module.graph
    nodes = list(whole.nodes)
    sizes = dict(zip(nodes, shapes, strict=True))
    source = next(node for node in nodes if node.op == "placeholder")
    varying: set[fx.Node] = set()
    for node in nodes:
        if node.op == "placeholder" or varying.intersection(node.all_input_nodes):
            varying.add(node)
        if node.target is reshape and node in varying and isinstance(node.args[1], tuple):
            node.args = (node.args[0], _reshaped(node.args[1], sizes[node.args[0]], batch))
        elif node.target is expand and isinstance(node.args[1], tuple):
            wanted = node.args[1]
            if (
                wanted
                and wanted[0] == batch
                and len(wanted) == len(sizes[node])
                and sizes[node.args[0]][:1] != (batch,)
            ):
                with whole.inserting_before(node):
                    node.args = (node.args[0], _with_batch(whole, source, wanted[1:]))
                varying.add(node)
        elif node in varying and node.target in JOINING:
            _spread_constants(whole, node, sizes, varying, source, batch)
    graph.module.recompile()


def _reshaped(wanted: tuple[Any, ...], before: tuple[int, ...], batch: int) -> tuple[Any, ...]:
    """Sizes that count the batch, taken over from the input (0) or inferred from it (-1)."""
    made = list(wanted)
    for place, size in enumerate(made):
        if size > 0 and size % batch == 0 and (batch > 1 or place == 0):
            if place < len(before) and before[place] == size:
                made[place] = 0
            elif -1 not in made:
                made[place] = -1
    return tuple(made)


def _spread_constants(
    whole: fx.Graph, node: fx.Node, sizes: dict[fx.Node, Any], varying: set[fx.Node], source: fx.Node, batch: int
) -> None:
    """Of stored rows that are there once for every example, all equal, one stays and is spread over the batch."""
    rank = len(sizes[node])
    for constant in node.all_input_nodes:
        if constant in varying or len(sizes[constant]) != rank or sizes[constant][0] != batch:
            continue
        with whole.inserting_before(node):
            row = whole.call_function(slice_, (constant, (0,), (1,), (0,), (1,)))
            if node.target is concat:
                row = whole.call_function(expand, (row, _with_batch(whole, source, sizes[constant][1:])))
        node.replace_input_with(constant, row)


def _with_batch(whole: fx.Graph, source: fx.Node, others: tuple[int, ...]) -> fx.Node:
    """The batch of an input and then these sizes, as a vector."""
    first = whole.call_function(shape, (source,), {"start": 0, "end": 1})
    if not others:
        return first
    stored = whole.owning_module
    name = f"after_batch_{len(whole.nodes)}"
    stored.register_buffer(name, torch.tensor(others))  # type: ignore[union-attr]  # a graph being read has its module
    rest = whole.get_attr(name)
    return whole.call_function(concat, (first, rest), {"axis": 0})


@torch.no_grad()
def _proved(graph: Graph, opened: Graph, batch: int) -> list[bool]:
    """Which outputs have a row for every example. Raises ValueError where the two do not answer alike."""
    inputs = _examples(opened, batch + 1)
    found = opened(*inputs)
    windows = [graph(*(tensor[start : start + batch] for tensor in inputs)) for start in range(2)]
    moves = []
    for place, value in enumerate(found):
        first, second = (window[place] for window in windows)
        moving = value.dim() > 0 and value.shape[0] == batch + 1
        for start, wanted in enumerate((first, second)):
            part = value[start : start + batch] if moving else value
            if part.shape != wanted.shape or not torch.allclose(part, wanted, **TOLERANCE, equal_nan=True):
                raise ValueError(f"the output {graph.outputs[place].name!r} depends on the size of the batch")
        moves.append(moving)
    return moves
