from collections.abc import Iterator

import pytest

from modelpress import Client
from modelpress.client import Job, Model
from tests.service_process import EXAMPLE, Service


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with service.client() as client:
        yield client


@pytest.fixture(scope="session")
def lenet(service: Service) -> Model:
    with service.client() as client:
        return client.wait(client.upload_model(EXAMPLE / "lenet5.onnx"), timeout=180)


@pytest.fixture(scope="session")
def halved(service: Service, lenet: Model) -> Job:
    """A job that has succeeded."""
    with service.client() as client:
        job = client.create_job(lenet.id, [{"step": "half_precision"}], labels={"made": "by the fixture"})
        return client.wait_job(job.id, timeout=240)
