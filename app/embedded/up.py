"""`modelpress up`: everything on one machine, started in order, watched, and ended with us."""

import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from secrets import token_urlsafe
from types import FrameType
from typing import NoReturn

import httpx
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from sqlalchemy.exc import OperationalError

from app.auth_keys import new_key
from app.db.migrate import upgrade
from app.embedded.child import StartError
from app.embedded.home import kept, locked
from app.embedded.postgres import Postgres
from app.embedded.redis import Redis
from app.embedded.service import Part, Service, Watch, stop_all
from app.settings import UpSettings

READY_SECONDS = 60
GRACE_SECONDS = 30
PORT_SECONDS = 2  # how long a port may still be held by a service that was killed
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

say = partial(print, flush=True)


class Stopped(BaseException):
    """Raised in the main thread by the first SIGINT, SIGTERM or SIGHUP; later ones change nothing."""


def run(host: str, port: int) -> None:
    """Returns after a signal, when everything has ended. Raises SystemExit with a sentence where it cannot start."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        with stoppable():
            settings = UpSettings()
            with locked(settings.home), ExitStack() as stack:
                watch_over(start(stack, settings, host, port))
    except Stopped:
        say("Stopped.")
    except ValidationError as error:
        sys.exit(f"Modelpress did not start: {'; '.join(map(wrong_setting, error.errors()))}")
    except StartError as error:
        sys.exit(f"Modelpress did not start: {error}")


def wrong_setting(error: ErrorDetails) -> str:
    name = str(error["loc"][0]).upper()
    return f"{name if name.endswith('_URL') else f'MODELPRESS_{name}'}: {error['msg']}"


@contextmanager
def stoppable() -> Iterator[None]:
    def stop(_signal: int, _frame: FrameType | None) -> NoReturn:
        for number in before:
            signal.signal(number, signal.SIG_IGN)
        say("Stopping …")
        raise Stopped

    # what is ignored stays so: nohup
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def start(stack: ExitStack, settings: UpSettings, host: str, port: int) -> list[Part]:
    """Everything is running and /readyz is good. The stack ends it in the reverse order."""
    home = settings.home
    logs = home / "logs"
    port = claim_port(host, port)
    parts: list[Part] = []
    database_url, redis_url = settings.database_url, settings.redis_url
    if database_url is None:
        postgres = stack.enter_context(Postgres(home / "postgres", logs=logs))
        database_url = postgres.url
        parts.append(postgres)
    if redis_url is None:
        redis = stack.enter_context(Redis(home / "redis", logs=logs))
        redis_url = redis.url
        parts.append(redis)
    try:
        upgrade(database_url)
    except OperationalError as error:
        raise StartError(f"the database does not answer: {error.orig}") from error

    key_file = home / "api-key"
    first_start = not key_file.exists()
    api_key = settings.api_key or kept(key_file, new_key)
    env = os.environ | {
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "MODELPRESS_HOME": str(home),
        "MODELPRESS_SECRET": settings.secret or kept(home / "secret", lambda: token_urlsafe(32)),
    }
    services = our_services(env, api_key, host, port, logs)
    stack.callback(stop_all, services, GRACE_SECONDS)
    for service in services:
        service.start()
    url = f"http://{'127.0.0.1' if host in {'0.0.0.0', '::'} else f'[{host}]' if ':' in host else host}:{port}"  # noqa: S104 - compared, not bound
    wait_ready(url, services)

    say(f"Modelpress runs at  {url}")
    say(f"Documentation       {url}/docs")
    if settings.api_key:
        say("API key             the one in MODELPRESS_API_KEY")
    elif first_start:
        say(f"API key             {api_key}  (kept in {key_file})")
    else:
        say(f"API key             in {key_file}")
    say(f"Logs                {logs}")
    say("Ctrl-C ends it.")
    return [*parts, *services]


def our_services(env: dict[str, str], api_key: str, host: str, port: int, logs: Path) -> list[Service]:
    python = [sys.executable, "-m"]
    api = [*python, "uvicorn", "--factory", "app.main:create_app", "--host", host, "--port", str(port)]
    worker = [*python, "celery", "-A", "workers.celery_app", "worker", "--pool", "threads"]
    return [
        Service("api", [*api, "--timeout-graceful-shutdown", "5"], env | {"MODELPRESS_API_KEY": api_key}, logs),
        Service("worker", [*worker, "--loglevel", "INFO"], env, logs),
        Service("reconciler", [*python, "workers.reconciler"], env, logs),
    ]


def claim_port(host: str, port: int) -> int:
    """The port, or a free one for 0. Raises StartError where it is taken, or the host is not ours."""
    deadline = time.monotonic() + PORT_SECONDS
    while True:
        try:
            with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
                free: int = probe.getsockname()[1]
                return free
        except OSError as error:
            if time.monotonic() > deadline or isinstance(error, socket.gaierror):
                raise StartError(
                    f"cannot listen on {host}, port {port} ({error}). Choose another with --port."
                ) from error
        time.sleep(0.1)


def wait_ready(url: str, services: list[Service]) -> None:
    deadline = time.monotonic() + READY_SECONDS
    with httpx.Client(base_url=url, trust_env=False, timeout=5) as client:
        while True:
            for service in services:
                if not service.running:
                    raise StartError(f"{service.name} has ended, {service.last_words}")
            try:
                answer = client.get("/readyz")
            except httpx.TransportError as error:
                said = str(error)
            else:
                if answer.is_success:
                    return
                said = answer.text
            if time.monotonic() > deadline:
                raise StartError(f"the service is not ready after {READY_SECONDS} s: {said}")
            time.sleep(0.05)


def watch_over(parts: list[Part]) -> NoReturn:
    watches = [Watch(part) for part in parts]
    while True:
        for watch in watches:
            watch.look()
        time.sleep(0.2)
