"""How small a result may become, guessed from the number of parameters before anything has been done."""

from collections.abc import Sequence

from app.jobs.schemas import Prediction
from modelpress.models import ModelSpec
from modelpress.steps import Step
from modelpress.steps.channel_pruning import HALF, ChannelPruning
from modelpress.steps.depth_pruning import QUARTER, DepthPruning

BITS = {"half_precision": 16, "static_quantization": 8, "dynamic_quantization": 8}
"""Of a stored weight after a step; the others leave 32."""


NORMS = ("LayerNormalization", "RMSNormalization")
"""Where they stand in a model, the width between its blocks stays: a layer is cut on one side only."""


def predict(model: ModelSpec, model_bytes: int, recipe: Sequence[Step]) -> Prediction:
    bits = min((BITS.get(step.step, 32) for step in recipe), default=32)
    parameters = model.stats.parameters
    other = max(0, model_bytes - 4 * parameters) if model.format == "onnx" else 0
    left = parameters
    unforeseen = [step.step for step in recipe if isinstance(step, ChannelPruning) and _is_partial(step)]
    for step in recipe:
        left = round(left * _share_left(step, model))
    size = min(model_bytes, other + left * bits // 8)
    some = f"; what {unforeseen[0]} of some layers only removes is not foreseen" if unforeseen else ""
    return Prediction(
        size_bytes=size,
        size_ratio=round(model_bytes / max(size, 1), 2),
        basis=f"{left} parameters at {bits} bits; layers that have to stay as they are are not foreseen{some}",
    )


def _is_partial(step: ChannelPruning) -> bool:
    """Whether it asks for less than everything, so that its share says little."""
    return bool(step.model_fields_set & {"kinds", "layers", "layer_ratios"})


def _share_left(step: Step, model: ModelSpec) -> float:
    """Of the parameters."""
    if isinstance(step, ChannelPruning):
        if step.parameters_left or step.macs_left:
            # fewer multiply-accumulates do not take the same share of the weights in every net
            return step.parameters_left or step.macs_left or 1.0
        if _is_partial(step):
            return 1.0
        sides = 1 if any(model.stats.ops.get(norm) for norm in NORMS) else 2
        return (1 - (step.ratio or HALF)) ** sides
    if isinstance(step, DepthPruning):
        return 1 - (step.ratio or QUARTER)
    return 1.0
