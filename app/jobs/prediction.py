"""How small a result may become, guessed from the number of parameters before anything has been done."""

from collections.abc import Sequence

from app.jobs.schemas import Prediction
from modelpress.models import ModelSpec
from modelpress.steps import Step
from modelpress.steps.channel_pruning import HALF, ChannelPruning
from modelpress.steps.depth_pruning import QUARTER, DepthPruning

BITS = {"half_precision": 16, "static_quantization": 8, "dynamic_quantization": 8}
"""Of a stored weight after a step; the others leave 32."""


def predict(model: ModelSpec, model_bytes: int, recipe: Sequence[Step]) -> Prediction:
    bits = min((BITS.get(step.step, 32) for step in recipe), default=32)
    parameters = model.stats.parameters
    other = max(0, model_bytes - 4 * parameters)
    left = parameters
    for step in recipe:
        left = round(left * _share_left(step))
    size = min(model_bytes, other + left * bits // 8)
    return Prediction(
        size_bytes=size,
        size_ratio=round(model_bytes / max(size, 1), 2),
        basis=f"{left} parameters at {bits} bits; layers that have to stay as they are are not foreseen",
    )


def _share_left(step: Step) -> float:
    """Of the parameters."""
    if isinstance(step, ChannelPruning):
        # a layer is cut on both sides; of multiply-accumulates, fewer weights do not take the same share in every net
        return step.parameters_left or step.macs_left or (1 - (step.ratio or HALF)) ** 2
    if isinstance(step, DepthPruning):
        return 1 - (step.ratio or QUARTER)
    return 1.0
