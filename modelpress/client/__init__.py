"""Talk to a Modelpress service: `Client`, and `AsyncClient` with the same methods awaited."""

from modelpress.client.awaiting import AsyncClient
from modelpress.client.blocking import Client
from modelpress.client.errors import ModelpressError
from modelpress.client.resources import Comparison, Dataset, Job, JobEvent, Model, Page, Plan, StepInfo

__all__ = [
    "AsyncClient",
    "Client",
    "Comparison",
    "Dataset",
    "Job",
    "JobEvent",
    "Model",
    "ModelpressError",
    "Page",
    "Plan",
    "StepInfo",
]
