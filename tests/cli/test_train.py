"""`titans train`: runs, overrides, refusals, Ctrl-C."""

import json
import re

from titanslab.training import trainer


def test_trains_and_says_where(titans, recipe_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = titans("train", recipe_file, "--set", "training.steps=2")
    assert code == 0, err
    assert out.startswith("runs/small: 2 steps, last loss")
    assert re.search(r"^training: 2 of 2 steps, .*, loss \d+\.\d{4}, .* tokens/s, 0 s left$", err, re.MULTILINE)
    assert json.loads((tmp_path / "runs/small/result.json").read_text())["steps"] == 2


def test_what_is_wrong_with_a_recipe(fails, recipe_file, tmp_path):
    output = tmp_path / "run"

    def line(*assignments):
        words = [word for assignment in assignments for word in ("--set", assignment)]
        return fails("train", recipe_file, "--output", output, *words)

    assert "did you mean 'learning_rate'?" in line("training.learning_rat=1")
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
