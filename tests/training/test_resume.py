"""A run goes on from its newest whole checkpoint, says which one it left aside, and unpickles nothing."""

import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from titanslab.runs import checkpoints
from titanslab.training.recipe import parse_recipe
from titanslab.training.run import train
from titanslab.training.state_files import check_states


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, text_file):
    """A finished run with checkpoints 2 and 4, as if it had been killed after step 4; and the losses of all steps."""
    model = {"variant": "lmm", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    sizes = {"num_attention_heads": 2, "chunk_size": 8, "num_persistent_tokens": 0}
    training = {"steps": 5, "batch_size": 1, "save_every": 2, "log_every": 1, "cpu": True, "keep_checkpoints": 9}
    data = {"train": str(text_file), "sequence_length": 16}
    recipe = parse_recipe({"model": model | sizes, "data": data, "training": training})
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(recipe, folder, say=lambda text: None)
    lines = (folder / "metrics.jsonl").read_text()
    shutil.rmtree(folder / "checkpoints" / "checkpoint-5")
    for name in ("result.json", "config.json", "model.safetensors"):
        (folder / name).unlink()
    return recipe, folder, losses(lines)


def losses(text):
    return [(line["step"], line["loss"]) for line in map(json.loads, text.splitlines())]


@pytest.fixture
def run(stopped, tmp_path):
    """The recipe, a copy of the run folder, its newest checkpoint, the losses, and a function that goes on."""
    recipe, folder, wanted = stopped
    own = tmp_path / "run"
    shutil.copytree(folder, own)
    said = []

    def resume():
        result = train(recipe, own, resume=True, say=said.append)
        assert losses((own / "metrics.jsonl").read_text()) == wanted
        return result["resumed_from"], " ".join(said)

    return own / "checkpoints" / "checkpoint-4", resume


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_changed_byte_in_any_file_falls_back_to_the_checkpoint_before(run):
    newest, resume = run
    flip(newest / "optimizer.safetensors")
    step, said = resume()
    assert step == 2
    assert "checkpoint-4 is damaged and left aside: optimizer.safetensors was changed" in said
    assert "resuming from checkpoint-2" in said


def test_a_whole_checkpoint_without_checksums_is_taken_with_a_line(run):
    newest, resume = run
    sizes = {path.name: path.stat().st_size for path in newest.iterdir() if path.name != checkpoints.MARKER}
    (newest / checkpoints.MARKER).write_text(json.dumps(sizes))
    step, said = resume()
    assert step == 4
    assert "resuming from checkpoint-4, which was written without checksums" in said


def change_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def other_weights(newest, change):
    tensors = load_file(newest / "model.safetensors")
    change(tensors, max(tensors))
    save_file(tensors, newest / "model.safetensors")


FAULTS = {
    "weights cut": lambda c: (c / "model.safetensors").write_bytes((c / "model.safetensors").read_bytes()[:-9]),
    "weights renamed": lambda c: other_weights(c, lambda t, name: t.update({name + "x": t.pop(name)})),
    "weights integers": lambda c: other_weights(c, lambda t, name: t.update({name: t[name].to(torch.int32)})),
    "weights short": lambda c: other_weights(c, lambda t, name: t.update({name: t[name][:0].clone()})),
    "optimizer.json deep": lambda c: (c / "optimizer.json").write_text("[" * 100_000),
    "optimizer.json list": lambda c: (c / "optimizer.json").write_text("[]"),
    "optimizer tensors": lambda c: save_file({"x": torch.zeros(1)}, c / "optimizer.safetensors"),
    "scheduler": lambda c: change_json(c / "scheduler.json", last_epoch="x"),
    "scheduler key": lambda c: change_json(c / "scheduler.json", step="x"),
    "random": lambda c: change_json(c / "random_state_0.json", python=[3, [1.5], None]),
    "step": lambda c: change_json(c / "trainer_state.json", global_step=3),
    "tokens": lambda c: change_json(c / "trainer_state.json", num_input_tokens_seen=-1),
    "trainer key": lambda c: change_json(c / "trainer_state.json", zz=1),
    "trainer null": lambda c: (c / "trainer_state.json").write_text("null"),
    "config": lambda c: change_json(c / "config.json", vocab_size=""),
    "no states": lambda c: (c / "optimizer.safetensors").unlink(),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_files_that_were_broken_before_the_marker_are_found_too(stopped, tmp_path, fault):
    from titanslab.training.model import build_model
    from titanslab.training.resume import fault_inside
    from titanslab.training.sources import open_tokenizer

    recipe, folder, _ = stopped
    newest = tmp_path / "checkpoint-4"
    shutil.copytree(folder / "checkpoints" / "checkpoint-4", newest)
    model = build_model(recipe, open_tokenizer(recipe.data))
    assert fault_inside(newest, model) == ""
    FAULTS[fault](newest)
    checkpoints.mark_complete(newest)
    assert checkpoints.problem(newest) == ""
    found = fault_inside(newest, model)
    assert found
    assert "\n" not in found
    assert len(found) < 500


def test_with_no_whole_checkpoint_the_folder_and_the_way_out_are_named(run):
    newest, resume = run
    for path in newest.parent.iterdir():
        (path / checkpoints.MARKER).write_text("{")
    with pytest.raises(
        ValueError, match=r"no checkpoint in '.*checkpoints' is whole \(checkpoint-4: .* delete that folder"
    ):
        resume()


def test_pickles_beside_missing_weights_are_refused_by_our_own_check(run, tmp_path, monkeypatch):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "unpickled"), "w"))

    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("torch.load was called"))
    newest, resume = run
    for name in ("pytorch_model.bin", "optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth"):
        (newest / name).write_bytes(pickle.dumps(Trap()))
    (newest / "model.safetensors").unlink()
    checkpoints.mark_complete(newest)
    step, said = resume()
    assert step == 2
    assert "holds no .safetensors file" in said
    assert not (tmp_path / "unpickled").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"betas": [0.5, 0.5]}, "betas = (0.5, 0.5)"),
        ({"params": [1]}, "params"),
        ({"lr": "x"}, "lr must be a number"),
        ({"lr": -1.0}, "lr must be a number of at least 0"),
    ],
)
def test_an_optimiser_of_another_recipe_is_refused(run, changes, words):
    newest, resume = run
    table = json.loads((newest / "optimizer.json").read_text())
    table["param_groups"][0] |= changes
    (newest / "optimizer.json").write_text(json.dumps(table))
    checkpoints.mark_complete(newest)
    check_states(newest)
    with pytest.raises(ValueError, match=r"optimizer\.json' is broken") as caught:
        resume()
    assert words in str(caught.value)


def test_a_broken_result_is_named(run):
    newest, resume = run
    for text in ("[]", "{}", "null", '{"steps": 1, "tokens": 1, "loss": NaN, "seconds": 1}', "[" * 100_000):
        (newest.parents[1] / "result.json").write_text(text)
        with pytest.raises(ValueError, match=r"result\.json.*; delete it, and resume again"):
            resume()


def test_damaged_metrics_lines_are_dropped_on_resume(run):
    newest, resume = run
    path = newest.parents[1] / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + b'\xff\n[]\n{"step": "x"}\n{"step": NaN}\n' + b"[" * 100_000 + b"\n")
    assert resume()[0] == 4
