"""The OpenAPI document: FastAPI's, with the problem document that every error answer refers to."""

from typing import Any

from fastapi import FastAPI

from app.problems import ProblemDocument


def install(app: FastAPI) -> None:
    generate = app.openapi

    def with_problems() -> dict[str, Any]:
        document = generate()
        schemas = document["components"]["schemas"]
        if "ProblemDocument" not in schemas:
            schema = ProblemDocument.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas |= schema.pop("$defs")
            schemas["ProblemDocument"] = schema
        return document

    app.openapi = with_problems  # type: ignore[method-assign] # FastAPI's documented way
