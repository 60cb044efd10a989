"""Whatever is sent, the answer is the caller's fault or a success, and never the server's."""

import json
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelpress.steps import STEPS
from tests.service.conftest import Uploads

pytestmark = pytest.mark.anyio

patient = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
texts = st.text(st.characters(), max_size=20)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | texts
    | st.sampled_from([*STEPS, "step", "mdl_" + "0" * 32]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
fields = st.sampled_from(
    ["model", "recipe", "teacher", "data", "task", "targets", "budget", "formats", "runtime", "seed", "queue", "labels"]
)
steps = st.dictionaries(st.sampled_from(["sparsity", "layers", "epochs", "seconds", "step", "keep_float"]), values)


@patient
@given(changes=st.dictionaries(fields, values, max_size=3), step=steps, name=st.sampled_from(list(STEPS)))
async def test_any_job_request(
    client: httpx.AsyncClient, uploads: Uploads, changes: dict[str, Any], step: dict[str, Any], name: str
) -> None:
    if "model" not in changes:
        page = (await client.get("/v1/models?page_size=1")).json()["items"]
        changes["model"] = page[0]["id"] if page else await uploads.model()
    body = json.dumps({"recipe": [{"step": name, **step}], **changes})
    answer = await client.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code < 500, answer.text
    if answer.status_code == 202:
        assert (await client.get(f"/v1/jobs/{answer.json()['id']}")).json()["status"] == "queued"


@patient
@given(text=texts, other=texts)
async def test_any_text_in_addresses_and_headers(client: httpx.AsyncClient, text: str, other: str) -> None:
    def coded(raw: str) -> str:
        return quote(raw.encode("utf-8", "surrogatepass"), safe="")

    one, two = coded(text), coded(other)
    for method, path in (
        ("POST", f"/v1/models?filename={one}.onnx&name={two}"),
        ("POST", f"/v1/datasets?filename={one}.npz"),
        ("GET", f"/v1/models?page_token={one}&page_size={two}"),
        ("GET", f"/v1/models/{one}"),
        ("GET", f"/v1/models/mdl_{two}/content?format={one}"),
        ("GET", f"/v1/jobs?label={one}:{two}"),
        ("GET", f"/v1/jobs/job_{one}/events?after={two}"),
        ("GET", f"/v1/steps/{one}"),
    ):
        headers = [(name, one) for name in ("Prefer", "Repr-Digest", "Range", "If-None-Match", "X-Request-Id")]
        answer = await client.request(method, path, content=b"x" if method == "POST" else None, headers=headers)
        assert answer.status_code < 500, (path, answer.text)
