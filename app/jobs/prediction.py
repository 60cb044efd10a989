"""How small a result may become, as its steps foresee it before anything has been done."""

from collections.abc import Sequence

from app.jobs.schemas import Prediction
from modelpress.jobs import Format
from modelpress.models import ModelSpec
from modelpress.steps import Step
from modelpress.steps.forecast import Forecast

NORMS = ("LayerNormalization", "RMSNormalization")
"""Where they stand in a model, the width between its blocks stays: a layer is cut on one side only."""


def predict(model: ModelSpec, model_bytes: int, recipe: Sequence[Step], first: Format) -> Prediction:
    """`first`: the format by which sizes are judged."""
    forecast = Forecast(sides=1 if any(model.stats.ops.get(norm) for norm in NORMS) else 2)
    for step in recipe:
        some = "layers" in step.changed()  # how much of the model they are is not known here
        forecast = forecast.without(step.step) if some else step.foresee(forecast)
    parameters = model.stats.parameters
    other = max(0, model_bytes - 4 * parameters) if model.format == "onnx" else 0
    left = round(parameters * forecast.share)
    bits = forecast.packed_bits if first == "packed" else forecast.bits
    size = min(model_bytes, other + round(left * bits / 8))
    return Prediction(
        size_bytes=size,
        size_ratio=round(model_bytes / max(size, 1), 2),
        basis=_basis(left, bits, forecast, first),
        unforeseen=list(dict.fromkeys(forecast.unforeseen)),
    )


def _basis(left: int, bits: float, forecast: Forecast, first: Format) -> str:
    said = [f"{left} parameters at {bits:.3g} bits", "layers that have to stay as they are are not foreseen"]
    if forecast.zeros and first != "packed":
        said.append(f"zeros take as much room as other weights in {first}, and less in packed")
    if forecast.unforeseen:
        said.append(f"what {', '.join(dict.fromkeys(forecast.unforeseen))} removes is not foreseen and left out")
    return "; ".join(said)
