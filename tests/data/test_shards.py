"""Folders of tokens: the same files whatever the processes and the interruptions, and every damage found."""

import errno
import json
import os
import pickle

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

import titanslab.data.pieces as pieces_module
import titanslab.data.write_shards as module
from texts import contents, texts, write_jsonl
from titanslab.data import TextEncoder, byte_tokenizer, load_tokenizer, open_corpus, pool
from titanslab.data.bpe import train_bpe
from titanslab.data.packing import TokenRows
from titanslab.data.shards import MANIFEST, ShardedTokens, read_manifest, token_folder
from titanslab.data.tokens import Tokens
from titanslab.data.write_shards import tokenize_folder


@pytest.fixture(scope="module")
def bpe():
    return train_bpe(texts(40), 300)


@pytest.fixture
def corpus(tmp_path):
    """Two files, the first of them with an empty text and a long one."""
    write_jsonl(tmp_path / "texts" / "a.jsonl", [*texts(20), "", " ".join(texts(100, 1))])
    write_jsonl(tmp_path / "texts" / "b.jsonl", texts(20, 2))
    return open_corpus(str(tmp_path / "texts"), "texts")


@pytest.fixture
def made(corpus, bpe, tmp_path):
    """A folder of tokens in several shards."""
    tokenize_folder(tmp_path / "made", corpus, bpe, shard_tokens=500)
    return tmp_path / "made"


def test_the_tokens_are_those_of_each_document(made, corpus, bpe):
    tokens, wanted = ShardedTokens(made), TextEncoder(bpe).documents(list(corpus))
    ids, numbers = tokens.piece(0, len(tokens))
    assert ids.tolist() == np.concatenate(wanted).tolist()
    assert numbers.tolist() == np.repeat(np.arange(len(wanted)), [len(ids) for ids in wanted]).tolist()
    assert tokens.lengths().tolist() == [len(ids) for ids in wanted]
    assert tokens.documents == len(wanted) == 41
    assert tokens.text_bytes == sum(len(text.encode()) for text in corpus)
    assert len(tokens.manifest.shards) > 3
    assert read_manifest(made).unfinished is None
    assert not [path.name for path in made.parent.rglob(".*")]


def test_parts_of_shards_are_those_of_one_array(made):
    tokens = ShardedTokens(made)
    ids, numbers = tokens.piece(0, len(tokens))
    one = Tokens(ids, np.concatenate([[0], np.cumsum(tokens.lengths())]), tokens.text_bytes)
    rng = np.random.default_rng(0)
    for start, stop in np.sort(rng.integers(0, len(tokens) + 1, (200, 2)), axis=1):
        for part, whole in zip(tokens.piece(start, stop), (ids, numbers), strict=True):
            assert part.tolist() == whole[start:stop].tolist()
    for pack in (True, False):
        rows, others = (TokenRows(source, 48, pack=pack, keep_tail=True) for source in (tokens, one))
        assert len(rows) == len(others) > 40
        for row, other in zip(rows, others, strict=True):
            assert {name: values.tolist() for name, values in row.items()} == {
                name: values.tolist() for name, values in other.items()
            }


def test_two_processes_make_the_same_files(made, corpus, bpe, tmp_path, monkeypatch):
    monkeypatch.setattr(pieces_module, "GROUP_CHARACTERS", 3000)
    tokenize_folder(tmp_path / "two", corpus, bpe, shard_tokens=500, processes=2)
    assert contents(tmp_path / "two") == contents(made)


def test_a_killed_process_is_named(corpus, bpe, tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "_begin", _end)
    with pytest.raises(ValueError, match="a process that encodes texts was killed, as happens where memory runs out"):
        tokenize_folder(tmp_path / "killed", corpus, bpe, processes=2)
    assert not (tmp_path / "killed").exists()


def _end(*_):
    os._exit(9)


class Killed(BaseException):
    pass


def stopped(after):
    """A progress that raises once some pieces were written."""
    count = 0

    def show(*_):
        nonlocal count
        count += 1
        if count > after:
            raise Killed

    return show


@pytest.mark.parametrize("after", [1, 20, 30, 41])
def test_resumed_equals_uninterrupted(after, made, corpus, bpe, tmp_path, monkeypatch):
    monkeypatch.setattr(pieces_module, "GROUP_CHARACTERS", 100)
    output = tmp_path / "resumed"
    with pytest.raises(Killed):
        tokenize_folder(output, corpus, bpe, shard_tokens=500, progress=stopped(after))
    if after == 1:
        assert not output.exists()  # no shard was whole
        return
    with pytest.raises(ValueError, match=r"is not finished; give the command that began it .* with --resume"):
        ShardedTokens(output)
    kept = {path.name: path.stat().st_mtime_ns for path in output.glob("tokens-*")}
    assert kept
    tokenize_folder(output, corpus, bpe, shard_tokens=500, resume=True)
    assert contents(output) == contents(made)
    assert kept.items() <= {path.name: path.stat().st_mtime_ns for path in output.glob("tokens-*")}.items()
    assert tokenize_folder(output, corpus, bpe, resume=True) == read_manifest(output)  # nothing is left to do


def test_a_resumed_run_must_be_the_same_run(corpus, bpe, tmp_path, monkeypatch):
    output = tmp_path / "part"
    monkeypatch.setattr(pieces_module, "GROUP_CHARACTERS", 100)
    with pytest.raises(Killed):
        tokenize_folder(output, corpus, bpe, shard_tokens=500, progress=stopped(20))
    before = contents(output)

    def refused(words, corpus=corpus, tokenizer=bpe, **options):
        with pytest.raises(ValueError, match=words):
            tokenize_folder(output, corpus, tokenizer, **{"shard_tokens": 500, "resume": True} | options)
        assert contents(output) == before

    refused("was started with another tokenizer", tokenizer=byte_tokenizer())
    refused(r"was started with --shard-tokens 500, now it is 600", shard_tokens=600)
    refused("was started with other texts: the files up to number 1", corpus=open_corpus(str(corpus.files[1])))
    refused("already holds a part of its tokens; add --resume to go on", resume=False)
    os.truncate(output / "tokens-00000.bin", 10)
    before = contents(output)
    refused(r"tokens-00000\.bin has 10 bytes, and titans-tokens.json says")
    with pytest.raises(ValueError, match="holds nothing to resume"):
        tokenize_folder(tmp_path / "new", corpus, bpe, resume=True)


def test_a_broken_source_keeps_the_shards_before_it_and_can_be_repaired(bpe, tmp_path, monkeypatch):
    monkeypatch.setattr(pieces_module, "GROUP_CHARACTERS", 100)
    folder, output = tmp_path / "texts", tmp_path / "out"
    folder.mkdir()
    for name, seed in (("a", 1), ("b", 2)):
        parquet.write_table(pyarrow.Table.from_pydict({"text": texts(30, seed)}), folder / f"{name}.parquet")
    tokenize_folder(tmp_path / "whole", open_corpus(str(folder)), bpe, shard_tokens=300)
    good = (folder / "b.parquet").read_bytes()
    (folder / "b.parquet").write_bytes(good[: len(good) // 2])
    words = r"b.parquet' cannot be read as parquet: .*\. .*out keeps \d+ whole shards; the same command with --resume"
    with pytest.raises(ValueError, match=words) as caught:
        tokenize_folder(output, open_corpus(str(folder)), bpe, shard_tokens=300)
    assert "\n" not in str(caught.value)
    (folder / "b.parquet").write_bytes(good)
    tokenize_folder(output, open_corpus(str(folder)), bpe, shard_tokens=300, resume=True)
    assert contents(output) == contents(tmp_path / "whole")


def test_a_full_disk_leaves_whole_shards(made, corpus, bpe, tmp_path, monkeypatch):
    plain, output = module.checksum, tmp_path / "full"

    def full(parts):
        if (output / "tokens-00001.bin").exists() and not isinstance(parts, list):
            next(parts)
            raise OSError(errno.ENOSPC, "No space left on device")
        return plain(parts)

    with monkeypatch.context() as patch:
        patch.setattr(module, "checksum", full)
        with pytest.raises(OSError, match="No space left on device; free some") as caught:
            tokenize_folder(output, corpus, bpe, shard_tokens=500)
    assert caught.value.filename == str(output / "tokens-00002.bin")
    assert not (output / "tokens-00002.bin").exists()
    assert not [path.name for path in output.iterdir() if path.name.startswith(".")]
    tokenize_folder(output, corpus, bpe, shard_tokens=500, resume=True)
    assert contents(output) == contents(made)


def lose_a_shard(folder):
    told = json.loads((folder / MANIFEST).read_text())
    del told["shards"][1]
    (folder / MANIFEST).write_text(json.dumps(told))


def change(name, place):
    def damage(folder):
        data = bytearray((folder / name).read_bytes())
        data[place] ^= 1
        (folder / name).write_bytes(data)

    return damage


AT_ONCE = {
    "tokens-00001.bin is missing, which titans-tokens.json names; copy": lambda f: (f / "tokens-00001.bin").unlink(),
    "tokens-00001.bin is empty, and": lambda f: os.truncate(f / "tokens-00001.bin", 0),
    "documents-00002.bin has 9 bytes, and": lambda f: os.truncate(f / "documents-00002.bin", 9),
    "titans-tokens.json: shards do not add up to totals": lose_a_shard,
    "titans-tokens.json is not valid JSON": lambda f: os.truncate(f / MANIFEST, 99),
}


@pytest.mark.parametrize("words", AT_ONCE)
def test_a_missing_or_cut_shard_is_found_at_once(words, made):
    AT_ONCE[words](made)
    with pytest.raises((ValueError, FileNotFoundError), match=words) as caught:
        ShardedTokens(made, "data.train")
    assert "make it again with titans tokenize" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["tokens-00001.bin", "documents-00001.bin"])
def test_an_altered_shard_is_found_when_it_is_read(name, made):
    change(name, 9)(made)
    tokens = ShardedTokens(made, "data.train")
    first = tokens.manifest.shards[0].tokens
    assert len(tokens.piece(0, first)[0]) == first
    with pytest.raises(ValueError, match=f"data.train: .*{name} was altered: it does not agree with its checksum"):
        tokens.piece(first - 1, first + 1)


def test_the_tokenizer_must_be_that_of_the_tokens(made, bpe):
    tokens = ShardedTokens(made, "data.train")
    tokens.check_tokenizer(bpe)
    tokens.check_tokenizer(load_tokenizer(str(made)))  # kept in the folder
    with pytest.raises(ValueError, match=r"data.train: '.*' holds tokens of another tokenizer .*\(size 300, not 259\)"):
        tokens.check_tokenizer(byte_tokenizer())
    other = train_bpe(texts(40, 5), 300)
    with pytest.raises(ValueError, match=r"\(identity \w+, not \w+\); set data.tokenizer = '.*made', which keeps its"):
        tokens.check_tokenizer(other)


def test_a_pickle_of_tokens_holds_no_token(made):
    tokens = ShardedTokens(made)
    whole = tokens.piece(0, len(tokens))
    copy = pickle.loads(data := pickle.dumps(tokens))
    assert len(data) < len(tokens)
    assert copy.piece(0, len(tokens))[0].tolist() == whole[0].tolist()


def test_a_folder_of_tokens_is_no_folder_of_texts(made, tmp_path):
    assert token_folder(str(made)) == made
    assert token_folder([str(made)]) is None
    assert token_folder(str(tmp_path)) is None
    with pytest.raises(ValueError, match="holds tokens that titans tokenize made, and texts are needed here"):
        open_corpus([str(made)])


def test_documents_without_a_token_and_without_an_end(tmp_path):
    """A tokenizer without special tokens gives nothing for a text that it drops."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    plain = PreTrainedTokenizerFast(tokenizer_object=backend)
    corpus = open_corpus(str(write_jsonl(tmp_path / "a.jsonl", ["a b", " ", "b", " "])))
    tokenize_folder(tmp_path / "out", corpus, plain, shard_tokens=1)
    tokens = ShardedTokens(tmp_path / "out")
    assert tokens.piece(0, 9)[0].tolist() == [0, 1, 1]
    assert tokens.piece(0, 9)[1].tolist() == [0, 0, 2]
    assert tokens.lengths().tolist() == [2, 0, 1, 0]
    blank = open_corpus(str(write_jsonl(tmp_path / "b.jsonl", [" "])))
    with pytest.raises(ValueError, match="holds no text"):
        tokenize_folder(tmp_path / "none", blank, plain)
