"""`titans tokenizer`, and recipes that make their own."""

import hashlib
import json
import os
import random
import subprocess
import sys

import pytest
from transformers import AutoTokenizer

LINE = "the river ran under an old bridge where nobody had crossed since winter came to town in 1923"


@pytest.fixture(scope="module")
def books(tmp_path_factory):
    folder = tmp_path_factory.mktemp("books")
    for number in range(3):
        rng = random.Random(number)
        (folder / f"{number}.txt").write_text(". ".join(" ".join(rng.choices(LINE.split(), k=8)) for _ in range(300)))
    return folder


def test_makes_a_tokenizer_that_encodes_any_text(titans, books, tmp_path):
    code, out, err = titans("tokenizer", books, "--vocab", 320, "--output", tmp_path / "tok")
    assert code == 0, err
    assert out.startswith(f"{tmp_path / 'tok'}: 320 tokens, of ")
    assert f"titans train RECIPE.toml --set data.tokenizer={tmp_path / 'tok'}" in out
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tok")
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1, 2)
    assert len(tokenizer.encode(" river")) == 1
    assert len(tokenizer.encode("1923")) == 4
    strange = "Zo\u00eb's \u2603 <bos> \r\n\t caf\u00e9"
    assert tokenizer.decode(tokenizer.encode(strange)[0:]) == strange


def test_the_same_texts_give_the_same_tokenizer_whatever_the_threads(books, tmp_path):
    digests = set()
    for number, threads in enumerate(("1", "4", "2")):
        folder = tmp_path / str(number)
        command = [sys.executable, "-m", "titanslab.cli", "tokenizer", str(books), "--vocab", "400", "-o", str(folder)]
        environment = os.environ | {"RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads}
        subprocess.run(command, check=True, capture_output=True, env=environment, timeout=300)
        digests.add(hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest())
    assert len(digests) == 1


def test_each_file_gives_the_same_share_of_the_text(titans, books, tmp_path):
    (tmp_path / "a.txt").write_text("aaaa " * 10_000)
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"body": "wombat"}) + "\n" for _ in range(5000)))
    words = ["--text-column", "body", "--vocab", 300, "--characters", 4000, "--output", tmp_path / "tok"]
    assert titans("tokenizer", tmp_path / "a.txt", tmp_path / "b.jsonl", *words)[0] == 0
    assert len(AutoTokenizer.from_pretrained(tmp_path / "tok").encode("wombat")) == 1


def test_what_is_wrong(fails, books, tmp_path):
    assert "--vocab must be 260 or more" in fails("tokenizer", books, "--vocab", 200, "--output", tmp_path / "tok")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    assert "already holds files" in fails("tokenizer", books, "--output", tmp_path / "full")
    assert "is a file; give a folder" in fails("tokenizer", books, "--output", tmp_path / "full" / "x")
    assert "'gone.txt' does not exist" in fails("tokenizer", "gone.txt", "--output", tmp_path / "tok")
    (tmp_path / "empty.txt").write_text("")
    assert "holds no text" in fails("tokenizer", tmp_path / "empty.txt", "--output", tmp_path / "tok")
    assert not (tmp_path / "tok").exists()


def test_a_run_with_a_tokenizer_of_its_own_generates(titans, recipe_file, books, tmp_path):
    run = tmp_path / "run"
    words = ["--set", f"data.train={books}", "--set", "data.tokenizer=bpe:300", "--output", run]
    code, _, err = titans("train", recipe_file, *words)
    assert code == 0, err
    assert len(AutoTokenizer.from_pretrained(run / "tokenizer")) == 300
    code, _, err = titans("generate", "--model", run, "--prompt", "the river", "--max-new-tokens", 3)
    assert code == 0, err
    assert titans("info", "--config", run / "recipe.toml")[0] == 0
