"""Two processes under torchrun on the CPU; test_sharding.py has forked ones, which start sooner."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from children import free_port, wait_for_lines
from titanslab.runs.checkpoints import last_complete
from titanslab.training.recipe import parse_recipe
from titanslab.training.run import train

LAUNCH = Path(__file__).parents[2] / "launch" / "torchrun.sh"


def two_processes(recipe, output, home):
    """The command and the environment of a run under torchrun."""
    words = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    words += ["-m", "titanslab.cli", "train", str(recipe), "--output", str(output)]
    return [sys.executable, *words], os.environ | {"OMP_NUM_THREADS": "1", "HF_HOME": str(home / "home")}


def test_two_processes_train_as_one_with_twice_the_batch(table, tmp_path):
    table["training"] |= {"steps": 4, "batch_size": 4, "accumulation": 1, "save_every": 3, "log_every": 1}
    one = parse_recipe(table)
    train(one, tmp_path / "one")
    table["training"]["batch_size"] = 2
    path = tmp_path / "two.toml"
    path.write_text(parse_recipe(table).to_toml())
    environment = two_processes(path, tmp_path / "two", tmp_path)[1] | {"NPROC_PER_NODE": "2", "PYTHON": sys.executable}
    words = [LAUNCH, path, tmp_path / "two", "--set", "training.keep_checkpoints=3"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    states = sorted(path.name for path in (tmp_path / "two" / "checkpoints" / "checkpoint-3").glob("random*"))
    assert states == ["random_state_0.json", "random_state_1.json"]
    assert done.stdout.count("4 steps") == 1
    assert done.stdout.count("titans generate") == 1


def test_two_processes_stop_at_the_same_step(table, tmp_path):
    table["training"] |= {"steps": 100_000, "accumulation": 1, "save_every": 100_000, "log_every": 1}
    path = tmp_path / "two.toml"
    path.write_text(parse_recipe(table).to_toml())
    words, environment = two_processes(path, tmp_path / "two", tmp_path)
    process = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    metrics = tmp_path / "two" / "metrics.jsonl"
    wait_for_lines(process, metrics, 3)
    process.send_signal(signal.SIGTERM)
    out = process.communicate(timeout=120)[0]
    last = last_complete(tmp_path / "two" / "checkpoints")
    assert last is not None, out[-3000:]
    assert json.loads(metrics.read_text().splitlines()[-1])["step"] == int(last.name.partition("-")[2])
    assert len(list(last.glob("random_state_*.json"))) == 2
    assert out.count("stopping at the end of this step") == 1
