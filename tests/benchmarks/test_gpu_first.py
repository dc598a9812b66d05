"""`gpu_first.sh`: all parts on a CPU with toy sizes, and parts that fail, hang, or find wrong kernels."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ("kernels", "op", "fla", "train_step", "decode")
pytestmark = pytest.mark.skipif(shutil.which("timeout") is None, reason="the script needs bash and coreutils")


def run(out: Path, python: str, **environment: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OUT": str(out), "OMP_NUM_THREADS": "1", **environment}
    command = ["bash", str(ROOT / "benchmarks" / "gpu_first.sh"), python]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_dry_run_writes_the_json_of_every_part(tmp_path):
    pytest.importorskip("triton", reason="Triton exists for Linux only", exc_type=ImportError)
    done = run(tmp_path, sys.executable, DRY="1", LIMITS="300 300 300 300 300")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = {p.stem.split("_first_")[1]: json.loads(p.read_text()) for p in tmp_path.glob("*_cpu_first_*.json")}
    assert set(found) == set(PARTS)
    assert all(content["complete"] and content["results"] for content in found.values())
    assert all(result["right"] for result in found["kernels"]["results"])
    assert [r["setting"]["chunk"] for r in found["op"]["results"]] == [16, 64]
    for result in found["op"]["results"]:
        assert "titanslab-op:triton / titanslab-op:chunked" in result["ratios"]
    assert [m["name"] for m in found["fla"]["missing"]] == ["fla-gated-delta-rule"]
    assert all("best Titans / attention-full" in r["ratios"] for r in found["train_step"]["results"])
    assert [r["name"] for r in found["decode"]["results"]] == ["lmm", "mac", "attention-full"]


def stand_in(tmp_path: Path, body: str) -> str:
    """A program in Python's place, which writes its command to `calls` and then runs `body`; $2 is the module."""
    path = tmp_path / "python"
    path.write_text(f'#!/bin/bash\necho "$*" >> {tmp_path}/calls\n{body}\n')
    path.chmod(0o755)
    return str(path)


def calls(tmp_path: Path) -> list[str]:
    return (tmp_path / "calls").read_text().splitlines()


def test_a_part_that_fails_or_hangs_does_not_stop_the_others(tmp_path):
    python = stand_in(tmp_path, "case $2 in *memory_op) exit 3;; *train_step) exec sleep 30;; esac")
    done = run(tmp_path / "out", python, DRY="1", LIMITS="1 1 1 1 1")
    assert done.returncode == 3
    assert "FAILED (3): op" in done.stdout
    assert "FAILED (3): fla" in done.stdout
    assert "FAILED (124, not done in time): train_step" in done.stdout
    assert [c.split()[1] for c in calls(tmp_path)][-1] == "benchmarks.decode"
    assert "3 part(s) failed" in done.stdout


def test_the_limits_are_less_than_ten_minutes(tmp_path):
    done = run(tmp_path / "out", stand_in(tmp_path, "exit 0"), DRY="1")
    ends = [int(line.split("until second ")[1].split(":")[0]) for line in done.stdout.splitlines() if "until" in line]
    assert len(ends) == len(PARTS)
    assert ends == sorted(ends)
    assert ends[-1] + 5 * len(PARTS) < 600


@pytest.mark.parametrize("wrong", [False, True])
def test_wrong_kernels_are_not_timed(tmp_path, wrong):
    python = stand_in(tmp_path, f"case $2 in *kernels) exit {2 if wrong else 1};; esac")
    done = run(tmp_path / "out", python)  # without DRY: the commands of a GPU
    assert done.returncode == 1
    # the kernels are compiled ahead beside the first part, in folders that are deleted
    kept = [c for c in calls(tmp_path) if f"{tmp_path}/out" in c]
    assert [c.split()[1].removeprefix("benchmarks.") for c in kept] == [
        "kernels", "memory_op", "memory_op", "train_step", "decode",
    ]  # fmt: skip
    assert len(calls(tmp_path)) > 10
    for command in kept[1:]:
        assert ("triton" in command) == (not wrong), command
    assert "--tokens 4096 16384" in kept[3]
    assert "--size 340m" in kept[3]


def test_no_result_is_overwritten(tmp_path):
    python = stand_in(tmp_path, 'for last; do :; done; echo "{}" > "$last"')
    for _ in range(2):
        assert run(tmp_path / "out", python, DRY="1").returncode == 0
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert len(names) == 2 * len(PARTS)
    assert sum(name.endswith("-2.json") for name in names) == len(PARTS)
