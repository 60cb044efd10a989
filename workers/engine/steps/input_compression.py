"""Let callers send less: bytes for floats, fewer bytes a whole number, smaller images."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from modelpress.models import TensorSpec
from modelpress.steps.input_compression import InputCompression, PerChannel
from workers.engine.batching import batch_of
from workers.engine.context import Context
from workers.engine.data import SyntheticBatches
from workers.engine.dtypes import ONNX_OF_WORD, TORCH_OF_WORD
from workers.engine.errors import StepError
from workers.engine.graph import Graph
from workers.engine.interface.attaching import attach_feed
from workers.engine.interface.exposing import inputs_sent
from workers.engine.interface.feeds import LAST_BYTE, Bytes, Narrow
from workers.engine.interface.resolution import shrink, why_no_image
from workers.engine.interface.sizes import bytes_of
from workers.engine.ops.casting import cast
from workers.engine.ops.indexing import Embedding
from workers.engine.ops.shapes import flatten, reshape, squeeze, transpose, unsqueeze
from workers.engine.quantization.nodes import module_of
from workers.engine.shapes import stats
from workers.engine.steps import applies
from workers.engine.transforms.affine_inputs import insert_affine

BYTE = 1 / LAST_BYTE
WORDS = ("uint8", "int16", "int32")
"""For whole numbers, the smallest first."""
PROBED = 256
SAME = (cast, flatten, reshape, squeeze, transpose, unsqueeze)
"""What leaves the numbers of a value as they are."""
CUT_OFF = 0.01
"""The share of values that bytes cut off from which it is warned of."""


@applies(InputCompression)
def input_compression(step: InputCompression, graph: Graph, context: Context) -> Graph:
    chosen = _chosen(step, graph)
    _warn_of_idle(step, [spec for _, spec in chosen], context)
    before = bytes_of(inputs_sent(graph))
    left: dict[str, list[str]] = {}
    done = False
    for index, spec in chosen:
        reasons = left[spec.name] = []
        if TORCH_OF_WORD[spec.dtype].is_floating_point:
            small = step.resolution is not None and _smaller_image(step.resolution, graph, index, context, reasons)
            done |= _as_bytes(step, graph, index, context, reasons) or small
        else:
            done |= _narrower(step, graph, index, context, reasons)
    told = [f"{name} is left alone: {reason}" for name, reasons in left.items() for reason in reasons]
    if not done:
        raise StepError(f"no input can be sent in fewer bytes: {'; '.join(told)}")
    after = bytes_of(inputs_sent(graph))
    context.notes += [*told, f"an example takes {after:,} bytes to send; it took {before:,} (open dimensions count 1)"]
    context.figures |= {"bytes_sent_before": before, "bytes_sent_after": after}
    return graph


def _chosen(step: InputCompression, graph: Graph) -> list[tuple[int, TensorSpec]]:
    names = [spec.name for spec in graph.inputs]
    for name in step.inputs:
        if name not in names:
            raise StepError(f"there is no input {name!r}; the model has {', '.join(names)}")
    return [(index, spec) for index, spec in enumerate(graph.inputs) if not step.inputs or spec.name in step.inputs]


def _warn_of_idle(step: InputCompression, specs: list[TensorSpec], context: Context) -> None:
    floats = [TORCH_OF_WORD[spec.dtype].is_floating_point for spec in specs]
    said = {"resolution": step.resolution, "scale": step.scale, "mean": step.mean or None}
    if not any(floats):
        idle = [name for name, value in said.items() if value is not None]
        context.warnings.extend(f"{name} had no effect: no input holds real numbers" for name in idle)
    if all(floats) and step.integers not in ("auto", "keep"):
        context.warnings.append("integers had no effect: no input holds whole numbers")


def _smaller_image(share: float, graph: Graph, index: int, context: Context, reasons: list[str]) -> bool:
    reason = why_no_image(graph, index)
    if reason is None:
        before = stats(graph).macs
        how = shrink(graph, index, share)
        if how is not None:
            after = stats(graph).macs
            context.notes.append(f"{graph.inputs[index].name}: images of {share:g} of height and width; {how}")
            if before and after:
                context.figures |= {"macs_before": before, "macs_after": after}
            return True
        reason = "height and width are open, and with smaller ones the model's answers change their shape"
    reasons.append(f"resolution: {reason}")
    return False


def _as_bytes(step: InputCompression, graph: Graph, index: int, context: Context, reasons: list[str]) -> bool:
    spec = graph.inputs[index]
    said = step.scale is not None or step.mean != 0 or step.std != 1
    if step.floats == "keep" or (step.floats == "auto" and not said):
        if step.floats == "auto" and step.resolution is None:
            reasons.append("say what bytes would mean: scale, mean and std of the preprocessing, or floats: uint8")
        return False
    scale = step.scale or BYTE
    mean, std = (_along_channels(numbers, spec) for numbers in (step.mean, step.std))
    if bool((std == 0).any()):
        raise StepError("std holds a 0, by which nothing can be divided")
    factor, offset = (scale / std).float(), (-mean / std).float()
    feed = Bytes(1 / factor, -offset / factor, _formula(scale, step.mean, step.std))
    _check_bytes(feed, spec, index, context)
    call = attach_feed(graph, index, feed)
    value = _cast_back(graph, call, spec.dtype)
    insert_affine(graph, value, factor, offset)
    context.notes.append(f"{spec.name}: bytes are taken; the model itself makes {feed.formula} of them")
    return True


def _along_channels(numbers: PerChannel, spec: TensorSpec) -> Tensor:
    """With the input's dimensions, where there is one a channel: along dimension 1, else the last, else another."""
    values = torch.tensor(numbers, dtype=torch.float64)
    rank = len(spec.shape)
    if values.numel() == 1:
        return values.reshape([1] * rank)
    axes = [axis for axis in (1, rank - 1, *range(2, rank - 1)) if spec.shape[axis : axis + 1] == (values.numel(),)]
    if not axes:
        raise StepError(
            f"mean and std hold {values.numel()} numbers, and no dimension of {spec.name!r} {list(spec.shape)} "
            "is as long: give one number, or one a channel"
        )
    return values.reshape([-1 if axis == axes[0] else 1 for axis in range(rank)])


def _formula(scale: float, mean: PerChannel, std: PerChannel) -> str:
    text = f"byte × {scale:.9g}"
    if mean != 0:
        text += f" - {_said(mean)}"
    return text if std == 1 else f"({text}) / {_said(std)}"


def _said(numbers: PerChannel) -> str:
    return f"{numbers:.9g}" if isinstance(numbers, float) else f"[{', '.join(f'{number:.9g}' for number in numbers)}]"


def _check_bytes(feed: Bytes, spec: TensorSpec, index: int, context: Context) -> None:
    """Warn where real inputs are not what bytes can say."""
    data = context.calibrate
    if data is None or isinstance(data, SyntheticBatches):
        return
    x = batch_of(data, torch.arange(min(PROBED, data.examples)), torch.device("cpu")).inputs[index]
    exact = x * feed.factor + feed.offset
    outside = float(((exact < -0.5) | (exact > LAST_BYTE + 0.5)).float().mean())
    off = float((exact - exact.round()).abs().mean())
    context.figures["rounded_by"] = off
    if outside > CUT_OFF:
        context.warnings.append(
            f"{outside:.1%} of the values of {spec.name!r} in the data lie outside of what bytes can say with this "
            "scale, mean and std: they are cut off; are these the numbers of your preprocessing?"
        )
    elif off > 0.1:
        context.warnings.append(
            f"the values of {spec.name!r} in the data are no bytes with this scale, mean and std (off by "
            f"{off:.2g} of a step in the mean): they are rounded; are these the numbers of your preprocessing?"
        )


def _cast_back(graph: Graph, call: fx.Node, word: str) -> fx.Node:
    with graph.module.graph.inserting_after(call):
        value = graph.module.graph.call_function(cast, (call,), {"to": ONNX_OF_WORD[word]})
    call.replace_all_uses_with(value, delete_user_cb=lambda user: user is not value)
    graph.module.recompile()
    return value


def _narrower(step: InputCompression, graph: Graph, index: int, context: Context, reasons: list[str]) -> bool:
    spec = graph.inputs[index]
    if step.integers == "keep":
        return False
    most = _largest(graph, index)
    fits = [word for word in WORDS if most is not None and most <= torch.iinfo(TORCH_OF_WORD[word]).max]
    word = (fits or ["int32"])[0] if step.integers == "auto" else step.integers
    if fits and word not in fits:
        raise StepError(f"{spec.name!r} picks from a table of {most + 1:,} rows, which {word} cannot count")  # type: ignore[operator]
    if TORCH_OF_WORD[word].itemsize >= TORCH_OF_WORD[spec.dtype].itemsize:
        reasons.append(f"it is {spec.dtype} already, and {word} takes no fewer bytes")
        return False
    call = attach_feed(graph, index, Narrow(word, most))
    _cast_back(graph, call, spec.dtype)
    why = (
        "its values pick from no table, so that how large they get is not known"
        if most is None
        else (f"it picks from a table of {most + 1:,} rows")
    )
    context.notes.append(f"{spec.name}: {spec.dtype} became {word}: {why}")
    return True


def _largest(graph: Graph, index: int) -> int | None:
    """The largest number that an input may hold, where it picks rows of a table."""
    reading = [[node for node in graph.module.graph.nodes if node.op == "placeholder"][index]]
    rows = []
    for node in reading:
        for user in node.users:
            if user.op == "call_module" and isinstance(module_of(user), Embedding):
                rows.append(module_of(user).weight.shape[0])
            elif user.target in SAME:
                reading.append(user)
    return min(rows) - 1 if rows else None
