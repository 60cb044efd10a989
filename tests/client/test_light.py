"""What users import stays light, and what the service answers fits what the client expects."""

import subprocess
import sys
from typing import Any

import httpx
import pytest

from modelpress.client import Comparison, Dataset, Job, JobEvent, Model, Plan, StepInfo
from modelpress.client.resources import Answer
from tests.service_process import Service


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_importing_the_package_loads_next_to_nothing() -> None:
    assert not {"httpx", "pydantic", "torch", "typer"} & loaded_by("import modelpress")


def test_the_client_needs_no_server_and_no_torch() -> None:
    modules = loaded_by("from modelpress import Client")
    assert "httpx" in modules
    assert not {"torch", "numpy", "fastapi", "sqlalchemy", "celery", "app", "typer"} & modules


def test_the_command_line_needs_no_server_and_no_torch() -> None:
    assert not {"torch", "numpy", "fastapi", "sqlalchemy", "celery", "app"} & loaded_by("import modelpress.cli")


@pytest.mark.parametrize("kind", [Model, Dataset, Job, JobEvent, Plan, StepInfo, Comparison])
def test_every_field_that_the_client_reads_is_one_that_the_service_has(service: Service, kind: type[Answer]) -> None:
    schemas: dict[str, Any] = httpx.get(f"{service.url}/openapi.json").json()["components"]["schemas"]
    known = schemas[kind.__name__]["properties"]
    assert {field.alias or name for name, field in kind.model_fields.items()} <= known.keys()
