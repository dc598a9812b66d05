"""The package accepts any newer torch, and `constraints.txt` holds the versions that the README's commands install."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#")


def named(requirements: list[str]) -> dict[str, str]:
    """Name of each requirement -> its versions."""
    parts = [re.match(r"([\w.-]+)(?:\[.*\])?([^;]*)", r).groups() for r in requirements]
    return {name: versions.strip() for name, versions in parts}


def test_no_dependency_has_an_upper_bound():
    core = named(PROJECT["dependencies"])
    assert "torch" in core
    assert [n for n, versions in core.items() if re.search(r"[<~]|==", versions)] == []


@pytest.mark.parametrize("group", ["core", "test", "dev"])
def test_every_dependency_has_a_tested_version(group: str):
    extras = PROJECT["optional-dependencies"]
    wanted = named(PROJECT["dependencies"] if group == "core" else extras[group])
    # a build of torch for CUDA requires one version of triton
    assert set(wanted) - {"triton", "titans-lab"} <= set(PINS)
    for name in set(wanted) & set(PINS):
        lowest = re.search(r">=([\d.]+)", wanted[name])
        assert lowest is None or order(PINS[name]) >= order(lowest[1]), name


def order(version: str) -> list[int]:
    return [int(n) for n in version.split(".")]


def test_readme_and_ci_install_the_tested_versions():
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    assert "pip install -c constraints.txt -e . && titans quickstart" in readme
    assert "pip install -c constraints.txt -e '.[test]' && pytest" in readme
    for text in (readme, ci):
        lines = re.findall(r"^.*pip install.* -e .*$", text, re.MULTILINE)
        assert lines
        assert all("-c constraints.txt" in line for line in lines)
