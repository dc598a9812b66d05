"""`titans generate`: text to stdout, broken models in one line."""

import io
import json
import shutil

import pytest

from titanslab.cli.generate import TextWriter
from titanslab.data import byte_tokenizer


def test_same_seed_same_text(titans, trained, tmp_path, monkeypatch):
    words = ("generate", "--model", trained, "--prompt", "Line 1: é", "--max-new-tokens", "12")
    first = titans(*words)
    assert first[0] == 0, first[2]
    assert first[1].endswith("\n")
    assert titans(*words)[1] == first[1]
    assert titans("generate", "--model", trained, "Line 1: é", "--max-new-tokens", "12")[1] == first[1]
    for piped in ("Line 1: é", "Line 1: é\n"):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(piped.encode())))
        assert titans("generate", "--model", trained, "--max-new-tokens", "12")[1] == first[1]
    assert titans(*words, "--seed", "1")[1] != first[1]
    (tmp_path / "prompt.txt").write_text("Line 1: é")
    assert titans("generate", "-m", trained, "-f", tmp_path / "prompt.txt", "--max-new-tokens", "12")[1] == first[1]
    greedy = titans(*words, "--temperature", "0")
    assert greedy[0] == 0, greedy[2]
    assert titans(*words, "--temperature", "0", "--seed", "5")[1] == greedy[1]
    assert titans(*words, "--top-k", "1")[1] == greedy[1]


def test_an_unfinished_run_generates_from_its_last_checkpoint_and_says_so(titans, trained, tmp_path, caplog):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    (run / "config.json").unlink()
    words = ("--prompt", "x", "--max-new-tokens", "2")
    code, _, err = titans("generate", "--model", run, *words)
    assert code == 0, err
    said = [record.getMessage() for record in caplog.records if record.name.startswith("titanslab")]
    assert len(said) == 1
    assert f"{str(run)!r} is a run that has not finished" in said[0]
    assert str(max((run / "checkpoints").iterdir())) in said[0]
    caplog.clear()
    assert titans("generate", "--model", trained, *words)[0] == 0
    assert not [record for record in caplog.records if record.name.startswith("titanslab")]


def test_prompt_must_come_once(fails, trained, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert "give the text to continue: titans generate" in fails("generate", "--model", trained)
    both = "both give the text to continue; give one"
    assert f"--prompt and --file {both}" in fails("generate", "--model", trained, "--prompt", "a", "--file", "b")
    assert f"PROMPT and --prompt {both}" in fails("generate", "--model", trained, "a", "--prompt", "b")
    assert "No such file" in fails("generate", "--model", trained, "--file", tmp_path / "none.txt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    assert "not text in UTF-8" in fails("generate", "--model", trained, "--file", tmp_path / "latin.txt")
    assert "--prompt is not text in UTF-8 (character 4)" in fails("generate", "--model", trained, "-p", "caf\udce9")
    assert "--top-p must be above 0" in fails("generate", "--model", trained, "--prompt", "a", "--top-p", "0")
    assert "--device 'warp' cannot be used" in fails("generate", "-m", trained, "-p", "a", "--device", "warp")


def damage(name):
    def truncate(path):
        return path.write_bytes(path.read_bytes()[:-1000])

    def drop_tensor(path):
        from safetensors.torch import load_file, save_file

        tensors = load_file(path)
        tensors.pop(sorted(tensors)[0])
        save_file(tensors, path, metadata={"format": "pt"})

    def change_config(path):
        config = json.loads(path.read_text())
        path.write_text(json.dumps(config | {"hidden_size": 32}))

    return {
        "cut off": ("model.safetensors", truncate, "is not a whole safetensors file"),
        "no header": (
            "model.safetensors",
            lambda path: path.write_bytes(b"\xff" * 100),
            "is not a whole safetensors file",
        ),
        "tensor missing": ("model.safetensors", drop_tensor, "parameters of the model, "),
        "no weights": ("model.safetensors", lambda path: path.unlink(), r"holds no .safetensors file"),
        "other shapes": ("config.json", change_config, "cannot be loaded"),
        "no JSON": ("config.json", lambda path: path.write_text("{"), "is not valid JSON"),
        "no type": ("config.json", lambda path: path.write_text("{}"), "names no model_type"),
        "unknown type": ("config.json", lambda path: path.write_text('{"model_type": "what"}'), "cannot be loaded"),
        "no tokenizer": ("tokenizer", None, "holds no tokenizer"),
        "broken tokenizer": ("tokenizer.json", lambda path: path.write_text("{"), "cannot be read"),
    }[name]


@pytest.mark.parametrize(
    "name",
    [
        "cut off",
        "no header",
        "tensor missing",
        "no weights",
        "other shapes",
        "no JSON",
        "no type",
        "unknown type",
        "no tokenizer",
        "broken tokenizer",
    ],
)
def test_broken_models_are_named_in_one_line(name, fails, trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    file, break_it, message = damage(name)
    if file == "tokenizer":
        for path in run.glob("tokenizer*"):
            path.unlink()
    else:
        break_it(run / file)
    assert message in fails("generate", "--model", run, "--prompt", "x")


def test_what_is_no_model_folder(fails, tmp_path, text_file):
    assert "does not exist" in fails("generate", "--model", tmp_path / "none", "--prompt", "x")
    assert "is a file; give the folder" in fails("generate", "--model", text_file, "--prompt", "x")
    assert "holds no config.json" in fails("generate", "--model", tmp_path, "--prompt", "x")


def test_pickled_weights_and_code_in_the_folder_are_not_run(fails, trained, tmp_path):
    import pickle

    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    run = tmp_path / "run"
    shutil.copytree(trained, run, ignore=shutil.ignore_patterns("*.safetensors", "checkpoints"))
    (run / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    assert "holds no .safetensors file" in fails("generate", "--model", run, "--prompt", "x")
    config = json.loads((trained / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoModelForCausalLM": "evil.Evil", "AutoConfig": "evil.C"}}
    shutil.copy(trained / "model.safetensors", run)
    (run / "config.json").write_text(json.dumps(config))
    (run / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    assert "cannot be loaded" in fails("generate", "--model", run, "--prompt", "x")
    assert not (tmp_path / "ran").exists()


def test_writer_waits_for_whole_characters(capsys):
    import torch

    text = "aé漢🎉 end <bos>"
    writer = TextWriter(byte_tokenizer(), 100)
    writer.put(torch.tensor([[256, 97]]))
    seen = []
    for byte in text.encode():
        writer.put(torch.tensor([byte]))
        seen.append(capsys.readouterr().out)
    writer.put(torch.tensor([257]))
    writer.end()
    assert "".join(seen) == text
    assert capsys.readouterr().out == "\n"
    assert seen[1:3] == ["", "é"]


def test_writer_shows_broken_characters_at_the_end(capsys):
    import torch

    writer = TextWriter(byte_tokenizer(), 100)
    writer.put(torch.tensor([[256]]))
    for byte in (0xE6, 0xBC):
        writer.put(torch.tensor([byte]))
    writer.end()
    assert capsys.readouterr().out.startswith("\ufffd")
