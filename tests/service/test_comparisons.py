"""Results side by side, from their reports."""

from typing import Any

import httpx
import pytest

from modelpress.report import FileSize, Report, Traffic, Verdict
from tests.service.as_worker import Worker
from tests.service.conftest import Uploads
from tests.service.examples import report

pytestmark = pytest.mark.anyio


async def results(uploads: Uploads, worker: Worker, baseline: str, reports: dict[str, Report]) -> dict[str, str]:
    """Id of the result that each report is of."""
    found = {}
    for name, measured in reports.items():
        job = await uploads.job(model=baseline)
        worker.claim(job["id"])
        found[name] = worker.succeed(job["id"], measured, {"onnx .onnx": name.encode()})
    return found


async def test_smaller_inputs_and_answers_stand_beside_the_sizes_of_the_files(
    client: httpx.AsyncClient, uploads: Uploads, worker: Worker
) -> None:
    baseline = await uploads.model()
    bytes_in = report().model_copy(update={"traffic": Traffic(sent_bytes=(4000, 1000), answered_bytes=(40, 40))})
    made = await results(uploads, worker, baseline, {"bytes in": bytes_in, "as before": report()})
    request = {"baseline": baseline, "candidates": list(made.values())}
    rows = {row["model_id"]: row for row in (await client.post("/v1/comparisons", json=request)).json()["candidates"]}
    assert rows[made["bytes in"]]["traffic"] == {"sent_bytes": [4000, 1000], "answered_bytes": [40, 40]}
    assert rows[made["as before"]]["traffic"] is None


async def test_the_table_is_taken_from_the_reports(client: httpx.AsyncClient, uploads: Uploads, worker: Worker) -> None:
    baseline = await uploads.model()
    made = await results(
        uploads,
        worker,
        baseline,
        {
            "small": report(size=1000, latency_ratio=1.5, change=-0.01),
            "fast": report(size=2000, latency_ratio=2.0, change=-0.001),
            "beaten": report(size=2500, latency_ratio=1.2, change=-0.02, verdict=Verdict.DEGRADED),
            "worse than nothing": report(size=5000, latency_ratio=0.5, change=-0.1, verdict=Verdict.NO_GAIN),
        },
    )
    request = {"baseline": baseline, "candidates": list(made.values())}
    answer = await client.post("/v1/comparisons", json=request)
    assert answer.status_code == 201, answer.text
    comparison: dict[str, Any] = answer.json()

    assert comparison["baseline"]["size"]["bytes"] == 4000
    assert comparison["axes"] == ["size", "latency", "quality"]
    names = {model_id: name for name, model_id in made.items()}
    rows = {names[row["model_id"]]: row for row in comparison["candidates"]}
    assert list(rows) == ["small", "fast", "beaten", "worse than nothing"]
    assert {name: row["pareto_optimal"] for name, row in rows.items()} == {
        "small": True,
        "fast": True,
        "beaten": False,
        "worse than nothing": False,
    }
    small = rows["small"]
    assert (small["size"]["bytes"], small["size_ratio"], small["verdict"]) == (1000, 4.0, "passed")
    assert (small["latency"][0]["batch"], small["latency"][0]["ratio"]) == (1, 1.5)
    assert (small["quality"]["metric"], small["quality"]["n"], small["quality"]["change"]) == ("accuracy", 100, -0.01)
    assert small["agreement"]["top1"] == 0.99
    assert small["steps"] == ["half_precision"]
    assert answer.headers["location"] == f"/v1/comparisons/{comparison['id']}"
    assert (await client.get(answer.headers["location"])).json() == comparison
    assert (await client.get("/v1/comparisons")).json()["items"] == [comparison]


async def test_agreement_counts_where_quality_is_missing(
    client: httpx.AsyncClient, uploads: Uploads, worker: Worker
) -> None:
    baseline = await uploads.model()
    reports = {"a": report(), "b": report(size=2000).model_copy(update={"quality": None})}
    made = await results(uploads, worker, baseline, reports)
    request = {"baseline": baseline, "candidates": list(made.values())}
    comparison = (await client.post("/v1/comparisons", json=request)).json()
    assert comparison["axes"] == ["size", "latency", "agreement"]


async def test_what_makes_figures_hard_to_compare_is_noted(
    client: httpx.AsyncClient, uploads: Uploads, worker: Worker
) -> None:
    baseline = await uploads.model()
    elsewhere = report().environment.model_copy(update={"cpu": "Another CPU"})
    packed = (FileSize(format="packed", bytes=2000, ratio=2),)
    other = report(size=2000).model_copy(update={"environment": elsewhere, "files": packed})
    reports = {"a": report(), "b": other}
    made = await results(uploads, worker, baseline, reports)
    request = {"baseline": baseline, "candidates": list(made.values())}
    notes = (await client.post("/v1/comparisons", json=request)).json()["notes"]
    assert len(notes) == 2
    assert "different CPUs" in notes[0]
    assert "onnx, packed" in notes[1]


async def test_only_results_of_the_baseline_are_compared(client: httpx.AsyncClient, uploads: Uploads) -> None:
    baseline, other = await uploads.model(), await uploads.model(b"other")
    answer = await client.post("/v1/comparisons", json={"baseline": baseline, "candidates": [other]})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/candidates/0"
    missing = await client.post("/v1/comparisons", json={"baseline": baseline, "candidates": ["mdl_" + "0" * 32]})
    assert missing.status_code == 404
    assert missing.json()["errors"][0]["pointer"] == "/candidates/0"
    nothing = await client.post("/v1/comparisons", json={"baseline": baseline, "candidates": []})
    assert nothing.status_code == 422
