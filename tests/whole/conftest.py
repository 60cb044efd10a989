"""Tests of the whole service, from HTTP to the runner and back."""

from collections.abc import Iterator

import pytest

from modelpress import Client
from tests.client.conftest import client, lenet
from tests.service_process import EXAMPLE, Service

__all__ = ["client", "lenet"]


@pytest.fixture(scope="module", autouse=True)
def the_service_goes_on(service: Service) -> Iterator[None]:
    """After all of it the same worker compresses a model, and nothing has answered with a 500."""
    yield
    with service.client() as client:
        model = client.wait(client.upload_model(EXAMPLE / "lenet5.onnx"), timeout=60)
        job = client.wait_job(client.create_job(model.id, [{"step": "half_precision"}]).id, timeout=120)
    assert job.status == "succeeded"
    assert job.attempt == 1


@pytest.fixture(scope="module")
def client_of_module(service: Service) -> Iterator[Client]:
    """For what the tests of a module share."""
    with service.client() as client:
        yield client
