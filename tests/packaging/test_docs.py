"""The documentation says what the code does, and its examples run as they stand."""

import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from docs.generate import settings_page, steps_page
from modelpress.packed import unpack
from modelpress.steps import STEPS
from tests.service_process import EXAMPLE, Service

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
RECIPES = (ROOT / "docs" / "recipes.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(heading: str, language: str) -> str:
    """The code of one section, in its order."""
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    found = re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)
    assert found
    return "\n".join(found)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder in which the examples may leave their results."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    return tmp_path


def run(argv: list[str], service: Service, folder: Path) -> str:
    env = service.env | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(argv, env=env, cwd=folder, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_the_walk_with_curl(service: Service, checkout: Path) -> None:
    said = run(["bash", "-euo", "pipefail", "-c", blocks("With curl", "bash")], service, checkout)
    assert "event: status" in said
    assert '"pareto_optimal"' in said
    assert '"size_ratio"' in said
    assert (checkout / "small.onnx").stat().st_size < 250_000


@pytest.mark.slow
def test_the_command_line(service: Service, checkout: Path) -> None:
    said = run(["bash", "-euo", "pipefail", "-c", blocks("From the command line", "bash")], service, checkout)
    assert "× smaller" in said
    assert "needs data: calibrate" in said
    assert (checkout / "resnet.small.onnx").exists()
    assert (checkout / "resnet.half.onnx").stat().st_size < 250_000


@pytest.mark.slow
def test_a_hugging_face_folder(service: Service, checkout: Path) -> None:
    said = run(["bash", "-euo", "pipefail", "-c", blocks("A Hugging Face folder", "bash")], service, checkout)
    assert "file as packed" in said
    assert "(dense): Linear(in_features=64, out_features=128, bias=True)" in said
    whole, pruned = checkout / "tiny-bert" / "model.safetensors", checkout / "tiny-bert.compressed.zip"
    assert pruned.stat().st_size < 0.9 * whole.stat().st_size


@pytest.mark.slow
def test_the_recipes(service: Service, checkout: Path) -> None:
    program = "\n".join(re.findall(r"```bash\n(.*?)```", RECIPES, re.DOTALL))
    said = run(["bash", "-euo", "pipefail", "-c", program], service, checkout).splitlines()
    unpack(checkout / "lenet5.packed", checkout / "lenet5.small.onnx")
    assert 15 * (checkout / "lenet5.packed").stat().st_size < (EXAMPLE / "lenet5.onnx").stat().st_size
    assert said.pop(0) == "0.35"
    assert "'targets_met': True" in said[0]
    assert said[1:3] == ["teacher", "True"]
    assert "made-up" in said[3]
    assert "magnitude_pruning cannot come after half_precision" in said[4]
    assert "'unforeseen': []" in said[5]


@pytest.mark.slow
def test_the_program(service: Service, checkout: Path) -> None:
    said = run([sys.executable, "-c", blocks("From Python", "python")], service, checkout)
    assert "progress" in said
    assert (checkout / "small-from-python.onnx").exists()


def test_make_targets_that_are_named_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = set(re.findall(r"^make (\w+)", README, re.MULTILINE))
    assert {"demo", "test", "up"} <= named
    assert all(f"\n{target}:" in makefile for target in named)


def test_the_readme_names_every_step() -> None:
    assert [name for name in STEPS if f"`{name}`" not in README] == []


def test_generated_pages_are_fresh() -> None:
    """`make docs` writes them."""
    assert (ROOT / "docs" / "steps.md").read_text() == steps_page()
    assert (ROOT / "docs" / "settings.md").read_text() == settings_page()


def test_every_path_of_the_api_is_described(service: Service) -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    paths = httpx.get(f"{service.url}/openapi.json").json()["paths"]
    assert len(paths) > 15
    described = set(re.findall(r"`(/[^`?]*)`", page))
    described |= {f"/v1/jobs/{{id}}{last}" for last in described if last in {"/retry", "/log"}}
    missing = {re.sub(r"\{\w+\}", "{}", path) for path in paths} - {
        re.sub(r"\{\w+\}", "{}", path) for path in described
    }
    assert missing == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert (page.parent / link).exists(), link


def test_files_that_are_named_exist() -> None:
    named = set(
        re.findall(r"`((?:app|workers|modelpress|tests)/[\w/]+(?:\.py)?/?)`", (ROOT / "docs" / "job.md").read_text())
    )
    assert len(named) > 20
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
