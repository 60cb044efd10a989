"""`"recipe": "auto"`: which steps are taken for which model, and that the job shows them."""

from typing import Any

import httpx
import pytest

from modelpress.models import ModelStats
from tests.service.conftest import Uploads
from tests.service.examples import CLASSIFIER, UNLABELLED

pytestmark = pytest.mark.anyio

CONVOLUTIONAL = {"Conv": 9, "Gemm": 1}
RECURRENT = {"Conv": 2, "GRU": 2, "Gemm": 1}
TRANSFORMER = {"MatMul": 30, "LayerNormalization": 13, "Gather": 3}


def steps(answer: httpx.Response) -> list[str]:
    assert answer.is_success, answer.text
    return [step["step"] for step in answer.json()["resolved_recipe"]]


@pytest.mark.parametrize(
    ("ops", "options", "wanted"),
    [
        (CONVOLUTIONAL, {}, ["static_quantization"]),
        (RECURRENT, {}, ["dynamic_quantization"]),
        (TRANSFORMER, {}, ["dynamic_quantization"]),
        (CONVOLUTIONAL, {"formats": ["pt2"]}, ["half_precision"]),
        (CONVOLUTIONAL, {"runtime": "cuda"}, ["half_precision"]),
        (CONVOLUTIONAL, {"targets": {"size_ratio": 3}}, ["static_quantization"]),
        (CONVOLUTIONAL, {"targets": {"size_ratio": 10}}, ["channel_pruning", "distillation", "static_quantization"]),
        (TRANSFORMER, {"targets": {"latency_ratio": 3}}, ["channel_pruning", "distillation", "dynamic_quantization"]),
    ],
    ids=str,
)
async def test_the_model_the_data_and_the_targets_say_what_is_done(
    client: httpx.AsyncClient, uploads: Uploads, ops: dict[str, int], options: dict[str, Any], wanted: list[str]
) -> None:
    model = await uploads.model(b"x" * 500, CLASSIFIER.model_copy(update={"stats": ModelStats(ops=ops)}))
    request = {"model": model, "recipe": "auto", "data": {"train": await uploads.dataset(UNLABELLED)}, **options}
    assert steps(await client.post("/v1/jobs?dry_run=true", json=request)) == wanted
    without = await client.post("/v1/jobs?dry_run=true", json={**request, "data": {}})
    assert steps(without) == wanted[-1:], "nothing is trained without data"


async def test_a_job_shows_what_auto_stood_for_and_the_same_can_be_posted(
    client: httpx.AsyncClient, uploads: Uploads
) -> None:
    model = await uploads.model(b"x" * 500, CLASSIFIER.model_copy(update={"stats": ModelStats(ops=CONVOLUTIONAL)}))
    data = {"train": await uploads.dataset(UNLABELLED)}
    request = {"model": model, "recipe": "auto", "data": data, "targets": {"size_ratio": 10, "latency_ratio": 1.1}}
    job = (await client.post("/v1/jobs", json=request)).json()
    assert job["resolved_recipe"][0]["parameters_left"] == pytest.approx(0.35)
    assert job["request"]["recipe"] == job["resolved_recipe"]
    again = (await client.post("/v1/jobs", json={**request, "recipe": job["resolved_recipe"]})).json()
    assert again["request"] == job["request"]
    uploads.worker.claim(job["id"])


async def test_no_other_word_and_no_empty_list_is_a_recipe(client: httpx.AsyncClient, uploads: Uploads) -> None:
    model = await uploads.model()
    for recipe in ("best", [], None):
        answer = await client.post("/v1/jobs", json={"model": model, "recipe": recipe})
        assert answer.status_code == 422, recipe
        assert [error["pointer"] for error in answer.json()["errors"]] == ["/recipe"]


async def test_a_key_stands_for_auto_too(client: httpx.AsyncClient, uploads: Uploads) -> None:
    request = {"model": await uploads.model(), "recipe": "auto"}
    headers = {"Idempotency-Key": "auto-1"}
    first, second = [(await client.post("/v1/jobs", json=request, headers=headers)).json()["id"] for _ in range(2)]
    assert first == second
