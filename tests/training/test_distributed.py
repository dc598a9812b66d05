"""Several processes: torchrun on the CPU, and the sharding config of recipes/."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from children import wait_for_lines
from titanslab import TitansForCausalLM
from titanslab.runs.checkpoints import last_complete
from titanslab.training.recipe import parse_recipe
from titanslab.training.run import train

FSDP2 = Path(__file__).parents[2] / "recipes" / "accelerate_fsdp2.yaml"


def test_fsdp2_config_is_read_by_accelerate_and_wraps_our_blocks():
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.utils import FullyShardedDataParallelPlugin

    config = load_config_from_file(str(FSDP2))
    assert config.fsdp_config["fsdp_version"] == 2
    assert config.fsdp_config["fsdp_transformer_layer_cls_to_wrap"] in TitansForCausalLM._no_split_modules
    unprefixed = {key.removeprefix("fsdp_") for key in config.fsdp_config}
    fields = set(FullyShardedDataParallelPlugin.__dataclass_fields__)
    assert unprefixed - {"transformer_layer_cls_to_wrap", "offload_params", "version"} <= fields | {
        "transformer_cls_names_to_wrap"
    }


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


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
    words, environment = two_processes(path, tmp_path / "two", tmp_path)
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
