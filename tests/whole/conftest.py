from collections.abc import Iterator

import pytest

from modelpress import Client
from modelpress.client import Model
from tests.service_process import EXAMPLE, Service, service

__all__ = ["service"]


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with service.client() as client:
        yield client


@pytest.fixture(scope="session")
def lenet(service: Service) -> Model:
    with service.client() as client:
        return client.wait(client.upload_model(EXAMPLE / "lenet5.onnx"), timeout=180)
