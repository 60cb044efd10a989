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
    smaller = Smaller(step, graph, context)
    for output in smaller.chosen():
        said = [*smaller.rounded(output), *smaller.narrowed(output)]
        if said:
            context.notes.append(f"{output.spec.name}: {', '.join(said)}")
            smaller.done += 1
    if not smaller.done:
        raise StepError(f"no answer can be made smaller: {'; '.join(smaller.reasons) or 'the model has no outputs'}")
    after = bytes_of(outputs_answered(graph))
    context.notes += smaller.reasons
    context.notes.append(f"an answer takes {after:,} bytes; it took {before:,} (open dimensions count 1)")
    context.figures |= {"bytes_answered_before": before, "bytes_answered_after": after}
    return graph


class Smaller:
    """Changes the graph output by output; each method says what it did."""

    def __init__(self, step: OutputCompression, graph: Graph, context: Context) -> None:
        self.step, self.graph, self.context = step, graph, context
        self.reasons: list[str] = []
        """Why outputs stay as they are."""
        self.done = 0

    def chosen(self) -> list[Output]:
        graph, names = self.graph, [spec.name for spec in self.graph.outputs]
        for name in self.step.outputs:
            if name not in names:
                raise StepError(f"there is no output {name!r}; the model has {', '.join(names)}")
        probed = _probed(graph, self.context)
        results, found = results_of(graph.module), []
        for index, spec in enumerate(graph.outputs):
            if self.step.outputs and spec.name not in self.step.outputs:
                continue
            if edge_of(results[index], Reply) is not None:
                self.reasons.append(f"{spec.name} is compressed already: one output_compression does all of it")
            elif not TORCH_OF_WORD[spec.dtype].is_floating_point:
                self.reasons.append(f"{spec.name} holds whole numbers ({spec.dtype})")
            else:
                known = self.context.class_axis if index == self.context.output else None
                axis = usual_class_axis(len(spec.shape)) if known is None else known
                found.append(Output(index, spec, axis, None if probed is None else probed[index]))
        return found

    def rounded(self, output: Output) -> list[str]:
        said, step = [], self.step
        if step.decimals is not None:
            round_outputs(self.graph, [output.index], partial(Decimals, decimals=step.decimals))
            said.append(f"rounded to {step.decimals} decimals")
        if step.below is not None:
            round_outputs(self.graph, [output.index], partial(Floored, below=step.below))
            said.append(f"0 where it is below {step.below:g}")
        return said

    def narrowed(self, output: Output) -> list[str]:
        if self.step.decide is not None:
            return self._decided(self.step.decide, output)
        if self.step.top is not None:
            return self._best(self.step.top, output)
        found = self._in_fewer_bytes(results_of(self.graph.module)[output.index], output)
        if found is None:
            return []
        attach_reply(self.graph, output.index, found[1], [found[0]])
        return [f"as {found[1].unit}"]

    def _decided(self, threshold: float | str, output: Output) -> list[str]:
        if isinstance(threshold, str):
            if output.probed is None:
                raise StepError(
                    "decide: auto looks at some answers to tell probabilities from other scores, and there are no "
                    "inputs to ask for: send some as data.calibrate, or give the threshold"
                )
            threshold = 0.5 if output.probabilities else 0.0
        round_outputs(self.graph, [output.index], partial(Decided, threshold=threshold))
        node = results_of(self.graph.module)[output.index]
        whole = self._after(node, cast, to=ONNX_OF_WORD["uint8"])
        attach_reply(self.graph, output.index, YesOrNo("uint8", output.spec.dtype, threshold), [whole])
        return [f"1 above {threshold:g} and 0 below, as uint8"]

    def _best(self, best: int, output: Output) -> list[str]:
        name, shape = output.spec.name, output.spec.shape
        classes = shape[output.axis] if shape else None
        if not isinstance(classes, int):
            raise StepError(f"top needs a fixed number of classes, and {name!r} has the shape {list(shape)}")
        if best >= classes:
            raise StepError(f"top: {name!r} has only {classes} classes; choose fewer than that")
        both = self._after(results_of(self.graph.module)[output.index], top_k, (best,), axis=output.axis)
        values, places = self._after(both, getitem, 0), self._after(both, getitem, 1)
        counter = next(word for word in COUNTERS if classes - 1 <= torch.iinfo(TORCH_OF_WORD[word]).max)
        numbers = self._after(places, cast, to=ONNX_OF_WORD[counter])
        own = tuple(dim if isinstance(dim, int) else 1 for dim in shape)
        if not self.step.values:
            self.graph.module.graph.erase_node(values)
            attach_reply(self.graph, output.index, Best(best, own, output.axis, None, counter), [numbers])
            return [f"the numbers of the {best} best of {classes} classes, as {counter}"]
        found = self._in_fewer_bytes(values, output)
        narrow, steps = found or (values, Steps(output.spec.dtype, output.spec.dtype))
        attach_reply(self.graph, output.index, Best(best, own, output.axis, steps, counter), [narrow, numbers])
        return [f"the {best} best of {classes} classes: values as {steps.unit}, and their numbers as {counter}"]

    def _in_fewer_bytes(self, node: fx.Node, output: Output) -> tuple[fx.Node, Steps] | None:
        """A value in the narrower type, and what that stands for; None where it stays as it is."""
        wanted, word = self.step.dtype, output.spec.dtype
        if wanted == "keep":
            return None
        if TORCH_OF_WORD[wanted].itemsize >= TORCH_OF_WORD[word].itemsize:
            self.reasons.append(f"{output.spec.name} is {word} already")
            return None
        if wanted == "float16":
            largest = 0.0 if output.probed is None else float(output.probed.abs().max())
            if largest > torch.finfo(torch.float16).max:
                self.reasons.append(f"{output.spec.name} reaches {largest:.3g}, which float16 cannot hold")
                return None
            return self._after(node, cast, to=ONNX_OF_WORD["float16"]), Steps("float16", word)
        low, high = self._range(output)
        scale = (high - low) / LAST_STEP
        zero = min(max(round(-low / scale), 0), LAST_STEP)
        if word != "float32":  # runtimes quantize few other types
            node = self._after(node, cast, to=ONNX_OF_WORD["float32"])
        step = add_constant(self.graph.module, "answer_scale", torch.tensor(scale))
        point = add_constant(self.graph.module, "answer_zero", torch.tensor(zero, dtype=torch.uint8))
        return self._after(node, quantize, step, point, axis=1), Steps("uint8", word, scale, zero)

    def _range(self, output: Output) -> tuple[float, float]:
        """Of the answers; zero is within, and exact."""
        if output.probabilities:
            return 0.0, 1.0
        if output.probed is None:
            raise StepError(
                "dtype: uint8 needs to know from where to where the answers go: send inputs as data.calibrate, or "
                "take float16"
            )
        low, high, name = min(0.0, float(output.probed.min())), max(0.0, float(output.probed.max())), output.spec.name
        if not high > low:
            raise StepError(f"{name!r} is always 0 on the calibration data: there is nothing to scale")
        self.context.notes.append(f"{name} is taken to lie between {low:.4g} and {high:.4g}, and cut off there")
        return low, high

    def _after(self, node: fx.Node, function: Callable[..., Any], *args: Any, **options: Any) -> fx.Node:
        with self.graph.module.graph.inserting_after(node):
            return self.graph.module.graph.call_function(function, (node, *args), options)


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
