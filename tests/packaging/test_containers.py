"""What the Dockerfile and docker-compose.yml say is what the project has. No engine is needed to know."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import AliasChoices

from app.settings import Settings

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
STAGES = re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.MULTILINE)
EXTRAS: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
WORKER_ONLY = (
    "torch",
    "onnx",
    "onnxruntime",
    "numpy",
    "ml_dtypes",
    "psutil",
    "pyarrow",
    "safetensors",
    "zstandard",
    "constriction",
)


def settings_names() -> set[str]:
    names = set()
    for name, field in Settings.model_fields.items():
        alias = field.validation_alias
        assert not isinstance(alias, AliasChoices)
        names.add(str(alias) if alias else f"MODELPRESS_{name.upper()}")
    return names


def commands() -> list[list[str]]:
    """Every command line of both files."""
    found = [json.loads(line) for line in re.findall(r"CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)]
    return [*found, *(service["command"] for service in OURS.values() if "command" in service)]


def test_both_files_are_read() -> None:
    assert set(OURS) == {"migrate", "api", "reconciler", "worker", "worker-gpu"}
    assert {"api", "worker-cpu", "worker-gpu"} <= set(STAGES)
    assert len(commands()) >= 7


@pytest.mark.parametrize("name", OURS)
def test_settings_are_those_of_the_project(name: str) -> None:
    given = OURS[name]["environment"]
    assert given.keys() <= settings_names()
    assert {"DATABASE_URL", "REDIS_URL", "MODELPRESS_SECRET"} <= given.keys()


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_programs_are_those_of_the_project(command: list[str]) -> None:
    match command:
        case ["python", "-m", module]:
            assert find_spec(module) is not None
        case ["python", "-c", code]:
            compile(code, "healthcheck", "exec")
        case ["uvicorn", "--factory", target, "--host", "0.0.0.0", "--port", port, *_]:
            module, _, factory = target.partition(":")
            imported = f"import {module}; assert callable({module}.{factory})"
            subprocess.run([sys.executable, "-c", imported], check=True, cwd=ROOT)
            assert f"EXPOSE {port}" in DOCKERFILE
            assert f"http://127.0.0.1:{port}/livez" in DOCKERFILE
        case ["celery", "-A", module, "worker", *options]:
            assert find_spec(module) is not None
            known = subprocess.run(
                [sys.executable, "-m", "celery", "worker", "--help"], capture_output=True, text=True, check=True
            ).stdout
            assert all(option in known for option in options if option.startswith("-"))
        case _:
            pytest.fail(f"not known here: {command}")


def test_the_service_is_the_one_that_an_embedded_start_runs() -> None:
    """One way to start each process, whoever starts it."""
    embedded = (ROOT / "app" / "embedded" / "up.py").read_text()
    for words in ('"uvicorn", "--factory", "app.main:create_app"', '"-A", "workers.celery_app", "worker"'):
        assert words in embedded
        assert words in DOCKERFILE


def test_images_are_built_from_stages_and_extras_that_exist() -> None:
    for service in OURS.values():
        assert service["build"]["target"] in STAGES
    extras = re.findall(r"'\.\[(\w+)\]'", DOCKERFILE)
    assert len(extras) == 3
    assert set(extras) <= EXTRAS.keys()
    assert extras[0] == "server"


def test_what_is_copied_is_there_and_not_ignored() -> None:
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        name for line in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE) for name in line.split()
    }
    assert copied == let_in
    assert all((ROOT / name).exists() for name in copied)


@pytest.mark.parametrize("module", ["app.main", "app.db.migrate", "workers.reconciler"])
def test_the_api_image_needs_nothing_of_the_worker(module: str) -> None:
    blocked = f"import sys; sys.modules.update(dict.fromkeys({WORKER_ONLY})); import {module}"
    subprocess.run([sys.executable, "-c", blocked], check=True, cwd=ROOT)


def test_images_run_as_a_user_without_rights_and_name_no_hosts() -> None:
    for stage in ("api", "worker"):
        body = DOCKERFILE.split(f" AS {stage}\n")[1].split("\nFROM ")[0]
        assert "USER 10001" in body
        assert "HEALTHCHECK" in body
    text = DOCKERFILE + (ROOT / "docker-compose.yml").read_text()
    assert set(re.findall(r"https?://([^:/]+)", text)) == {"127.0.0.1"}


def test_a_worker_is_confined() -> None:
    for name in ("worker", "worker-gpu"):
        worker = SERVICES[name]
        assert worker["read_only"] is True
        assert worker["cap_drop"] == ["ALL"]
        assert worker["security_opt"] == ["no-new-privileges:true"]
        assert worker["environment"]["MODELPRESS_SCRATCH"].startswith("/tmp")
        assert worker["tmpfs"][0].startswith("/tmp:")


def test_everything_is_waited_for_and_given_time_to_end() -> None:
    for name in ("postgres", "redis"):
        assert "healthcheck" in SERVICES[name]
    assert SERVICES["migrate"]["depends_on"]["postgres"]["condition"] == "service_healthy"
    for name in ("api", "reconciler", "worker", "worker-gpu"):
        assert SERVICES[name]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"
    grace = Settings.model_fields["shutdown_seconds"].default
    assert int(SERVICES["worker"]["stop_grace_period"].removesuffix("s")) > grace
    assert "noeviction" in shlex.join(SERVICES["redis"]["command"])


def test_what_the_user_sets_is_described() -> None:
    asked = set(re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yml").read_text()))
    described = set(re.findall(r"^(\w+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert asked == described
