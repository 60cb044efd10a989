"""POST /v1/jobs: what is accepted, what is refused, and with which words."""

import contextlib
from typing import Any

import anyio
import httpx
import pytest
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from app.db.tables import Job
from app.jobs import material, service
from app.main import create_app
from app.settings import Settings
from modelpress.models import ModelSpec, ModelStats, Signature, TensorSpec
from modelpress.steps import STEPS, Data, why_not_after
from tests.service.as_worker import Worker
from tests.service.conftest import Uploads, client_of, until
from tests.service.examples import CLASSIFIER, LABELLED, SCORES, UNLABELLED, array, dataset, labels, report

pytestmark = pytest.mark.anyio

HALF = [{"step": "half_precision"}]


def jobs(engine: Engine) -> int:
    with Session(engine) as session:
        return session.scalar(select(func.count()).select_from(Job).where(Job.kind == "compress")) or 0


async def test_a_job_is_accepted_with_its_defaults_filled_in(client: httpx.AsyncClient, uploads: Uploads) -> None:
    model, data = await uploads.model(), await uploads.dataset()
    request = {
        "model": model,
        "recipe": [{"step": "magnitude_pruning", "sparsity": 0.7}, {"step": "distillation"}],
        "data": {"train": data, "evaluate": data},
        "labels": {"team": "vision"},
    }
    answer = await client.post("/v1/jobs", json=request)

    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert answer.headers["retry-after"] == "1"
    assert (job["status"], job["attempt"], job["model"], job["labels"]) == ("queued", 0, model, {"team": "vision"})
    assert job["data"] == {"train": data, "calibrate": None, "evaluate": data}
    assert job["resolved_recipe"][0]["sparsity"] == 0.7
    assert job["resolved_recipe"][0]["scope"] == "global"
    assert [job[field] for field in ("result", "report", "error", "progress", "finished_at")] == [None] * 5
    assert (await client.get(f"/v1/jobs/{job['id']}")).json() == job


BAD_FIELDS: list[tuple[dict[str, Any], str, str]] = [
    ({"recipe": [{"step": "prune"}]}, "/recipe/0/step", "there is no step 'prune'; there are: channel_pruning"),
    ({"recipe": [{"ratio": 1}]}, "/recipe/0/step", "names itself"),
    ({"recipe": []}, "/recipe", "at least 1"),
    ({"recipe": "automatic"}, "/recipe", 'this is a list of steps, or "auto"'),
    ({"recipe": HALF * 17}, "/recipe", "at most 16 of them, and these are 17"),
    (
        {"recipe": [{"step": "binarization", "outputs": True}, {"step": "distillation"}]},
        "/recipe/1/step",
        "distillation cannot come after binarization with outputs",
    ),
    (
        {"recipe": [{"step": "half_precision", "bits": 4}]},
        "/recipe/0/bits",
        "half_precision has no option 'bits'; there are: dtype, layers",
    ),
    ({"recipe": [*HALF, {"step": "magnitude_pruning", "sparsity": 2}]}, "/recipe/1/sparsity", "less than 1"),
    ({"recipe": HALF, "recipes": 1}, "/recipes", "there is no option 'recipes'"),
    ({"recipe": [*HALF, {"step": "magnitude_pruning"}]}, "/recipe/1/step", "cannot come after half_precision"),
    ({"recipe": [{"step": "depth_pruning"}]}, "/recipe/0", "send data.calibrate (or data.train)"),
    ({"recipe": [{"step": "fine_tuning"}]}, "/recipe/0", "labelled training data: send data.train"),
    ({"recipe": [{"step": "magnitude_pruning", "schedule": "cubic"}]}, "/recipe/0", "send data.train"),
    ({"recipe": HALF, "targets": {"size_ratio": 0.5}}, "/targets/size_ratio", "greater than 1"),
    ({"recipe": HALF, "task": {"output": "logits"}}, "/task/output", "it has: scores"),
    ({"recipe": HALF, "labels": {"a": "\0"}}, "/labels/a", "cannot be stored"),
    ({"recipe": HALF, "labels": {"\0": "a"}}, "/labels", "cannot be stored"),
    ({"recipe": HALF, "formats": ["onnx", "gguf"]}, "/formats/1", "packed"),
    ({"recipe": HALF, "formats": []}, "/formats", "at least 1"),
    ({"recipe": HALF, "formats": "onnx"}, "/formats", "this is a list"),
    ({"recipe": [{"step": "half_precision", "layers": "conv1"}]}, "/recipe/0/layers", "this is an object"),
    ({"recipe": [{"step": "channel_pruning", "kinds": ["x"]}]}, "/recipe/0/kinds/0", "should be 'channels', 'neurons'"),
    ({"recipe": HALF, "seed": -1}, "/seed", "greater than or equal to 0"),
    ({"recipe": HALF, "queue": "tpu"}, "/queue", "cpu"),
    ({"recipe": HALF, "model": "mdl_1"}, "/model", "mdl_"),
]


@pytest.mark.parametrize(("fields", "pointer", "sentence"), BAD_FIELDS)
async def test_what_is_wrong_is_pointed_at(
    client: httpx.AsyncClient, uploads: Uploads, engine: Engine, fields: dict[str, Any], pointer: str, sentence: str
) -> None:
    answer = await client.post("/v1/jobs", json={"model": await uploads.model(), **fields})
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (422, "invalid")
    assert answer.headers["content-type"] == "application/problem+json"
    assert [error["pointer"] for error in problem["errors"]] == [pointer]
    assert sentence in problem["errors"][0]["detail"]
    assert jobs(engine) == 0


async def test_an_unknown_step_is_told_all_that_there_are(client: httpx.AsyncClient, uploads: Uploads) -> None:
    answer = await client.post("/v1/jobs", json={"model": await uploads.model(), "recipe": [{"step": "x"}]})
    assert all(name in answer.json()["detail"] for name in STEPS)


BAD_DATA: list[tuple[dict[str, Any], Any, str, str]] = [
    ({}, dataset(array("image", shape=(100, 3, 28, 28)), labels()), "/data/evaluate", "wants (N, 1, 28, 28)"),
    ({}, dataset(array("a"), array("b")), "/data/evaluate", "no array for the model's input 'image'"),
    ({}, dataset(array("image", "uint8")), "/data/evaluate", "normalise"),
    ({}, dataset(array("image"), labels(maximum=10)), "/data/evaluate", "has 10 classes (0 to 9)"),
    (
        {"task": {"label": "z"}},
        LABELLED,
        "/task/label",
        "needs the array 'z', and the dataset for evaluate has: image, labels",
    ),
    ({"task": {"metric": "mse"}}, LABELLED, "/task/metric", "mse does not measure classification"),
    (
        {"targets": {"max_drop": {"metric": "mae", "absolute": 0.1}}},
        LABELLED,
        "/targets/max_drop/metric",
        "there are: accuracy, f1, top5_accuracy",
    ),
]


@pytest.mark.parametrize(("fields", "spec", "pointer", "sentence"), BAD_DATA)
async def test_data_that_does_not_fit_is_refused(
    client: httpx.AsyncClient, uploads: Uploads, fields: dict[str, Any], spec: Any, pointer: str, sentence: str
) -> None:
    model, data = await uploads.model(), await uploads.dataset(spec)
    answer = await client.post("/v1/jobs", json={"model": model, "recipe": HALF, "data": {"evaluate": data}, **fields})
    assert answer.status_code == 422, answer.text
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]
    assert sentence in answer.json()["errors"][0]["detail"]


async def test_everything_that_is_wrong_is_said_at_once(client: httpx.AsyncClient, uploads: Uploads) -> None:
    recipe = [*HALF, {"step": "depth_pruning"}, {"step": "fine_tuning"}]
    data = {"evaluate": await uploads.dataset(dataset(array("image", "uint8")))}
    answer = await client.post("/v1/jobs", json={"model": await uploads.model(), "recipe": recipe, "data": data})
    pointers = {error["pointer"] for error in answer.json()["errors"]}
    assert pointers == {"/recipe/1/step", "/recipe/1", "/recipe/2", "/data/evaluate"}


@pytest.mark.parametrize("step", [{"step": "fine_tuning"}, {"step": "distillation", "label_weight": 0.5}])
async def test_steps_that_look_at_labels_want_them(
    client: httpx.AsyncClient, uploads: Uploads, step: dict[str, Any]
) -> None:
    model, unlabelled = await uploads.model(), await uploads.dataset(UNLABELLED, b"without")
    request = {"model": model, "recipe": [step], "data": {"train": unlabelled}}
    answer = await client.post("/v1/jobs", json=request)
    assert [error["pointer"] for error in answer.json()["errors"]] == ["/data/train"]
    assert "name the array in task.label" in answer.json()["errors"][0]["detail"]
    labelled = await uploads.dataset(LABELLED, b"with")
    assert (await client.post("/v1/jobs", json={**request, "data": {"train": labelled}})).status_code == 202


async def test_a_named_label_may_be_missing_where_nothing_looks_at_it(
    client: httpx.AsyncClient, uploads: Uploads
) -> None:
    train = await uploads.dataset(UNLABELLED, b"train")
    evaluate = await uploads.dataset(dataset(array("image"), labels("digit")), b"evaluate")
    request = {
        "model": await uploads.model(),
        "recipe": [{"step": "distillation"}],
        "data": {"train": train, "evaluate": evaluate},
        "task": {"label": "digit"},
    }
    assert (await client.post("/v1/jobs", json=request)).status_code == 202


async def test_labels_must_mean_the_same_everywhere(client: httpx.AsyncClient, uploads: Uploads) -> None:
    numbers = await uploads.dataset(dataset(array("image"), array("labels", shape=(100, 10))), b"numbers")
    request = {
        "model": await uploads.model(),
        "recipe": HALF,
        "data": {"train": numbers, "evaluate": await uploads.dataset()},
    }
    answer = await client.post("/v1/jobs", json=request)
    assert answer.json()["errors"] == [
        {
            "pointer": "/data",
            "detail": "the labels do not mean the same (train: regression, evaluate: classification); set task.kind",
        }
    ]


async def test_a_teacher_must_have_the_same_signature(client: httpx.AsyncClient, uploads: Uploads) -> None:
    other = TensorSpec(name="image", dtype="float32", shape=("N", 3, 32, 32))
    spec = ModelSpec(format="onnx", signature=Signature(inputs=(other,), outputs=(SCORES,)), stats=ModelStats())
    teacher = await uploads.model(b"another model", spec)
    answer = await client.post("/v1/jobs", json={"model": await uploads.model(), "recipe": HALF, "teacher": teacher})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/teacher"


async def test_a_dry_run_shows_the_plan_and_creates_nothing(
    client: httpx.AsyncClient, uploads: Uploads, engine: Engine
) -> None:
    train, evaluate = await uploads.dataset(UNLABELLED, b"train"), await uploads.dataset(LABELLED, b"evaluate")
    request = {
        "model": await uploads.model(b"x" * 5000, CLASSIFIER),
        "recipe": [{"step": "distillation"}, {"step": "static_quantization"}],
        "data": {"train": train, "evaluate": evaluate},
    }
    answer = await client.post("/v1/jobs?dry_run=true", json=request)
    assert answer.status_code == 200, answer.text
    plan = answer.json()
    assert [(step["needs"], step["uses"], step["dataset"]) for step in plan["steps"]] == [
        ("unlabelled", "train", train),
        ("calibrate", "train", train),
    ]
    assert plan["resolved_recipe"][0]["temperature"] == 2.0
    inferred = {"kind": "classification", "output": "scores", "label": "labels"}
    assert inferred.items() <= plan["task"].items()
    assert plan["prediction"]["size_bytes"] == 1000 + 1000
    assert jobs(engine) == 0
    needy = {**request, "recipe": [{"step": "fine_tuning"}], "data": {}}
    wrong = await client.post("/v1/jobs?dry_run=true", json=needy)
    assert wrong.status_code == 422


async def test_formats_that_cannot_hold_what_the_steps_make_are_pointed_at(
    client: httpx.AsyncClient, uploads: Uploads
) -> None:
    request = {
        "model": await uploads.model(),
        "recipe": [{"step": "static_quantization"}],
        "data": {"calibrate": await uploads.dataset()},
        "formats": ["onnx", "safetensors"],
    }
    answer = await client.post("/v1/jobs", json=request)
    assert [error["pointer"] for error in answer.json()["errors"]] == ["/formats/1"]
    formats = ["packed", "onnx", "packed"]
    job = (await client.post("/v1/jobs", json={**request, "formats": formats})).json()
    assert job["request"]["formats"] == ["packed", "onnx"]


NEEDY = [name for name, step in STEPS.items() if step.needs is not Data.NONE]


@pytest.mark.parametrize("name", [name for name in NEEDY if STEPS[name].synthetic])
async def test_made_up_inputs_stand_in_where_a_step_says_so(
    client: httpx.AsyncClient, uploads: Uploads, name: str
) -> None:
    request = {"model": await uploads.model(), "recipe": [{"step": name}]}
    plan = (await client.post("/v1/jobs?dry_run=true", json=request)).json()
    assert [(step["uses"], step["made_up"]) for step in plan["steps"]] == [(None, True)]
    with_data = {**request, "data": {"train": await uploads.dataset(UNLABELLED)}}
    plan = (await client.post("/v1/jobs?dry_run=true", json=with_data)).json()
    assert [(step["uses"], step["made_up"]) for step in plan["steps"]] == [("train", False)]


@pytest.mark.parametrize(
    "step",
    [*({"step": name} for name in NEEDY if not STEPS[name].synthetic), {"step": "distillation", "label_weight": 0.5}],
    ids=str,
)
async def test_steps_that_cannot_make_up_their_data_say_what_to_send(
    client: httpx.AsyncClient, uploads: Uploads, step: dict[str, Any]
) -> None:
    answer = await client.post("/v1/jobs", json={"model": await uploads.model(), "recipe": [step]})
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert error["pointer"] == "/recipe/0"
    assert error["detail"].startswith(f"{step['step']} needs")
    assert "send data." in error["detail"]


ILLEGAL = [
    (earlier, later, reason)
    for later in STEPS
    for earlier in STEPS
    if (reason := why_not_after(STEPS[later], STEPS[earlier])) is not None
]


@pytest.mark.parametrize(("earlier", "later", "reason"), ILLEGAL[::12])
async def test_an_illegal_order_is_refused_with_the_reason(
    client: httpx.AsyncClient, uploads: Uploads, earlier: str, later: str, reason: str
) -> None:
    request = {"model": await uploads.model(), "data": {"train": await uploads.dataset()}}
    both = {"step": earlier}, {"step": later}
    answer = await client.post("/v1/jobs?dry_run=true", json={**request, "recipe": both})
    assert answer.status_code == 422
    assert {"pointer": "/recipe/1/step", "detail": reason} in answer.json()["errors"]
    if why_not_after(STEPS[earlier], STEPS[later]) is None:
        turned = await client.post("/v1/jobs?dry_run=true", json={**request, "recipe": both[::-1]})
        assert turned.status_code == 200, turned.text


@pytest.mark.parametrize(
    ("recipe", "parameters"),
    [
        ([{"step": "channel_pruning", "ratio": 0.4}], 360),
        ([{"step": "channel_pruning"}, {"step": "half_precision"}], 125),
        ([{"step": "channel_pruning", "parameters_left": 0.3}], 300),
        ([{"step": "channel_pruning", "kinds": ["heads"]}], 1000),
        ([{"step": "depth_pruning"}], 750),
        ([{"step": "depth_pruning", "blocks": 1}], 1000),
        ([{"step": "half_precision", "layers": {"include": ["head"]}}], 1000),
        ([{"step": "magnitude_pruning", "sparsity": 0.9}], 1000),
        ([{"step": "weight_clustering", "values": 16}], 125),
    ],
)
async def test_what_is_removed_is_foreseen(
    client: httpx.AsyncClient, uploads: Uploads, recipe: list[dict[str, Any]], parameters: int
) -> None:
    data = {"calibrate": await uploads.dataset()}
    request = {"model": await uploads.model(b"x" * 5000), "recipe": recipe, "data": data}
    plan = (await client.post("/v1/jobs?dry_run=true", json=request)).json()
    assert plan["prediction"]["size_bytes"] == 1000 + 4 * parameters


async def test_what_zeros_save_is_foreseen_where_the_format_saves_it(
    client: httpx.AsyncClient, uploads: Uploads
) -> None:
    recipe = [{"step": "magnitude_pruning", "sparsity": 0.9}]
    request = {"model": await uploads.model(b"x" * 5000), "recipe": recipe, "formats": ["packed"]}
    foreseen = (await client.post("/v1/jobs?dry_run=true", json=request)).json()["prediction"]
    assert 1000 + 400 < foreseen["size_bytes"] < 1000 + 500  # a tenth of the values, and where they stand
    assert foreseen["unforeseen"] == []


async def test_a_prediction_names_what_it_leaves_out(client: httpx.AsyncClient, uploads: Uploads) -> None:
    recipe = [{"step": "channel_pruning", "kinds": ["heads"]}, {"step": "half_precision"}]
    request = {"model": await uploads.model(b"x" * 5000), "recipe": recipe}
    foreseen = (await client.post("/v1/jobs?dry_run=true", json=request)).json()["prediction"]
    assert foreseen["size_bytes"] == 1000 + 2000
    assert foreseen["unforeseen"] == ["channel_pruning"]
    assert "channel_pruning" in foreseen["basis"]


async def test_a_result_that_is_weights_alone_is_nothing_to_go_on_from(
    client: httpx.AsyncClient, uploads: Uploads
) -> None:
    job = await uploads.job(formats=["safetensors"])
    uploads.worker.claim(job["id"])
    alone = uploads.worker.succeed(job["id"], report(), {"safetensors .safetensors": b"weights"})
    whole = {"model": job["model"], "recipe": [{"step": "distillation"}], "data": {"train": await uploads.dataset()}}
    for field, request in (("model", {"model": alone, "recipe": HALF}), ("teacher", {**whole, "teacher": alone})):
        answer = await client.post("/v1/jobs", json=request)
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, f"/{field}")
    upload = await client.post(f"/v1/models?filename=a.pt&architecture={alone}", content=b"x")
    assert (upload.status_code, upload.json()["errors"][0]["pointer"]) == (422, "query:architecture")


async def test_a_model_that_is_still_being_read_is_waited_for(
    client: httpx.AsyncClient, uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(material, "READING_SECONDS", 0.2)
    model = (await client.post("/v1/models?filename=a.onnx", content=b"x")).json()["id"]
    answer = await client.post("/v1/jobs", json={"model": model, "recipe": HALF})
    assert (answer.status_code, answer.json()["code"]) == (409, "not_ready")
    assert answer.headers["retry-after"]
    uploads.worker.read_model(model)
    assert (await client.post("/v1/jobs", json={"model": model, "recipe": HALF})).status_code == 202


async def test_a_rejected_model_is_refused_with_its_reason(client: httpx.AsyncClient, worker: Worker) -> None:
    model = (await client.post("/v1/models?filename=a.onnx", content=b"x")).json()["id"]
    worker.reject_model(model, "not_onnx", "These bytes are no ONNX model.")
    answer = await client.post("/v1/jobs", json={"model": model, "recipe": HALF})
    assert (answer.status_code, answer.json()["code"]) == (409, "rejected")
    assert "These bytes are no ONNX model." in answer.json()["detail"]


async def test_what_does_not_exist_is_pointed_at(client: httpx.AsyncClient, uploads: Uploads) -> None:
    nobody = "dst_" + "0" * 32
    request = {"model": await uploads.model(), "recipe": HALF, "data": {"calibrate": nobody}}
    answer = await client.post("/v1/jobs", json=request)
    assert answer.status_code == 404
    assert answer.json()["errors"] == [{"pointer": "/data/calibrate", "detail": "there is no such dataset"}]


class TestIdempotency:
    async def test_a_repeated_request_gives_the_same_job(
        self, client: httpx.AsyncClient, uploads: Uploads, engine: Engine
    ) -> None:
        request, headers = {"model": await uploads.model(), "recipe": HALF}, {"Idempotency-Key": "k1"}
        first, second = [await client.post("/v1/jobs", json=request, headers=headers) for _ in range(2)]
        assert first.status_code == second.status_code == 202
        assert first.json()["id"] == second.json()["id"]
        assert jobs(engine) == 1

    async def test_the_key_of_another_request_is_refused(self, client: httpx.AsyncClient, uploads: Uploads) -> None:
        request, headers = {"model": await uploads.model(), "recipe": HALF}, {"Idempotency-Key": "k1"}
        await client.post("/v1/jobs", json=request, headers=headers)
        answer = await client.post("/v1/jobs", json={**request, "seed": 1}, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_key_reused")

    async def test_a_request_that_has_not_ended_is_a_conflict(
        self, client: httpx.AsyncClient, uploads: Uploads, engine: Engine
    ) -> None:
        model = (await client.post("/v1/models?filename=a.onnx", content=b"x")).json()["id"]
        request, headers = {"model": model, "recipe": HALF}, {"Idempotency-Key": "k1"}
        transport = client._transport
        assert isinstance(transport, httpx.ASGITransport)
        services = transport.app.state.services  # type: ignore[attr-defined] # it is our FastAPI
        answers: list[httpx.Response] = []

        async def post() -> None:
            answers.append(await client.post("/v1/jobs", json=request, headers=headers))

        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(post)
                await until(lambda: services.watcher.waiting)
                second = await client.post("/v1/jobs", json=request, headers=headers)
                assert (second.status_code, second.json()["code"]) == (409, "request_in_flight")
                uploads.worker.read_model(model)
        assert answers[0].status_code == 202
        assert jobs(engine) == 1

    async def test_two_processes_make_one_job(
        self, client: httpx.AsyncClient, uploads: Uploads, settings: Settings, api_key: str, engine: Engine
    ) -> None:
        """Both pass every check before either has inserted its job."""
        model = (await client.post("/v1/models?filename=a.onnx", content=b"x")).json()["id"]
        request, headers = {"model": model, "recipe": HALF}, {"Idempotency-Key": "k1"}
        answers: list[httpx.Response] = []

        async def post(poster: httpx.AsyncClient) -> None:
            answers.append(await poster.post("/v1/jobs", json=request, headers=headers))

        apps = [create_app(settings), create_app(settings)]
        with anyio.fail_after(20):
            async with contextlib.AsyncExitStack() as stack:
                for app in apps:
                    await stack.enter_async_context(app.router.lifespan_context(app))
                async with anyio.create_task_group() as tasks:
                    for app in apps:
                        tasks.start_soon(post, await stack.enter_async_context(client_of(app, api_key)))
                    await until(lambda: all(app.state.services.watcher.waiting for app in apps))
                    uploads.worker.read_model(model)
        assert [answer.status_code for answer in answers] == [202, 202]
        assert answers[0].json()["id"] == answers[1].json()["id"]
        assert jobs(engine) == 1

    async def test_another_tenant_has_keys_of_its_own(
        self, client: httpx.AsyncClient, stranger: httpx.AsyncClient, uploads: Uploads, worker: Worker
    ) -> None:
        headers = {"Idempotency-Key": "k1"}
        ours = await client.post("/v1/jobs", json={"model": await uploads.model(), "recipe": HALF}, headers=headers)
        model = await Uploads(stranger, worker).model()
        theirs = await stranger.post("/v1/jobs", json={"model": model, "recipe": HALF}, headers=headers)
        assert ours.json()["id"] != theirs.json()["id"]


@pytest.mark.parametrize("sent", ["application/x-www-form-urlencoded", "text/plain", "jsonish", ""])
async def test_a_body_that_does_not_say_that_it_is_json(client: httpx.AsyncClient, sent: str) -> None:
    answer = await client.post("/v1/jobs", content=b"{}", headers={"Content-Type": sent})
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_format")


async def test_a_model_that_is_removed_while_a_job_is_posted(
    client: httpx.AsyncClient, uploads: Uploads, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the checks and the insertion, as the worst client would time it."""
    model, dataset = await uploads.model(), await uploads.dataset(UNLABELLED)
    plan = service.plan

    async def plan_then_lose(*arguments: Any) -> Any:
        planned = await plan(*arguments)
        assert (await client.delete(lost)).status_code == 204
        return planned

    monkeypatch.setattr(service, "plan", plan_then_lose)
    request = {"model": model, "recipe": HALF, "data": {"calibrate": dataset}}
    for lost in (f"/v1/datasets/{dataset}", f"/v1/models/{model}"):
        answer = await client.post("/v1/jobs", json=request)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), lost
        request["data"] = {}
    assert jobs(engine) == 0


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b'{"budget": {"seconds": NaN}}', 400),
        (b'{"targets": {"size_ratio": 1e999}}', 400),
        (b"[" * 100_000, 400),
        (b'"' + b"x" * (1 << 20) + b'"', 413),
        (b'{"labels": {"a": "\\ud800"}}', 422),
        (b"[]", 422),
        (b"null", 422),
        (b"", 422),
    ],
)
async def test_bodies_that_cannot_be_read(client: httpx.AsyncClient, body: bytes, status: int) -> None:
    answer = await client.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
