"""The catalogue is made from the steps' own declarations."""

import httpx
import pytest

from modelpress.steps import STEPS

pytestmark = pytest.mark.anyio


async def test_every_step_is_there_with_all_that_it_declares(client: httpx.AsyncClient) -> None:
    items = (await client.get("/v1/steps")).json()["items"]
    assert [item["name"] for item in items] == list(STEPS)
    for item in items:
        step = STEPS[item["name"]]
        assert item["data"] == step.needs
        assert set(item["may_follow"]) == step.after & STEPS.keys()
        assert set(item["may_precede"]) == {name for name, later in STEPS.items() if item["name"] in later.after}
        assert item["paper"]
        assert item["description"]
        assert set(item["options"]["properties"]) == set(step.model_fields)
        assert (await client.get(f"/v1/steps/{item['name']}")).json() == item
