"""Pages of a list, newest first. A token names the last row that was seen, so new rows never shift a page."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from typing import Annotated, Generic, TypeVar
from uuid import UUID

from fastapi import Depends, Query
from pydantic import BaseModel, Field

from app.problems import FieldError, Invalid

Item = TypeVar("Item")


class Page(BaseModel, Generic[Item]):
    items: list[Item]
    next_page_token: str | None = Field(None, description="null on the last page")


@dataclass(frozen=True)
class PageRequest:
    size: int
    before: UUID | None


async def page_request(
    page_size: Annotated[int, Query(ge=1, le=100)] = 20,
    page_token: Annotated[str | None, Query(description="`next_page_token` of the page before")] = None,
) -> PageRequest:
    if page_token is None:
        return PageRequest(page_size, None)
    try:
        return PageRequest(page_size, UUID(bytes=urlsafe_b64decode(page_token + "==")))
    except ValueError:
        detail = "this is no token of a page of this list"
        raise Invalid.at(FieldError(pointer="query:page_token", detail=detail)) from None


def page_token(last: UUID) -> str:
    return urlsafe_b64encode(last.bytes).decode().rstrip("=")


Paging = Annotated[PageRequest, Depends(page_request)]
