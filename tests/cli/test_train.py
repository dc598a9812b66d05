"""`titans train`: runs, overrides, refusals, Ctrl-C."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

from children import wait_for_lines
from titanslab.training import trainer

RECIPES = Path(__file__).parents[2] / "recipes" / "graft"


def test_trains_and_says_where(titans, recipe_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = titans("train", recipe_file, "--set", "training.steps=2")
    assert code == 0, err
    assert out.startswith("runs/small: 2 steps, last loss")
    assert re.search(r"^training: 2 of 2 steps, .*, loss \d+\.\d{4}, .* tokens/s, 0 s left$", err, re.MULTILINE)
    assert json.loads((tmp_path / "runs/small/result.json").read_text())["steps"] == 2
    assert "The loss by step: runs/small/loss.png" in out
    assert re.search(r"^training: 1 of 2 steps, .*loss", err, re.MULTILINE)
    commands = re.findall(r"^  titans (.*)$", out, re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["generate", "evaluate", "read", "ask"]
    generate, evaluate, *_ = (shlex.split(command) for command in commands)
    assert titans(*generate, "--max-new-tokens", "2")[0] == 0
    assert titans(*evaluate, "--max-tokens", "100", "--context-length", "32")[0] == 0


def test_the_recipes_of_the_small_base(titans, tmp_path, monkeypatch):
    """Both recipes train, the second from the model of the first, and no memory is offered for a Llama."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "books").mkdir()
    (tmp_path / "books/a.txt").write_text("One day, two friends met. " * 200)
    small = {
        "model.hidden_size": 16, "model.intermediate_size": 16, "data.tokenizer": "byte", "data.sequence_length": 64
    }  # fmt: skip
    changes = {"small_base": small | {"training.steps": 2}, "small_base_8k": {"training.steps": 1}}
    for name, folder in (("small_base", "runs/base_2k"), ("small_base_8k", "runs/base")):
        words = [word for key, value in changes[name].items() for word in ("--set", f"{key}={value}")]
        code, out, err = titans("train", RECIPES / f"{name}.toml", *words, "--set", "training.cpu=true", "-o", folder)
        assert code == 0, err
        commands = re.findall(r"^  titans (.*)$", out, re.MULTILINE)
        assert [command.split()[0] for command in commands] == ["generate", "evaluate"]
    assert json.loads((tmp_path / "runs/base/config.json").read_text())["model_type"] == "llama"


def test_what_is_wrong_with_a_recipe(fails, recipe_file, tmp_path):
    output = tmp_path / "run"

    def line(*assignments):
        words = [word for assignment in assignments for word in ("--set", assignment)]
        return fails("train", recipe_file, "--output", output, *words)

    assert "did you mean 'learning_rate'?" in line("training.learning_rat=1")
    assert line("training.lr=1").startswith(
        "titans: error: --set 'training.lr=1': unknown key 'lr' in [training]; did you mean 'learning_rate'?"
    )
    assert "its keys: steps, epochs, patience" in line("training.foo=1")
    assert "model.preset is 'tinny'; allowed: tiny, 170m, 340m, 400m, 760m, 1.3b; did you mean 'tiny'?" in line(
        "model.preset=tinny", "data.train=gone.txt"
    )
    assert "must be a number, got str 'fast'" in line("training.learning_rate=fast")
    assert "--set 'training.steps' is not of the form" in line("training.steps")
    assert "too little data" in line("data.sequence_length=100000")
    assert "'gone.txt' does not exist" in line("data.train=gone.txt")
    assert "did you mean 'mac'?" in line("model.variant=mag2") or "did you mean" in line("model.variant=mak")
    assert not output.exists()
    assert "is a folder" in fails("train", tmp_path)
    broken = tmp_path / "broken.toml"
    broken.write_text("[model\n")
    assert "is not valid TOML" in fails("train", broken)
    assert "a recipe is missing" in fails("train")
    assert "holds no run to resume" in fails("train", "--output", output, "--resume")


def test_empty_and_unreadable_data(fails, recipe_file, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9" * 100)
    (tmp_path / "rows.jsonl").write_text('{"body": "x"}\n')
    for name, message in (
        ("empty.txt", "holds no text"),
        ("latin.txt", "not text in UTF-8"),
        ("rows.jsonl", "no column 'text'; its columns: body"),
    ):
        line = fails("train", recipe_file, "--set", f"data.train={tmp_path / name}", "--output", tmp_path / "run")
        assert message in line
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_not_overwritten(fails, titans, trained, recipe_file):
    before = (trained / "model.safetensors").read_bytes()
    assert "already holds a finished run; give another --output" in fails("train", recipe_file, "--output", trained)
    code, out, err = titans("train", "--output", trained, "--resume")
    assert code == 0
    assert "nothing to resume" in err
    assert "3 steps" in out
    assert (trained / "model.safetensors").read_bytes() == before


def test_ctrl_c_says_how_to_resume_and_that_works(titans, recipe_file, tmp_path, monkeypatch):
    plain = trainer.TitansTrainer.training_step

    def interrupted(self, *args, **kwargs):
        if self.state.global_step == 2:
            raise KeyboardInterrupt
        return plain(self, *args, **kwargs)

    output = tmp_path / "a run"
    with monkeypatch.context() as patch:
        patch.setattr(trainer.TitansTrainer, "training_step", interrupted)
        code, _, err = titans("train", recipe_file, "--output", output)
    assert code == 130
    last = err.strip().splitlines()[-1]
    assert "the last checkpoint is checkpoint-2" in last
    assert last.endswith(f"resume with: titans train {recipe_file} --output '{output}' --resume")
    code, out, err = titans("train", recipe_file, "--output", output, "--resume")
    assert code == 0, err
    assert "resuming from checkpoint-2" in err
    assert "3 steps" in out


def test_ctrl_c_keeps_the_running_step(titans, recipe_file, tmp_path):
    """In a process of its own, as on a terminal."""
    output = tmp_path / "run"
    words = [sys.executable, "-m", "titanslab.cli", "train", str(recipe_file), "--output", str(output)]
    environment = os.environ | {"HF_HOME": str(tmp_path / "home")}
    for name in ("training.steps=100000", "training.save_every=100000"):
        words += ["--set", name]
    process = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    metrics = output / "metrics.jsonl"
    wait_for_lines(process, metrics, 3)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=120)[1]
    assert process.returncode == 130, err
    assert "stopping at the end of this step, with a checkpoint; press Ctrl-C again to stop at once" in err
    steps = json.loads(metrics.read_text().splitlines()[-1])["step"]
    last = err.strip().splitlines()[-1]
    assert f"the last checkpoint is checkpoint-{steps}; resume with: titans train" in last
    assert last.endswith("--resume")
    assert (output / "loss.png").exists()
