"""The HTTP service. `uvicorn --factory app.main:create_app`"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from app.comparisons.endpoints import router as comparisons
from app.context import running
from app.datasets.endpoints import router as datasets
from app.health.endpoints import router as health
from app.health.metrics import Metrics
from app.jobs.endpoints import router as jobs
from app.keys.endpoints import router as keys
from app.keys.service import create_first
from app.models.endpoints import router as models
from app.settings import Settings, get_settings
from app.steps.endpoints import router as steps
from app.web import docs, openapi, problem_handlers
from app.web.boundary import Boundary
from modelpress import __version__


def create_app(settings: Settings | None = None) -> FastAPI:
    settings = settings or get_settings()
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with running(settings, metrics) as services:
            await create_first(services)
            app.state.services = services
            yield

    app = FastAPI(
        title="Modelpress",
        version=__version__,
        description="POST a model, get a smaller one back, with proof.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    for router in (models, datasets, jobs, steps, comparisons, keys, health):
        app.include_router(router)
    problem_handlers.install(app)
    openapi.install(app)
    docs.install(app)
    app.add_middleware(Boundary, metrics=metrics)
    return app
