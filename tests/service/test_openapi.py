"""The OpenAPI document tells the truth about errors, and is complete."""

import re
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app import problems
from app.jobs.schemas import JobRequest
from app.problems import Problem
from modelpress.steps import check_order

pytestmark = pytest.mark.anyio

OPEN = {"/livez", "/readyz", "/version", "/metrics"}


@pytest.fixture
def document(app: FastAPI) -> dict[str, Any]:
    return app.openapi()


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (method.upper(), path, operation)
        for path, item in document["paths"].items()
        for method, operation in item.items()
    ]


def codes(operation: dict[str, Any]) -> set[str]:
    found: set[str] = set()
    for answer in operation["responses"].values():
        schema = answer.get("content", {}).get("application/problem+json", {}).get("schema", {})
        found |= set(schema.get("properties", {}).get("code", {}).get("enum", []))
    return found


def test_every_endpoint_documents_its_problems(document: dict[str, Any]) -> None:
    for method, path, operation in operations(document):
        described = codes(operation)
        assert "internal_error" in described, (method, path)
        if path not in OPEN:
            assert {"unauthenticated", "unavailable"} <= described, (method, path)
            assert operation["security"], (method, path)
        if "{" in path:
            assert "not_found" in described, (method, path)
        if operation.get("parameters"):
            assert "invalid" in described, (method, path)
        if "application/json" in operation.get("requestBody", {}).get("content", {}):
            assert {"invalid", "malformed_request", "too_large"} <= described, (method, path)


def test_every_problem_is_documented_somewhere(document: dict[str, Any]) -> None:
    classes = [
        c for c in vars(problems).values() if isinstance(c, type) and issubclass(c, Problem) and c is not Problem
    ]
    documented = set().union(*(codes(operation) for *_, operation in operations(document)))
    unreachable_by_documented_routes = {"method_not_allowed"}
    assert {c.code for c in classes} - unreachable_by_documented_routes == documented
    assert len({c.code for c in classes}) == len(classes)
    assert all(c.__doc__ for c in classes)


def test_no_answer_is_the_frameworks_own(document: dict[str, Any]) -> None:
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    references = set(re.findall(r"#/components/schemas/([\w.-]+)", str(document)))
    assert references <= set(document["components"]["schemas"])


def test_the_example_of_a_job_is_a_job(document: dict[str, Any]) -> None:
    (example,) = document["components"]["schemas"]["JobRequest"]["examples"]
    request = JobRequest.model_validate(example)
    check_order(request.recipe)


def test_every_operation_says_what_it_does(document: dict[str, Any]) -> None:
    for method, path, operation in operations(document):
        assert operation.get("description") or path in OPEN, (method, path)
        assert operation["tags"], (method, path)
    names = [operation["operationId"] for *_, operation in operations(document)]
    assert len(names) == len(set(names))


async def test_the_document_is_served(client: httpx.AsyncClient, document: dict[str, Any]) -> None:
    assert (await client.get("/openapi.json")).json() == document


async def test_the_docs_page_needs_no_internet(client: httpx.AsyncClient) -> None:
    page = await client.get("/docs")
    assert page.status_code == 200
    assert "https://" not in page.text
    linked = re.findall(r"""(?:src|href)="([^"]+)"|url: ['"]([^'"]+)""", page.text)
    assert len(linked) == 4
    for link in (one or other for one, other in linked):
        assert (await client.get(httpx.URL("http://service/docs").join(link))).status_code == 200, link
