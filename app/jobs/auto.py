"""`"recipe": "auto"`: a recipe by the model's kind, the data that is there and what is asked for.

A rule, no search: the same request always gives the same recipe, which the plan and the job show in full.
"""

from app.jobs.schemas import JobRequest
from modelpress.models import ModelSpec
from modelpress.steps import AnyStep
from modelpress.steps.channel_pruning import ChannelPruning
from modelpress.steps.distillation import Distillation
from modelpress.steps.dynamic_quantization import DynamicQuantization
from modelpress.steps.half_precision import HalfPrecision
from modelpress.steps.static_quantization import StaticQuantization

SMALLER, FASTER = 3.5, 1.3
"""What 8 bits alone bring, about."""
LEAST_LEFT = 0.1
"""Of the work: widths are whole numbers, so that few models can do with less."""
RECURRENT = frozenset({"LSTM", "GRU", "RNN"})


def resolved(request: JobRequest, model: ModelSpec) -> JobRequest:
    """The request with its recipe, which `auto` leaves to us."""
    return request if request.recipe else request.model_copy(update={"recipe": choose(request, model)})


def choose(request: JobRequest, model: ModelSpec) -> list[AnyStep]:
    """8 bits in the form that suits the model; narrower layers first, where the targets ask for more than that brings
    and there is data to train on."""
    left = _left(request)
    if left is None or request.data.train is None:
        return [_stored(request, model)]
    return [left, Distillation(), _stored(request, model)]


def _left(request: JobRequest) -> ChannelPruning | None:
    smaller = SMALLER / (request.targets.size_ratio or 1)
    faster = FASTER / (request.targets.latency_ratio or 1)
    if min(smaller, faster) >= 1:
        return None
    share = max(min(smaller, faster), LEAST_LEFT)
    return ChannelPruning(macs_left=share) if faster < smaller else ChannelPruning(parameters_left=share)


def _stored(request: JobRequest, model: ModelSpec) -> AnyStep:
    ops = model.stats.ops.keys()
    if request.runtime == "cuda" or any(name in StaticQuantization.cannot_hold for name in request.formats):
        return HalfPrecision()
    if any(op.startswith("Conv") for op in ops) and not RECURRENT & ops:
        return StaticQuantization()
    return DynamicQuantization()
