"""Dependencies, pins and the Makefile agree with each other."""

import re
import subprocess
import tomllib
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines())
VERSIONS = {canonicalize_name(name): version for name, version in PINS.items()}


def test_every_dependency_is_pinned_to_a_version_that_it_allows() -> None:
    declared = chain(PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    requirements = [Requirement(line) for line in declared]
    ours = [each for each in requirements if each.name != PROJECT["name"]]
    assert len(ours) > 30
    wrong = [str(each) for each in ours if VERSIONS.get(canonicalize_name(each.name), "none") not in each.specifier]
    assert wrong == []


def test_pins_name_no_build_of_one_platform() -> None:
    assert not [line for line in PINS.values() if "+" in line]
    assert VERSIONS["torch"].startswith("2.13.")


def test_make_alone_lists_every_target() -> None:
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    named = set(re.findall(r"^make (\w+)", listed, re.MULTILINE))
    phony = set(re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split())  # type: ignore[index]  # it is there
    assert named == phony
    assert {"demo", "test", "up", "lint", "bench", "help"} <= named


def test_continuous_integration_runs_lint_and_tests() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert script.read_text().splitlines()[-2:] == ["make lint", "make test"]
