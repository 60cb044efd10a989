"""Units that are removed together, wherever they appear in the graph's tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from workers.engine.graph import Graph

Kind = Literal["channels", "neurons", "heads", "hidden units"]


@dataclass(frozen=True)
class Slot:
    """Where a group's units lie in one stored tensor: unit u is `positions[u]` along `axis`."""

    owner: str
    """Path of the leaf, or empty for a parameter or buffer of the graph itself."""
    name: str
    """Parameter or buffer of the owner."""
    axis: int
    positions: Tensor
    """(units, elements of one unit along the axis), int64."""
    role: Literal["makes", "takes", "scales"]
    """Rows of a weight that make the units, columns of a later weight that take them, or a vector along them."""


@dataclass(frozen=True)
class Group:
    name: str
    """The user's name of the first layer that makes the units; with a number where it makes several groups."""
    layers: tuple[str, ...]
    """Names of all layers with a slot that makes units, as the user's selections see them."""
    kind: Kind
    units: int
    slots: tuple[Slot, ...]
    together: int = 1
    """Units are numbered in blocks of `units // together`; each block keeps equally many (grouped convolutions)."""
    frozen: str | None = None
    """Why none of its units may go; None where they may."""


def find_groups(graph: Graph) -> list[Group]:
    """Every group of the graph, frozen ones too, in the order of execution."""


def remove_units(graph: Graph, keep: Mapping[str, Tensor]) -> None:
    """Keep only these units, in place. `keep`: group name → bool (units,). Masks and other constraints shrink along.

    Raises StepError where a group is frozen, unknown, would keep nothing, or would keep unequally many a block.
    """


def zero_units(graph: Graph, keep: Mapping[str, Tensor]) -> None:
    """The same units made zero where they are made instead of removed: what a pruned graph must equal."""
