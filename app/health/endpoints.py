from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from app.context import Context
from app.health import service
from app.health.schemas import Alive, Readiness, Version
from app.problems import described
from modelpress import __version__

router = APIRouter(tags=["health"])


@router.get("/livez", responses=described())
async def live() -> Alive:
    """The process answers."""
    return Alive()


@router.get("/readyz", responses={**described(), 503: {"model": Readiness, "description": "a part is down"}})
async def ready(response: Response, context: Context) -> Readiness:
    """Whether everything that requests need answers, and what does not."""
    found = await service.readiness(context)
    response.status_code = 200 if found.status == "ready" else 503
    return found


@router.get("/version", responses=described())
async def version() -> Version:
    return Version(version=__version__)


@router.get("/metrics", response_class=Response, responses={**described(), 200: {"content": {"text/plain": {}}}})
async def metrics(context: Context) -> Response:
    """For Prometheus."""
    return Response(await service.metrics_page(context), media_type=CONTENT_TYPE_LATEST)
