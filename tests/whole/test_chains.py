"""What one job made is what the next one works on, in whatever form its weights, inputs and answers are by then."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from modelpress import Client, ModelpressError
from modelpress.client import Model
from modelpress.report import Report
from tests.service_process import EXAMPLE

QUICK = {"epochs": 1}
FORMS = [
    [{"step": "static_quantization"}],
    [{"step": "dynamic_quantization"}],
    [{"step": "weight_only_quantization"}],
    [{"step": "weight_clustering", "train": False}],
    [{"step": "binarization", **QUICK}],
    [{"step": "half_precision"}],
    [{"step": "low_rank_factorization", "parameters_left": 0.7, "measure": False}],
]
"""Each stores weights in another form."""


@pytest.fixture(scope="module")
def data(client_of_module: Client) -> dict[str, str]:
    client = client_of_module
    found = {use: client.upload_dataset(EXAMPLE / f"{use}.npz") for use in ("calibrate", "evaluate")}
    return {use: client.wait(dataset, timeout=60).id for use, dataset in found.items()}


def result_of(client: Client, model: str, recipe: list[dict[str, Any]], **options: Any) -> tuple[Model, Report]:
    job = client.wait_job(client.create_job(model, recipe, **options).id, timeout=240)
    assert job.result is not None, f"{job.error}\n{client.log(job.id)}"
    return client.get_model(job.result.model_id), client.report(job.id)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", FORMS, ids=lambda recipe: recipe[0]["step"])
def test_a_result_is_a_model_like_any_other(
    client: Client, lenet: Model, data: dict[str, str], recipe: list[dict[str, Any]]
) -> None:
    given = {"train": data["calibrate"], "evaluate": data["evaluate"]}
    first, before = result_of(client, lenet.id, recipe, data=given)
    assert first.signature == lenet.signature
    second, after = result_of(client, first.id, [{"step": "output_compression"}], data=given)
    assert second.parent_id == first.id
    assert before.quality is not None
    assert after.quality is not None
    assert after.quality.original == pytest.approx(before.quality.result, abs=0.002), "the file was read otherwise"
    assert after.size[0].bytes == first.size_bytes
    assert after.size[1].bytes < 1.1 * after.size[0].bytes, "the form of the weights was lost"


@pytest.mark.slow
def test_an_interface_that_changed_is_shown_measured_and_gone_on_from(
    client: Client, lenet: Model, data: dict[str, str], tmp_path: Path
) -> None:
    recipe = [
        {"step": "input_compression", "mean": 0.2860, "std": 0.3530},
        {"step": "output_compression", "top": 3},
    ]
    small, report = result_of(client, lenet.id, recipe, data=data)
    assert small.signature is not None
    assert [(tensor.name, tensor.dtype) for tensor in small.signature.inputs] == [("x", "uint8")]
    assert [tensor.name for tensor in small.signature.outputs] == ["logits", "logits_indices"]
    assert report.quality is not None
    assert abs(report.quality.change) < 0.01
    assert report.traffic is not None
    assert report.traffic.sent_bytes == (4 * 784, 784)

    with pytest.raises(ModelpressError, match="cannot take without loss"):
        client.create_job(small.id, [{"step": "half_precision"}], data=data)
    with np.load(EXAMPLE / "evaluate.npz") as arrays:
        pixels = np.rint((arrays["x"] * 0.3530 + 0.2860) * 255).astype(np.uint8)
        labels = arrays["labels"]
    np.savez(tmp_path / "pixels.npz", x=pixels)
    np.savez(tmp_path / "labelled.npz", x=pixels, labels=labels)
    own, labelled = (client.wait(client.upload_dataset(tmp_path / f"{name}.npz")) for name in ("pixels", "labelled"))
    with pytest.raises(ModelpressError, match="has 3 classes"):
        client.create_job(small.id, [{"step": "half_precision"}], data={"evaluate": labelled.id})
    half, again = result_of(client, small.id, [{"step": "half_precision"}], data={"evaluate": own.id})
    assert half.signature == small.signature
    assert again.size_ratio > 1.5
    session = onnxruntime.InferenceSession(client.download(half.id, tmp_path))
    _, best = session.run(None, {"x": pixels[:500]})
    assert (best[:, 0] == labels[:500]).mean() > 0.85
    side_by_side = client.compare(lenet.id, [small.id])
    assert side_by_side.candidates[0].model_id == small.id
