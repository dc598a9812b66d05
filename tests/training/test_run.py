"""Runs: what the folder holds, and that stopping and resuming changes no loss."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from titanslab.data import byte_tokenizer
from titanslab.runs import checkpoints
from titanslab.training.model import build_model
from titanslab.training.recipe import load_recipe, parse_recipe
from titanslab.training.run import train
from titanslab.training.sources import open_data, open_tokenizer
from titanslab.training.trainer import compile_blocks, make_trainer

RUN_FILES = {"recipe.toml", "versions.json", "metrics.jsonl", "result.json", "config.json", "model.safetensors"}


def metrics(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "tokens_per_second"} for line in lines]


def weights(folder):
    return load_file(folder / "model.safetensors")


def same_weights(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Stopped(Exception):
    """Raised in the middle of a run, in place of a kill."""


def stop_at(monkeypatch, step, micro=2):
    """Make the next run fail in a step, after `micro` micro-batches of it."""
    from titanslab.training import trainer

    plain = trainer.TitansTrainer.training_step
    seen = []

    def failing(self, *args, **kwargs):
        loss = plain(self, *args, **kwargs)
        seen.append(self.state.global_step)
        if self.state.global_step == step and seen.count(step) == micro:
            raise Stopped
        return loss

    monkeypatch.setattr(trainer.TitansTrainer, "training_step", failing)


def resumes_loss_for_loss(recipe, folder, monkeypatch, stop, resumed_from):
    """A run stopped in step `stop` and resumed has the metrics and weights of one that was not."""
    train(recipe, folder / "whole")
    with monkeypatch.context() as patch:
        stop_at(patch, stop)
        with pytest.raises(Stopped):
            train(recipe, folder / "stopped")
    assert train(recipe, folder / "stopped", resume=True)["resumed_from"] == resumed_from
    assert metrics(folder / "stopped") == metrics(folder / "whole")
    assert same_weights(weights(folder / "stopped"), weights(folder / "whole"))


@pytest.fixture
def table(table, text_file):
    table["data"] |= {"validation": str(text_file), "validation_samples": 3}
    table["training"] |= {"eval_every": 4}
    return table


def test_run_folder_resume_and_refusals(recipe, tmp_path, monkeypatch, capsys):
    whole = tmp_path / "whole"
    result = train(recipe, whole)
    assert {path.name for path in whole.iterdir()} >= RUN_FILES
    assert result == json.loads((whole / "result.json").read_text())
    assert result["steps"] == 12
    assert load_recipe(whole / "recipe.toml") == recipe
    facts = json.loads((whole / "versions.json").read_text())
    assert facts["torch"] == torch.__version__.split("+")[0] or facts["torch"] == torch.__version__
    assert facts["seed"] == 0
    lines = metrics(whole)
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 4, 5, 6, 8, 10, 12]
    assert (whole / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert [line["step"] for line in lines if "eval_loss" in line] == [4, 8, 12]
    assert lines[-1]["eval_bits_per_byte"] > lines[-1]["eval_loss"]  # bytes: a nat is 1.44 bits
    assert lines[-1]["tokens"] == 12 * 2 * 2 * 32
    names = [path.name for path in checkpoints.all_checkpoints(whole / "checkpoints")]
    assert names == ["checkpoint-10", "checkpoint-12"]
    pickles = [path for path in whole.rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".pkl")]
    assert not pickles

    # A model and tokenizer that Hugging Face loads without any code of the folder's.
    model = AutoModelForCausalLM.from_pretrained(whole)
    tokenizer = AutoTokenizer.from_pretrained(whole)
    assert model.config.use_cache
    assert json.loads((sorted((whole / "checkpoints").glob("*-*"))[-1] / "config.json").read_text())["use_cache"]
    assert model.config.vocab_size == len(tokenizer) == 259
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert same_weights(weights(whole), weights(whole / "checkpoints" / "checkpoint-12"))

    # Stopped twice, once before a checkpoint, and resumed: the same numbers.
    stopped = tmp_path / "stopped"
    for step in (3, 8):
        with monkeypatch.context() as patch:
            stop_at(patch, step)
            with pytest.raises(Stopped):
                train(recipe, stopped, resume=step != 3)
        assert not (stopped / "config.json").exists()
    torch.manual_seed(99)  # what the process drew before must not matter
    resumed = train(recipe, stopped, resume=True)
    assert resumed["resumed_from"] == 5
    assert metrics(stopped) == lines
    assert same_weights(weights(stopped), weights(whole))

    # Refusals leave the folder as it was.
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    with pytest.raises(ValueError, match="already holds a finished run; give another --output"):
        train(recipe, whole)
    assert train(recipe, whole, resume=True) == result
    assert "nothing to resume" in capsys.readouterr().err
    other = parse_recipe(recipe.sections(), ["training.learning_rate=1e-4"])
    with pytest.raises(ValueError, match=r"training\.learning_rate = 0\.003, now it is 0\.0001"):
        train(other, whole, resume=True)
    with pytest.raises(ValueError, match="holds no run to resume"):
        train(recipe, tmp_path / "nothing", resume=True)
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file; give a folder"):
        train(recipe, tmp_path / "file")

    # A run can start from another's model.
    table = recipe.sections() | {"model": {"pretrained": str(whole)}}
    further = parse_recipe(table, ["training.steps=2", "training.eval_every=2"])
    assert train(further, tmp_path / "further")["loss"] < metrics(whole)[0]["loss"]


def test_killed_and_resumed_equals_uninterrupted(table, tmp_path):
    table["training"] |= {"steps": 16, "log_every": 1, "save_every": 3, "eval_every": 6}
    table["model"] |= {"variant": "lmm"}
    recipe = parse_recipe(table)
    path = tmp_path / "recipe.toml"
    path.write_text(recipe.to_toml())
    killed = tmp_path / "killed"
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads()), "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "titanslab.cli", "train", str(path), "--output", str(killed)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (killed / "metrics.jsonl").exists() and len(metrics_lines(killed)) >= 7:
            break
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    errors = process.communicate()[1]
    assert process.returncode == -signal.SIGKILL, errors
    assert not (killed / "result.json").exists()

    result = train(recipe, killed, resume=True)
    assert result["resumed_from"] >= 3
    whole = tmp_path / "whole"
    train(recipe, whole)
    assert metrics(killed) == metrics(whole)
    assert same_weights(weights(killed), weights(whole))


def test_a_run_keeps_its_template_length_and_temperature(table, tmp_path):
    table["training"] |= {"steps": 1, "warmup_steps": 0}
    table["model"] |= {"template": '\n"{question}"\n', "max_new_tokens": 7, "temperature": 0.0}
    recipe = parse_recipe(table)
    train(recipe, tmp_path / "a")
    assert load_recipe(tmp_path / "a" / "recipe.toml") == recipe
    after = parse_recipe({**table, "model": {"pretrained": str(tmp_path / "a"), "temperature": 0.5}})
    train(after, tmp_path / "b")
    for folder, temperature in ((tmp_path / "a", None), (tmp_path / "b", 0.5)):
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        question = [{"role": "user", "content": "Who?"}]
        assert tokenizer.apply_chat_template(question, tokenize=False) == '\n"Who?"\n'
        assert model.generation_config.max_new_tokens == 7
        assert model.generation_config.temperature == temperature
        assert model.generation_config.do_sample is (temperature is not None)


def metrics_lines(folder):
    return (folder / "metrics.jsonl").read_text().split("\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_a_checkpoint_and_the_resumed_run_is_exact(number, recipe, tmp_path, monkeypatch, capfd):
    from titanslab.training import trainer

    plain = trainer.TitansTrainer.training_step

    def signalled(self, *args, **kwargs):
        if self.state.global_step == 6:
            os.kill(os.getpid(), number)
            monkeypatch.undo()
        return plain(self, *args, **kwargs)

    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setattr(trainer.TitansTrainer, "training_step", signalled)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "stopped")
    assert "stopping at the end of this step, with a checkpoint" in capfd.readouterr().err
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    assert checkpoints.last_complete(tmp_path / "stopped" / "checkpoints").name == "checkpoint-7"
    assert not (tmp_path / "stopped" / "result.json").exists()
    assert (tmp_path / "stopped" / "loss.png").exists()
    assert train(recipe, tmp_path / "stopped", resume=True)["resumed_from"] == 7
    train(recipe, tmp_path / "whole")
    assert same_weights(weights(tmp_path / "stopped"), weights(tmp_path / "whole"))
    lines, whole = metrics(tmp_path / "stopped"), metrics(tmp_path / "whole")
    assert lines[-1] == whole[-1]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 4, 5, 6, 7, 8, 10, 12]


def test_a_second_signal_stops_at_once(recipe, tmp_path, monkeypatch):
    from titanslab.training import trainer

    plain = trainer.TitansTrainer.training_step

    def signalled(self, *args, **kwargs):
        if self.state.global_step == 6:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(trainer.TitansTrainer, "training_step", signalled)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run")
    assert checkpoints.last_complete(tmp_path / "run" / "checkpoints").name == "checkpoint-5"


def test_a_signal_in_the_last_step_lets_the_run_finish(recipe, tmp_path, monkeypatch):
    from titanslab.training import trainer

    plain = trainer.TitansTrainer.training_step

    def signalled(self, *args, **kwargs):
        if self.state.global_step == 11 and not stopped:
            stopped.append(os.kill(os.getpid(), signal.SIGINT))
        return plain(self, *args, **kwargs)

    stopped = []
    monkeypatch.setattr(trainer.TitansTrainer, "training_step", signalled)
    assert train(recipe, tmp_path / "run")["steps"] == 12


def test_a_picture_that_cannot_be_drawn_fails_no_run(table, tmp_path, monkeypatch, capsys):
    def broken(*args):
        raise RuntimeError("no canvas")

    monkeypatch.setattr("titanslab.training.run.draw_losses", broken)
    table["training"]["steps"] = 1
    del table["training"]["eval_every"]
    assert train(parse_recipe(table), tmp_path / "run")["steps"] == 1
    assert "loss.png was not drawn: no canvas" in capsys.readouterr().err


def test_a_tokenizer_is_made_of_the_training_text_and_kept(table, text_file, tmp_path, monkeypatch):
    table["data"]["tokenizer"] = "bpe:300"
    table["training"]["eval_every"] = 6
    recipe = parse_recipe(table)
    resumes_loss_for_loss(recipe, tmp_path, monkeypatch, stop=8, resumed_from=5)
    assert load_recipe(tmp_path / "whole" / "recipe.toml").data.tokenizer == "bpe:300"
    ours, saved = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("whole/tokenizer", "whole"))
    assert ours.backend_tokenizer.to_str() == saved.backend_tokenizer.to_str()
    assert ours.bos_token_id == saved.bos_token_id == 0
    vocabulary = AutoModelForCausalLM.from_pretrained(tmp_path / "whole").config.vocab_size
    assert vocabulary == len(ours) <= 300  # the text is small

    # a resumed run takes the tokenizer in its folder
    with monkeypatch.context() as patch:
        stop_at(patch, 8)
        with pytest.raises(Stopped):
            train(recipe, tmp_path / "again")
    monkeypatch.setattr("titanslab.training.sources.corpus_bpe", None)
    assert train(recipe, tmp_path / "again", resume=True)["resumed_from"] == 5
    assert same_weights(weights(tmp_path / "again"), weights(tmp_path / "whole"))


def test_wrong_wishes_for_a_tokenizer_are_refused(table, tmp_path):
    for changes, message in (
        (["data.tokenizer=bpe:many"], "not of the form bpe:N"),
        (["data.tokenizer=bpe-4096"], "not of the form bpe:N; write bpe:4096"),
        (["data.tokenizer=bpe:100"], "must be 260 or more"),
        (
            ["data.tokenizer=bpe:300", f"model.pretrained={tmp_path}", "model.preset=", "model.variant="],
            "its own; give",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            parse_recipe(table, changes)
    del table["data"]["train"], table["data"]["validation"], table["data"]["validation_samples"]
    del table["training"]["eval_every"]
    table["data"] |= {"task": "niah", "tokenizer": "bpe:300", "sequence_length": 512}
    with pytest.raises(ValueError, match=r"data\.train is missing; make one with titans tokenizer"):
        train(parse_recipe(table), tmp_path / "run")


def test_a_tokenizer_is_made_of_the_files_of_a_task(table, text_file, tmp_path):
    for haystack in (text_file, text_file.parent / "*.txt"):
        data = {"task": "niah", "tokenizer": "bpe:300", "task_options": {"haystack": str(haystack)}}
        table["data"] = {**data, "sequence_length": 512}
        table["training"].pop("eval_every", None)
        assert 260 < len(open_tokenizer(parse_recipe(table).data)) <= 300


def test_a_full_disk_is_an_error_that_names_the_checkpoint(recipe, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("titanslab.training.pieces.save_file", full)
    with pytest.raises(OSError, match="No space left") as caught:
        train(recipe, tmp_path / "run")
    assert caught.value.filename.endswith("checkpoints/checkpoint-5")


def test_a_disk_that_is_full_for_the_model_leaves_a_run_to_resume(recipe, tmp_path, monkeypatch):
    from titanslab.training.trainer import TitansTrainer

    save, folder = TitansTrainer.save_model, tmp_path / "run"

    def full(self, output_dir=None, *args, **kwargs):
        save(self, output_dir, *args, **kwargs)
        if output_dir.endswith(".final"):
            raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(TitansTrainer, "save_model", full)
        with pytest.raises(OSError, match="No space left") as caught:
            train(recipe, folder)
    assert caught.value.filename == str(folder)
    assert not (folder / ".final").exists()
    train(recipe, folder, resume=True)
    assert (folder / "model.safetensors").exists()


def test_a_place_that_cannot_be_written_is_noticed_before_the_data_are_read(table, tmp_path, monkeypatch):
    table["data"]["train"] = "missing.txt"
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(ValueError, match=r"cannot be written: .* is read-only here; give another place"):
        train(parse_recipe(table), tmp_path / "deep" / "run")


def test_half_written_and_damaged_checkpoints_are_not_resumed_from(recipe, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(patch, 11)
        with pytest.raises(Stopped):
            train(recipe, folder)
    five, ten = checkpoints.all_checkpoints(folder / "checkpoints")
    truncated = (ten / "model.safetensors").read_bytes()[:-10]
    (ten / "model.safetensors").write_bytes(truncated)
    half = folder / "checkpoints" / "checkpoint-11"
    half.mkdir()
    (half / "config.json").write_text("{")
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 11, "lo')
    result = train(recipe, folder, resume=True)
    assert result["resumed_from"] == checkpoints.step_of(five) == 5
    assert "checkpoint-10 is damaged" in capsys.readouterr().err
    assert not half.exists()
    assert [line["step"] for line in metrics(folder) if "loss" in line] == [1, 2, 4, 5, 6, 8, 10, 12]


def test_nothing_is_written_when_something_is_wrong(table, tmp_path):
    output = tmp_path / "run"
    for changes, message in (
        (["data.sequence_length=100000"], "too little data: .* make 0 rows"),
        (["training.batch_size=4000"], "one batch needs 8000"),
        (["data.train=missing.txt"], "does not exist"),
        (["data.text_documents=file", "data.validation=missing"], "'missing' does not exist"),
        (["model.hidden_size=15"], "hidden_size must be a multiple"),
        (["model.vocab_size=100"], "vocab_size is 100, but the tokenizer 'byte' has 259"),
        (["data.tokenizer=missing.json"], r"missing\.json"),
        (["data.train=/dev/null"], r"'/dev/null' is a device or a pipe; give a file"),
        (
            ["model.hidden_size=1000000"],
            r"describes at least [\d,]+ parameters, which take [\d,]+ GiB, and this machine",
        ),
        (["training.report_to=['nosuch']"], r"training\.report_to names 'nosuch'; the Trainer can report to"),
    ):
        with pytest.raises((ValueError, FileNotFoundError, MemoryError), match=message):
            train(parse_recipe(table, changes), output)
        assert not output.exists()


def test_streamed_run_resumes_with_the_rows_it_would_have_seen(table, tmp_path, monkeypatch):
    table["data"] |= {"streaming": True, "shuffle_buffer": 8}
    del table["data"]["validation"], table["data"]["validation_samples"], table["training"]["eval_every"]
    table["training"] |= {"steps": 8, "save_every": 3}
    recipe = parse_recipe(table)
    resumes_loss_for_loss(recipe, tmp_path, monkeypatch, stop=5, resumed_from=3)


def test_a_step_of_other_rows_is_refused(recipe, table, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(patch, 6)
        with pytest.raises(Stopped):
            train(recipe, folder)
    for changes in (["training.batch_size=4"], ["training.accumulation=1"], ["training.accumulation=3"]):
        with pytest.raises(ValueError, match="the run reads 4 rows a step, by 1 process, and now it would read"):
            train(parse_recipe(table, changes), folder, resume=True)
    states = folder / "checkpoints" / "checkpoint-5"  # as an earlier release wrote it, with two processes
    (states / "batch.json").unlink()
    (states / "random_state_1.json").write_text((states / "random_state_0.json").read_text())
    marker = json.loads((states / "complete.json").read_text())
    del marker["files"]["batch.json"]
    (states / "complete.json").write_text(json.dumps(marker))
    with pytest.raises(ValueError, match=r"by 2 processes, .* set training\.global_batch_size = 8, which shares them"):
        train(recipe, folder, resume=True)
    result = train(
        parse_recipe(table, ["training.accumulation=1", "training.global_batch_size=8"]), folder, resume=True
    )
    assert result["resumed_from"] == 5


def test_bf16_and_recomputed_activations_train(table, tmp_path):
    table["training"] |= {"precision": "bf16", "gradient_checkpointing": True, "steps": 3, "warmup_steps": 0}
    train(parse_recipe(table), tmp_path / "run")
    saved = weights(tmp_path / "run")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    assert all(torch.isfinite(tensor).all() for tensor in saved.values())


def test_compiling_is_block_by_block(recipe):
    model = build_model(recipe, byte_tokenizer())
    compile_blocks(model)
    compiled = [name for name, module in model.named_modules() if module._compiled_call_impl is not None]
    assert compiled == ["model.layers.0"]


def test_weight_decay_is_for_matrices_alone(recipe, tmp_path):
    data = open_data(recipe)
    trainer = make_trainer(recipe, build_model(recipe, data.tokenizer), data, tmp_path / "run", [])
    trainer.create_optimizer()
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    decayed, kept = set(), set()
    for group in trainer.optimizer.param_groups:
        (decayed if group["weight_decay"] else kept).update(names[id(p)] for p in group["params"])
    assert decayed | kept == set(names.values())
    assert "model.layers.0.mlp.down_proj.weight" in decayed
    assert all(trainer.model.get_parameter(name).ndim >= 2 for name in decayed)
    assert any("norm" in name for name in kept)
    assert not any("theta" in name or "alpha" in name or "norm" in name for name in decayed)
