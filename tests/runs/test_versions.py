"""The versions, the machine and the commit that a result was made with."""

import platform
import subprocess

import torch

from titanslab.runs import versions as module
from titanslab.runs.versions import checkout, machine, package_versions, processor, versions


def test_versions_name_packages_and_the_machine():
    found = versions()
    assert found["python"] == platform.python_version()
    assert found["torch"] == torch.__version__
    assert found["processor"] == processor() != ""
    assert found["torch_threads"] == torch.get_num_threads()
    assert package_versions(["no-such-package"])["no-such-package"] is None
    facts = machine(torch.device("cpu"))
    assert facts["cpu"] == processor()
    assert facts["memory_bytes"] > 0


def test_the_commit_says_whether_code_differs_and_results_do_not_count(tmp_path, monkeypatch):
    def git(*words):
        named = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        return subprocess.run(
            ["git", "-C", tmp_path, *named, *words], check=True, capture_output=True, text=True
        ).stdout

    monkeypatch.setattr(module, "ROOT", tmp_path)
    assert (versions()["commit"], checkout()) == (None, (None, False))
    git("init")
    for folder in ("src", "benchmarks/results", "docs"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a").write_text("1")
    git("add", "-A")
    git("commit", "-m", "one")
    commit = git("rev-parse", "HEAD").strip()
    (tmp_path / "docs" / "a").write_text("2")
    (tmp_path / "benchmarks" / "results" / "b").write_text("2")
    assert (versions()["commit"], checkout()) == (commit, (commit, False))
    (tmp_path / "src" / "b").write_text("2")
    assert (versions()["commit"], checkout()) == (f"{commit}-dirty", (commit, True))
