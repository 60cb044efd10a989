"""The catalogue is made from the steps' own declarations."""

import httpx
import pytest

from modelpress.steps import STEPS, Step, allowed_before

pytestmark = pytest.mark.anyio


async def test_every_step_is_there_with_all_that_it_declares(client: httpx.AsyncClient) -> None:
    items = (await client.get("/v1/steps")).json()["items"]
    assert [item["name"] for item in items] == list(STEPS)
    for item in items:
        step = STEPS[item["name"]]
        assert item["data"] == step.needs
        assert item["may_follow"] == allowed_before(step)
        later = {name for name, other in STEPS.items() if item["name"] in allowed_before(other)}
        assert set(item["may_precede"]) == later
        assert item["made_up"] == step.synthetic
        assert item["stage"] == step.stage.name.lower()
        assert item["fixes"] == step.stage.fixes
        assert item["description"]
        assert set(item["options"]["properties"]) == set(step.model_fields)
        assert (await client.get(f"/v1/steps/{item['name']}")).json() == item


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
async def test_options_that_were_filled_in_are_not_taken_for_chosen_ones(step: type[Step]) -> None:
    filled = step.model_validate(step.model_construct().model_dump())
    assert filled.model_fields_set == set(step.model_fields)
    assert filled.changed() == set()
