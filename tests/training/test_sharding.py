"""FSDP2 on the CPU: forked processes over gloo train as one does, and a run goes on with any number of them."""

import json
import multiprocessing
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from children import Child, Rank, free_port, join, together, wait_for_lines
from titanslab.runs.checkpoints import last_complete
from titanslab.training.recipe import parse_recipe
from titanslab.training.run import train
from titanslab.training.sharding import check_launcher
from titanslab.training.watchdog import NonFiniteError, check_weights

STEPS = 6


@pytest.fixture(scope="module")
def base(text_file, tmp_path_factory):
    """A folder with a recipe of six steps of four rows, and with the run of one process in `one`."""
    folder = tmp_path_factory.mktemp("sharding")
    recipe = parse_recipe(
        {
            "model": {
                "variant": "mal",
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "window_size": 8,
                "chunk_size": 8,
                "num_persistent_tokens": 2,
            },
            "data": {"train": str(text_file), "sequence_length": 16, "text_documents": "line"},
            "training": {
                "steps": STEPS,
                "batch_size": 1,
                "global_batch_size": 4,
                "warmup_steps": 2,
                "learning_rate": 3e-3,
                "save_every": 2,
                "keep_checkpoints": 9,
                "log_every": 1,
                "gradient_checkpointing": True,
                "cpu": True,
            },
        }
    )
    train(recipe, folder / "one")
    (folder / "small.toml").write_text(recipe.to_toml())
    return folder


def losses(run):
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: (line["loss"], line["grad_norm"]) for line in lines}


def same_losses(run, one):
    assert losses(run).keys() == losses(one).keys() == set(range(1, STEPS + 1))
    assert list(losses(run).values()) == [pytest.approx(pair, rel=1e-5) for pair in losses(one).values()]


def test_four_processes_of_which_one_is_killed_go_on_as_two_and_as_one(base, tmp_path):
    run, one, alone = tmp_path / "four", base / "one", tmp_path / "alone"
    words = ("train", base / "small.toml", "--set", "training.sharding=fsdp", "--output")
    children = together(4, tmp_path / "outputs", *words, run)
    wait_for_lines(children[0], run / "metrics.jsonl", 3)
    children[1].process.kill()
    for child in children:
        child.process.join(20)  # they notice that one is gone; torchrun would end them
        child.process.kill()
        child.process.join()
    assert not (run / "result.json").exists()
    last = last_complete(run / "checkpoints")
    assert last is not None
    assert len(list(last.glob("random_state_*.json"))) == 4
    rows = []
    for process in range(1, 5):
        with safe_open(last / f"optimizer-{process:05d}-of-00004.safetensors", "pt") as file:
            rows.append(file.get_slice("0.exp_avg").get_shape()[0])
    whole = load_file(one / "checkpoints" / last.name / "optimizer.safetensors")["0.exp_avg"]
    assert sum(rows) == whole.shape[0] > max(rows)
    shutil.copytree(run, alone)
    again = together(2, tmp_path / "again", *words, run, "--resume")
    again.append(Child(tmp_path / "1", *words, alone, "--set", "training.batch_size=4", "--resume"))
    assert [child.wait() for child in again] == [0, 0, 0], [child.err for child in again]
    assert f"resuming from {last.name}" in again[0].err
    model = load_file(one / "model.safetensors")
    for folder in (run, alone):
        same_losses(folder, one)
        weights = load_file(folder / "model.safetensors")
        assert weights.keys() == model.keys()
        assert all(torch.allclose(weights[name], tensor, rtol=1e-4, atol=1e-6) for name, tensor in model.items())
        assert json.loads((folder / "config.json").read_text()) == json.loads((one / "config.json").read_text())
    # a checkpoint without one of its shards is left aside
    (run / "result.json").unlink()
    (run / "checkpoints" / f"checkpoint-{STEPS}" / "optimizer-00002-of-00002.safetensors").unlink()
    third = Child(tmp_path / "third", "train", "--output", run, "--resume")
    assert third.wait() == 0, third.err
    assert "checkpoint-6 is damaged and left aside: optimizer-00002-of-00002.safetensors is missing" in third.err
    assert "resuming from checkpoint-4" in third.err
    same_losses(run, one)


def test_two_processes_go_on_with_shards_from_a_run_of_one(base, tmp_path):
    run = tmp_path / "two"
    shutil.copytree(base / "one", run)
    (run / "result.json").unlink()
    last = run / "checkpoints" / f"checkpoint-{STEPS}"
    (last / "optimizer.safetensors").write_bytes(b"damaged")
    words = ("--set", "training.sharding=fsdp", "--set", "training.batch_size=2", "--resume")
    children = together(2, tmp_path / "outputs", "train", base / "small.toml", "--output", run, *words)
    assert [child.wait() for child in children] == [0, 0], [child.err for child in children]
    assert "checkpoint-6 is damaged and left aside" in children[0].err
    assert "resuming from checkpoint-4" in children[0].err
    assert children[1].err == children[1].out == ""
    same_losses(run, base / "one")
    assert not (last / "optimizer.safetensors").exists()
    assert len(list(last.glob("optimizer-*-of-00002.safetensors"))) == 2


def other_rows(rank, port, queue):
    """A weight that is not finite in the second process stops both."""
    join(Rank(rank, 2, port))
    torch.distributed.init_process_group("gloo")
    model = torch.nn.Linear(1, 1)
    if rank == 1:
        model.weight.data.fill_(torch.nan)
    try:
        check_weights(model, 3)
        queue.put((rank, ""))
    except NonFiniteError as error:
        queue.put((rank, str(error)))


def test_all_processes_stop_at_what_one_has_found():
    context = multiprocessing.get_context("fork")
    queue, port = context.Queue(), free_port()
    processes = [context.Process(target=other_rows, args=(rank, port, queue)) for rank in (0, 1)]
    for process in processes:
        process.start()
    said = dict(queue.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(60)
    assert "a parameter is not finite in another process" in said[0]
    assert "parameter weight is not finite after the step" in said[1]


def test_other_sharding_of_accelerate_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match=r'training\.sharding = "fsdp"'):
        check_launcher()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["training.sharding=zero"], r"training\.sharding is 'zero'; allowed: ddp, fsdp"),
        (["training.sharding=fsdp", "training.optimizer=muon"], "needs whole matrices on each device"),
        (["training.global_batch_size=6"], "accumulation = 2 follows from training.global_batch_size = 6"),
        (["training.global_batch_size=5", "training.accumulation=1"], "must be a multiple of training.batch_size = 2"),
    ],
)
def test_keys_that_cannot_work_together(table, changes, message):
    with pytest.raises(ValueError, match=message):
        parse_recipe(table, changes)


def test_passes_of_a_step_follow_from_the_devices(table):
    settings = parse_recipe(table, ["training.global_batch_size=16", "training.accumulation=1"]).training
    assert [settings.passes(devices) for devices in (1, 2, 4, 8)] == [8, 4, 2, 1]
    assert {settings.rows(devices) for devices in (1, 2, 4, 8)} == {16}
    with pytest.raises(ValueError, match=r"16 rows cannot be shared by 3 devices with training\.batch_size = 2"):
        settings.passes(3)
    with pytest.raises(ValueError, match="it must be a multiple of 32"):
        settings.passes(16)
