"""Types of fields that many requests and answers share."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

from pydantic import AfterValidator, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from app import ids
from app.web.strict_json import storable


@dataclass(frozen=True)
class Prefixed:
    """A uuid inside, a prefixed id outside."""

    prefix: str
    what: str

    def __get_pydantic_core_schema__(self, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self._read, serialization=core_schema.plain_serializer_function_ser_schema(self._write)
        )

    def __get_pydantic_json_schema__(self, _schema: CoreSchema, _handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {
            "type": "string",
            "pattern": f"^{self.prefix}_[0-9a-f]{{32}}$",
            "description": f"id of a {self.what}",
        }

    def _read(self, value: object) -> UUID:
        return value if isinstance(value, UUID) else ids.parse(self.prefix, str(value))

    def _write(self, value: UUID) -> str:
        return ids.show(self.prefix, value)


ModelId = Annotated[UUID, Prefixed(ids.MODEL, "model")]
DatasetId = Annotated[UUID, Prefixed(ids.DATASET, "dataset")]
JobId = Annotated[UUID, Prefixed(ids.JOB, "job")]
ComparisonId = Annotated[UUID, Prefixed(ids.COMPARISON, "comparison")]
KeyId = Annotated[UUID, Prefixed(ids.KEY, "key")]

Timestamp = Annotated[datetime, AfterValidator(lambda value: value.astimezone(UTC))]
"""Always shown in UTC, whatever time zone the database session has."""

Text = Annotated[str, AfterValidator(storable)]
Name = Annotated[Text, Field(min_length=1, max_length=255)]
