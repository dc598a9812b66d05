"""`titans tokenize`: texts into a folder of tokens, killed and resumed, and trained from."""

import json
import os
import re
import time

import pytest

from children import Child
from texts import contents, texts, write_jsonl
from titanslab.data.shards import ShardedTokens


@pytest.fixture(scope="module")
def books(tmp_path_factory):
    return write_jsonl(tmp_path_factory.mktemp("books") / "books" / "a.jsonl", texts(300)).parent


def test_makes_tokens_and_trains_from_them(titans, books, recipe_file, tmp_path):
    tokens, tok = tmp_path / "tokens", tmp_path / "tok"
    assert titans("tokenizer", books, "--vocab", 300, "--output", tok)[0] == 0
    code, out, err = titans("tokenize", books, "--tokenizer", tok, "--output", tokens, "--shard-tokens", 2000)
    assert code == 0, err
    assert re.match(r".*tokens: [\d,]+ tokens of 300 documents in \d+ shards, 0\.\d MB of text \(\d\.\d\d bytes a", out)
    size = (books / "a.jsonl").stat().st_size / 1e3
    first, *_, last = err.splitlines()
    assert first == f"tokenizing: 0 bytes of {size:.1f} kB"
    assert re.fullmatch(rf"tokenizing: {size:.1f} kB of {size:.1f} kB, [\d.]+ [kM]B/s, 0 s left", last)
    run, words = tmp_path / "run", out.splitlines()[-1].split()[4:]
    assert words == ["--set", f"data.train={tokens}", "--set", f"data.tokenizer={tokens}"]
    more = ("--set", f"data.validation={tokens}", "--set", "training.eval_every=3")
    code, out, err = titans("train", recipe_file, *words, *more, "--output", run)
    assert code == 0, err
    assert "evaluate --model" not in out.replace("evaluate niah", "")
    other = tmp_path / "text"
    words = ("--set", f"data.train={books}", "--set", f"data.tokenizer={tok}")
    code, _, err = titans("train", recipe_file, *words, "--output", other)
    assert code == 0, err
    assert f"tokenizing data.train: 0 bytes of {size:.1f} kB" in err.splitlines()
    losses = [
        [
            line["loss"]
            for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
            if "loss" in line
        ]
        for folder in (run, other)
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 3


def test_killed_and_resumed_equals_uninterrupted(books, tmp_path):
    words = ("tokenize", books, "--tokenizer", "byte", "--shard-tokens", 200)
    assert Child(tmp_path / "a", *words, "--output", tmp_path / "whole").wait() == 0
    output = tmp_path / "killed"
    for number, more in enumerate(((), ("--resume",))):
        child = Child(tmp_path / f"b{number}", *words, "--output", output, *more)
        while len(list(output.glob("tokens-*"))) < 20 * (number + 1) and child.process.is_alive():
            time.sleep(0.001)
        child.process.kill()
        assert child.wait() == -9
    with pytest.raises(ValueError, match="is not finished"):
        ShardedTokens(output)
    last = Child(tmp_path / "c", *words, "--output", output, "--resume")
    assert last.wait() == 0, last.err
    assert contents(output) == contents(tmp_path / "whole")
    assert ShardedTokens(output).documents == 300


def test_ctrl_c_says_how_to_go_on(books, tmp_path, titans, monkeypatch):
    from titanslab.data import write_shards

    plain, output = write_shards._write_shard, tmp_path / "out"
    words = ("tokenize", books, "--tokenizer", "byte", "--output", output, "--shard-tokens", 5000)

    def interrupted(folder, manifest, stream):
        if len(manifest.shards) == after:
            raise KeyboardInterrupt
        return plain(folder, manifest, stream)

    with monkeypatch.context() as patch:
        patch.setattr(write_shards, "_write_shard", interrupted)
        after = 0
        code, _, err = titans(*words)
        assert (code, err.splitlines()[-1]) == (
            130,
            "titans: interrupted before the first shard was whole; nothing was written",
        )
        assert not output.exists()
        after = 2
        code, _, err = titans(*words)
        assert code == 130
        assert err.endswith(
            f"titans: interrupted; the whole shards are in {output}, and the same command with --resume goes on\n"
        )
    assert titans(*words, "--resume")[0] == 0
    code, out, _ = titans(*words, "--resume")
    assert code == 0
    assert "tokens of 300 documents" in out


def test_what_is_wrong(fails, titans, books, recipe_file, tmp_path):
    output = tmp_path / "out"
    assert "'gone.jsonl' does not exist" in fails("tokenize", "gone.jsonl", "-t", "byte", "-o", output)
    assert "tokenizer 'bpe:300' is made of the training text by titans train; make one with" in fails(
        "tokenize", books, "-t", "bpe:300", "-o", output
    )
    assert "Missing option '--tokenizer'" in fails("tokenize", books, "-o", output)
    assert "holds nothing to resume" in fails("tokenize", books, "-t", "byte", "-o", output, "--resume")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 but not really")
    line = fails("tokenize", tmp_path / "bad.parquet", "-t", "byte", "-o", output)
    assert "bad.parquet' cannot be read as parquet" in line
    assert not output.exists()
    assert titans("tokenize", books, "-t", "byte", "-o", output)[0] == 0
    before = contents(output)
    assert "already holds finished tokens; give another --output" in fails(
        "tokenize", books, "-t", "byte", "-o", output
    )
    assert contents(output) == before

    def train(*assignments):
        sets = [word for one in (f"data.train={output}", *assignments) for word in ("--set", one)]
        return fails("train", recipe_file, *sets, "--output", tmp_path / "run")

    assert "data.streaming = true reads texts" in train("data.streaming=true")
    assert f"set data.tokenizer = '{output}', which keeps the tokenizer of its" in train("data.tokenizer=bpe:300")
    tok = tmp_path / "tok"
    assert titans("tokenizer", books, "--vocab", 300, "--output", tok)[0] == 0
    assert (
        f"data.train: '{output}' holds tokens of another tokenizer than data.tokenizer (size 259, not 300); "
        in train(f"data.tokenizer={tok}")
    )
    os.truncate(output / "tokens-00000.bin", 1000)
    assert "tokens-00000.bin has 1,000 bytes, and titans-tokens.json says" in train()
    (output / "tokens-00000.bin").write_bytes(bytes(len(before["tokens-00000.bin"])))
    code, _, err = titans("train", recipe_file, "--set", f"data.train={output}", "--output", tmp_path / "run")
    assert code == 2
    assert "tokens-00000.bin was altered: it does not agree with its checksum" in err.splitlines()[-1]
