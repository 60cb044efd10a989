"""Match where a student looks to where its teacher looks.

Attention probabilities of transformers (Jiao et al., 2020, TinyBERT, arXiv:1909.10351), and of convolutional nets the
places at which the end of each resolution answers most (Zagoruyko & Komodakis, 2017, arXiv:1612.03928).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 (the name that all of PyTorch's users know)
from torch import Tensor, fx, nn

from workers.engine.errors import StepError
from workers.engine.features import Inner, paired
from workers.engine.graph import Graph
from workers.engine.ops.convolution import Conv
from workers.engine.ops.fused_attention import attention
from workers.engine.transforms.attention import find_attention
from workers.engine.watching import SHARES, SHARES_PLACE, values_of


def attention_matching(student: Graph, teacher: Graph, inputs: tuple[Tensor, ...]) -> Inner:
    """Of whichever both have. `inputs`: a few examples, from which the shapes are learnt.

    Raises StepError where they have nothing to compare.
    """
    mine, theirs = attentions(student), attentions(teacher)
    if mine and theirs:
        return Probabilities(mine, theirs)
    ends, others = stage_ends(student, inputs), stage_ends(teacher, inputs)
    common = [size for size in ends if size in others]
    if common:
        return Places([ends[size] for size in common], [others[size] for size in common])
    if bool(mine or ends) and bool(theirs or others):
        raise StepError(
            "attention: what the model and its teacher look at has no size in common (one attends and the other "
            "convolves, or at other resolutions): leave attention out"
        )
    raise StepError("attention: the model or its teacher neither attends nor convolves: leave attention out")


def attentions(graph: Graph) -> list[fx.Node]:
    """The probabilities of every attention, in the order of execution; nodes of fused attention stand for theirs."""
    parts = {found.weights for found in find_attention(graph.module.graph)}
    return [node for node in graph.module.graph.nodes if node in parts or (node.target is attention and _free(node))]


def _free(node: fx.Node) -> bool:
    """Whether a fused attention can be asked for its probabilities beside what it is asked for already."""
    asked = [user.args[1] for user in node.users if user.target is operator.getitem]
    return SHARES_PLACE not in asked or bool(node.kwargs.get("qk_matmul_output_mode") == SHARES)


class Probabilities:
    """Head by head where both have as many, else the mean of the heads."""

    def __init__(self, mine: list[fx.Node], theirs: list[fx.Node]) -> None:
        named = {node.name: node for node in theirs}
        if all(node.name in named for node in mine):  # the teacher is what the student was made of
            matched = [named[node.name] for node in mine]
        else:
            matched = [theirs[paired(place, len(mine), len(theirs))] for place in range(len(mine))]
        self.mine, self.theirs = tuple(mine), tuple(matched)

    def loss(self, mine: Sequence[Tensor], theirs: Sequence[Tensor], examples: int) -> Tensor:
        """Mean over the attentions of the squared error, each in units of the teacher's variance."""
        losses = []
        for one, other in zip(mine, theirs, strict=True):
            given, wanted = _heads(one, examples), _heads(other, examples)
            if given.shape[1] != wanted.shape[1]:
                given, wanted = given.mean(1), wanted.mean(1)
            if given.shape != wanted.shape:
                raise StepError(
                    f"attention: the model attends from and to {tuple(given.shape[-2:])} places and its teacher "
                    f"{tuple(wanted.shape[-2:])}: leave attention out"
                )
            losses.append((given - wanted).square().mean() / wanted.var().clamp_min(1e-12))
        return torch.stack(losses).mean()

    def parameters(self) -> list[nn.Parameter]:
        return []

    def told(self) -> str:
        return f"the probabilities of {len(self.mine)} attentions were matched too"


def _heads(shares: Tensor, examples: int) -> Tensor:
    """(examples, heads, from, to); exporters put the heads beside the examples, too."""
    merged = shares.ndim == 3
    return shares.unflatten(0, (examples, -1)) if merged else shares


class Places:
    """Of each example, the mean square over the channels at every place, as a vector of length 1."""

    def __init__(self, mine: list[fx.Node], theirs: list[fx.Node]) -> None:
        self.mine, self.theirs = tuple(mine), tuple(theirs)

    def loss(self, mine: Sequence[Tensor], theirs: Sequence[Tensor], examples: int) -> Tensor:  # noqa: ARG002 (Inner's)
        """Mean over the resolutions of the squared error, each in units of the teacher's variance."""
        losses = []
        for one, other in zip(mine, theirs, strict=True):
            given, wanted = (F.normalize(x.square().mean(1).flatten(1), dim=1) for x in (one, other))
            losses.append((given - wanted).square().mean() / wanted.var().clamp_min(1e-12))
        return torch.stack(losses).mean()

    def parameters(self) -> list[nn.Parameter]:
        return []

    def told(self) -> str:
        return f"where the convolutions of {len(self.mine)} resolutions look was matched too"


def stage_ends(graph: Graph, inputs: tuple[Tensor, ...]) -> dict[tuple[int, ...], fx.Node]:
    """The last results of convolutions, and of what keeps their shape, at every resolution of more than one place."""
    nodes = [node for node in graph.module.graph.nodes if node.op in ("call_module", "call_function")]
    values = values_of(graph.module, [node for node in nodes if not _several(node)], inputs)
    derived = set[fx.Node]()
    ends: dict[tuple[int, ...], fx.Node] = {}
    for node in nodes:
        value = values.get(node)
        if value is None or not value.is_floating_point():
            continue
        convolves = node.op == "call_module" and isinstance(graph.module.get_submodule(str(node.target)), Conv)
        keeps = any(source in derived and values[source].shape == value.shape for source in node.all_input_nodes)
        if convolves or keeps:
            derived.add(node)
            if math.prod(value.shape[2:]) > 1:
                ends[tuple(value.shape[2:])] = node
    return ends


def _several(node: fx.Node) -> bool:
    """Whether it gives a tuple, of which its users take the parts."""
    return any(user.target is operator.getitem for user in node.users)
