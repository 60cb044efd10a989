"""Make answers smaller: rounded, decided, the best classes only, or in a narrower type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx

from modelpress.matching import usual_class_axis
from modelpress.models import TensorSpec
from modelpress.steps.output_compression import OutputCompression
from workers.engine.batching import answers, batch_of, batch_taken, on_device, whole
from workers.engine.context import Context
from workers.engine.data import SyntheticBatches
from workers.engine.dtypes import ONNX_OF_WORD, TORCH_OF_WORD
from workers.engine.errors import StepError
from workers.engine.graph import Graph
from workers.engine.interface.attaching import attach_reply
from workers.engine.interface.edges import Reply, edge_of
from workers.engine.interface.exposing import outputs_answered
from workers.engine.interface.replies import Best, Steps, YesOrNo
from workers.engine.interface.sizes import bytes_of
from workers.engine.losses import Scores, as_rows, scores_of
from workers.engine.ops.casting import cast
from workers.engine.ops.quantized import quantize
from workers.engine.ops.reductions import top_k
from workers.engine.steps import applies
from workers.engine.transforms.adding import add_constant, results_of
from workers.engine.transforms.output_rounding import Decided, Decimals, Floored, round_outputs

PROBED = 256
COUNTERS = ("uint8", "int16", "int32")
"""Types of class numbers, the smallest first."""
LAST_STEP = 255


@dataclass(frozen=True)
class Output:
    """An output that is treated. `probed`: what it is on some inputs; None where there are none to ask for."""

    index: int
    spec: TensorSpec
    axis: int
    """Of the classes."""
    probed: Tensor | None

    @property
    def probabilities(self) -> bool:
        return self.probed is not None and scores_of(as_rows(self.probed, self.axis)) is not Scores.LOGITS


@applies(OutputCompression)
def output_compression(step: OutputCompression, graph: Graph, context: Context) -> Graph:
    before = bytes_of(outputs_answered(graph))
    reasons: list[str] = []
    done = False
    for output in _chosen(step, graph, context, reasons):
        said = _rounded(step, graph, output)
        if step.decide is not None:
            said += _decided(step.decide, graph, output)
        elif step.top is not None:
            said += _best(step, step.top, graph, output, context)
        else:
            said += _narrowed(step, graph, output, context)
        if said:
            context.notes.append(f"{output.spec.name}: {', '.join(said)}")
            done = True
        else:
            reasons.append(f"{output.spec.name} is {output.spec.dtype} already")
    if not done:
        raise StepError(f"no answer can be made smaller: {'; '.join(reasons) or 'the model has no outputs'}")
    after = bytes_of(outputs_answered(graph))
    context.notes += reasons
    context.notes.append(f"an answer takes {after:,} bytes; it took {before:,} (open dimensions count 1)")
    context.figures |= {"bytes_answered_before": before, "bytes_answered_after": after}
    return graph


def _chosen(step: OutputCompression, graph: Graph, context: Context, reasons: list[str]) -> list[Output]:
    names = [spec.name for spec in graph.outputs]
    for name in step.outputs:
        if name not in names:
            raise StepError(f"there is no output {name!r}; the model has {', '.join(names)}")
    probed = _probed(graph, context)
    results, found = results_of(graph.module), []
    for index, spec in enumerate(graph.outputs):
        if step.outputs and spec.name not in step.outputs:
            continue
        if edge_of(results[index], Reply) is not None:
            reasons.append(f"{spec.name} is compressed already: one output_compression does all of it")
        elif not TORCH_OF_WORD[spec.dtype].is_floating_point:
            reasons.append(f"{spec.name} holds whole numbers ({spec.dtype})")
        else:
            known = context.class_axis if index == context.output else None
            axis = usual_class_axis(len(spec.shape)) if known is None else known
            found.append(Output(index, spec, axis, None if probed is None else probed[index]))
    return found


def _probed(graph: Graph, context: Context) -> list[Tensor] | None:
    """The answers to some inputs; None where there are none, or none that were not made up."""
    data = context.calibrate
    if data is None or isinstance(data, SyntheticBatches):
        return None
    with on_device(graph, context.device):
        size = batch_taken(graph, data, context.device)
        rows = torch.arange(min(max(PROBED, size or 0), data.examples))
        if size and not len(whole(rows, size)):
            return None
        batch = batch_of(data, whole(rows, size) if size else rows, context.device)
        with torch.no_grad():
            return [found.cpu() for found in answers(graph, batch.inputs, size)]


def _rounded(step: OutputCompression, graph: Graph, output: Output) -> list[str]:
    said = []
    if step.decimals is not None:
        round_outputs(graph, [output.index], partial(Decimals, decimals=step.decimals))
        said.append(f"rounded to {step.decimals} decimals")
    if step.below is not None:
        round_outputs(graph, [output.index], partial(Floored, below=step.below))
        said.append(f"0 where it is below {step.below:g}")
    return said


def _decided(threshold: float | str, graph: Graph, output: Output) -> list[str]:
    if isinstance(threshold, str):
        if output.probed is None:
            raise StepError(
                "decide: auto looks at some answers to tell probabilities from other scores, and there are no inputs "
                "to ask for: send some as data.calibrate, or give the threshold"
            )
        threshold = 0.5 if output.probabilities else 0.0
    round_outputs(graph, [output.index], partial(Decided, threshold=threshold))
    node = results_of(graph.module)[output.index]
    reply = YesOrNo("uint8", output.spec.dtype, threshold)
    attach_reply(graph, output.index, reply, [_after(graph, node, cast, {"to": ONNX_OF_WORD["uint8"]})])
    return [f"1 above {threshold:g} and 0 below, as uint8"]


def _best(step: OutputCompression, best: int, graph: Graph, output: Output, context: Context) -> list[str]:
    shape = output.spec.shape
    classes = shape[output.axis] if shape else None
    if not isinstance(classes, int):
        raise StepError(f"top needs a fixed number of classes, and {output.spec.name!r} has the shape {list(shape)}")
    if best >= classes:
        raise StepError(f"top: {output.spec.name!r} has only {classes} classes; choose fewer than that")
    nodes, source = graph.module.graph, results_of(graph.module)[output.index]
    with nodes.inserting_after(source):
        both = nodes.call_function(top_k, (source, (best,)), {"axis": output.axis})
    values, places = (_after(graph, both, getitem, {}, part) for part in (0, 1))
    counter = next(word for word in COUNTERS if classes - 1 <= torch.iinfo(TORCH_OF_WORD[word]).max)
    numbers = _after(graph, places, cast, {"to": ONNX_OF_WORD[counter]})
    own = tuple(dim if isinstance(dim, int) else 1 for dim in shape)
    if not step.values:
        nodes.erase_node(values)
        attach_reply(graph, output.index, Best(best, own, output.axis, None, counter), [numbers])
        return [f"the numbers of the {best} best of {classes} classes, as {counter}"]
    told: list[str] = []
    found = _smaller(step, graph, values, output, context, told)
    narrow, steps = found or (values, Steps(output.spec.dtype, output.spec.dtype))
    attach_reply(graph, output.index, Best(best, own, output.axis, steps, counter), [narrow, numbers])
    return [f"the {best} best of {classes} classes: values as {steps.unit}, and their numbers as {counter}", *told]


def _narrowed(step: OutputCompression, graph: Graph, output: Output, context: Context) -> list[str]:
    told: list[str] = []
    found = _smaller(step, graph, results_of(graph.module)[output.index], output, context, told)
    if found is None:
        return told
    node, steps = found
    attach_reply(graph, output.index, steps, [node])
    return [f"as {steps.unit}"]


def _smaller(
    step: OutputCompression, graph: Graph, node: fx.Node, output: Output, context: Context, told: list[str]
) -> tuple[fx.Node, Steps] | None:
    """A value in the narrower type, and what that stands for; None where it stays as it is."""
    word = output.spec.dtype
    if step.dtype == "keep" or TORCH_OF_WORD[step.dtype].itemsize >= TORCH_OF_WORD[word].itemsize:
        return None
    if step.dtype == "float16":
        largest = 0.0 if output.probed is None else float(output.probed.abs().max())
        if largest > torch.finfo(torch.float16).max:
            told.append(f"stays {word}: it reaches {largest:.3g}, which float16 cannot hold")
            return None
        return _after(graph, node, cast, {"to": ONNX_OF_WORD["float16"]}), Steps("float16", word)
    low, high = _range(output, context)
    scale = (high - low) / LAST_STEP
    zero = min(max(round(-low / scale), 0), LAST_STEP)
    numbers = torch.tensor(scale, dtype=TORCH_OF_WORD[word]), torch.tensor(zero, dtype=torch.uint8)
    constants = [
        add_constant(graph.module, f"answer_{name}", n) for name, n in zip(("scale", "zero"), numbers, strict=True)
    ]
    with graph.module.graph.inserting_after(node):
        made = graph.module.graph.call_function(quantize, (node, *constants), {"axis": 1})
    return made, Steps("uint8", word, scale, zero)


def _range(output: Output, context: Context) -> tuple[float, float]:
    """Of the answers; zero is within, and exact."""
    if output.probabilities:
        return 0.0, 1.0
    if output.probed is None:
        raise StepError(
            "dtype: uint8 needs to know from where to where the answers go: send inputs as data.calibrate, or take "
            "float16"
        )
    low, high = min(0.0, float(output.probed.min())), max(0.0, float(output.probed.max()))
    if not high > low:
        raise StepError(f"{output.spec.name!r} is always 0 on the calibration data: there is nothing to scale")
    context.notes.append(
        f"{output.spec.name} is taken to lie between {low:.4g} and {high:.4g}: others are cut off there"
    )
    return low, high


def _after(graph: Graph, node: fx.Node, function: Callable[..., Any], options: dict[str, Any], *args: Any) -> fx.Node:
    with graph.module.graph.inserting_after(node):
        return graph.module.graph.call_function(function, (node, *args), options)
