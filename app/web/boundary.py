"""The outermost layer: every request gets an id, is counted and timed, and ends in an answer, whatever happens."""

import logging
import re
import time
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.health.metrics import Metrics
from app.problems import InternalError

CLIENT_LEFT = 499

log = logging.getLogger(__name__)


class Boundary:
    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _request_id(scope)
        started = time.perf_counter()
        status = 0

        async def tagged(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        try:
            await self.app(scope, receive, tagged)
        except Exception:
            log.exception("%s %s failed, request id %s", scope["method"], scope["path"], request_id)
            if status:
                raise  # the head is out: cutting the connection is all that is left to tell the client
            response = InternalError(f"Something went wrong here; the request id is {request_id}.").response()
            await response(scope, receive, tagged)
        finally:
            route = getattr(scope.get("route"), "path", "unknown")
            self.metrics.request(scope["method"], route, status or CLIENT_LEFT, time.perf_counter() - started)


def _request_id(scope: Scope) -> str:
    """The caller's own id, where it is harmless to log."""
    sent = Headers(scope=scope).get("x-request-id", "")
    return sent if re.fullmatch(r"[\w.-]{1,64}", sent, re.ASCII) else uuid4().hex
