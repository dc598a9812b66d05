"""Tokenised corpora are kept on disk and made anew when anything they depend on changes."""

import gzip
import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

import titanslab.data.pieces as pieces_module
import titanslab.data.tokens as tokens_module
from titanslab.data import TextEncoder, byte_tokenizer, encode, open_corpus, tokenize
from titanslab.data.bpe import train_bpe
from titanslab.data.shards import MANIFEST, ShardedTokens


def whole(tokens):
    """The ids, the offsets and the bytes of text of a tokenised corpus, as lists and a number."""
    return [*tokens.piece(0, len(tokens))[0].tolist()], [0, *np.cumsum(tokens.lengths()).tolist()], tokens.text_bytes


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("some text")
    return path


def test_the_second_time_is_read_from_the_cache(text_file, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    first = tokenize(open_corpus(str(text_file)), byte_tokenizer(), cache=cache)
    monkeypatch.setattr(TextEncoder, "encode", None)  # encoding again would fail
    second = tokenize(open_corpus(str(text_file)), byte_tokenizer(), cache=cache)
    assert isinstance(second, ShardedTokens)
    assert whole(second) == whole(first) == ([256, *b"some text", 257], [0, 11], 9)
    assert not [name for name in os.listdir(cache) if name.startswith(".")]


def test_changed_text_is_tokenised_anew(text_file, tmp_path):
    cache = tmp_path / "cache"
    tokenize(open_corpus(str(text_file)), byte_tokenizer(), cache=cache)
    text_file.write_text("other text, longer")
    again = tokenize(open_corpus(str(text_file)), byte_tokenizer(), cache=cache)
    assert bytes(whole(again)[0][1:-1]) == b"other text, longer"


def test_small_batches_give_the_same_tokens(tmp_path, monkeypatch):
    for number in range(5):
        (tmp_path / f"{number}.txt").write_text(f"text {number}")
    at_once = tokenize(open_corpus(str(tmp_path)), byte_tokenizer())
    monkeypatch.setattr(pieces_module, "GROUP_CHARACTERS", 7)
    seen = []
    pieces = tokenize(
        open_corpus(str(tmp_path)), byte_tokenizer(), progress=lambda done, total, note=None: seen.append((done, total))
    )
    assert pieces.ids.tolist() == at_once.ids.tolist()
    assert len(seen) > 1
    assert {total for _, total in seen} == {30}


def test_nothing_but_empty_files_raises(tmp_path):
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ValueError, match="holds no text"):
        tokenize(open_corpus(str(tmp_path / "a.txt"), "data.train"), byte_tokenizer())


def test_a_long_document_is_reported_in_parts_and_gives_the_same_tokens(tmp_path, monkeypatch):
    words = [
        "the",
        "river",
        "42",
        "3.14",
        "caf\u00e9",
        "\u2603",
        "don't",
        "a_b",
        "  two",
        "\n\n",
        "\tx",
        "\u3000wide",
        "<bos>",
    ]
    rng = random.Random(0)
    text = " ".join(rng.choices(words, k=5000))
    tokenizer = train_bpe([text], 400)
    path = tmp_path / "long.txt"
    path.write_text(text, encoding="utf-8")
    at_once = TextEncoder(tokenizer).documents([text])[0]
    monkeypatch.setattr(encode, "PART_CHARACTERS", 150)
    monkeypatch.setattr(pieces_module, "GROUP_CHARACTERS", 1500)
    seen = []
    tokens = tokenize(
        open_corpus(str(path)), tokenizer, progress=lambda done, total, note=None: seen.append((done, total))
    )
    assert len(TextEncoder(tokenizer).parts(text)) > 50
    assert tokens.ids.tolist() == at_once.tolist()
    assert len(seen) > 10
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert (seen[0], seen[-1]) == ((0, path.stat().st_size), (path.stat().st_size, path.stat().st_size))


def test_tokenizers_that_may_join_words_get_whole_texts():
    text = "a word " * 50_000
    assert TextEncoder(byte_tokenizer()).parts(text) == [text]
    backend = Tokenizer(models.BPE(vocab={"a": 0, " ": 1}, merges=[]))
    assert TextEncoder(backend).parts(text) == [text]
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert len(TextEncoder(backend).parts(text)) == 4
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    assert TextEncoder(backend).parts(text) == [text]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.parquet"])
def test_progress_moves_inside_a_file(name, tmp_path, monkeypatch):
    path = tmp_path / name
    rows = [{"text": "".join(random.Random(i).choices("abcdefgh ", k=2000))} for i in range(400)]
    if name.endswith("parquet"):
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=50)
    else:
        lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(lines) if name.endswith("gz") else lines)
    monkeypatch.setattr(pieces_module, "GROUP_CHARACTERS", 50_000)
    seen = []
    tokenize(
        open_corpus(str(path)), byte_tokenizer(), progress=lambda done, total, note=None: seen.append(done / total)
    )
    assert seen == sorted(seen)
    assert seen[-1] <= 1
    assert len({round(share, 2) for share in seen}) > 4


def test_two_processes_tokenise_a_text_once(text_file, tmp_path):
    """The second waits for the first, which is made slow, and reads what it wrote."""
    program = (
        "import sys, time\nfrom titanslab.data import byte_tokenizer, open_corpus, tokenize\n"
        "import titanslab.data.tokens as module\nfrom pathlib import Path\nmade, write = [], module.write_shards\n"
        "def slow(*a, **b):\n    made.append(1); time.sleep(1); return write(*a, **b)\n"
        "module.write_shards = slow\nnotes = []\n"
        "tokens = tokenize(open_corpus(sys.argv[1]), byte_tokenizer(), cache=Path(sys.argv[2]),\n"
        "                  progress=lambda done, total, note=None: notes.append(note or ''))\n"
        "print(len(made), len(tokens), sum('waiting: token cache' in n for n in notes))\n"
    )
    words = [sys.executable, "-c", program, str(text_file), str(tmp_path / "cache")]
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = sorted(process.communicate()[0].strip() for process in both)
    assert said in (["0 11 1", "1 11 0"], ["0 11 0", "1 11 0"])  # the latter if the second began after the first's end
    assert len(list((tmp_path / "cache").iterdir())) == 1


def cached(tmp_path):
    """A corpus, its cache's folder and its tokens."""
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(9)))
    corpus = open_corpus(str(tmp_path / "a.jsonl"))
    tokens = tokenize(corpus, byte_tokenizer(), cache=tmp_path / "cache")
    return corpus, next((tmp_path / "cache").iterdir()), tokens


IDS, DOCUMENTS = "tokens-00000.bin", "documents-00000.bin"


def change(name: str, place: int, kind=np.uint16):
    """Add 1 to a number in a file."""

    def damage(folder):
        numbers = np.fromfile(folder / name, kind)
        numbers[place] += 1
        numbers.tofile(folder / name)

    return damage


def manifest(text, other=None):
    def damage(folder):
        path = folder / MANIFEST
        path.write_text(text if other is None else path.read_text().replace(text, other))

    return damage


DAMAGE = {
    "tokens-00000.bin was altered: it does not agree with its checksum": change(IDS, 5),
    "documents-00000.bin was altered: it does not agree with its": change(DOCUMENTS, 3, np.int64),
    "tokens-00000.bin has 200 bytes, and": lambda folder: os.truncate(folder / IDS, 200),
    "tokens-00000.bin is empty, and": lambda folder: os.truncate(folder / IDS, 0),
    "documents-00000.bin has 79 bytes": lambda folder: os.truncate(folder / DOCUMENTS, 79),
    "tokens-00000.bin is missing": lambda folder: (folder / IDS).unlink(),
    "No such file": lambda folder: (folder / MANIFEST).unlink(),
    "was altered": manifest('"tokens_checksum": "', '"tokens_checksum": "0'),
    "has 144 bytes, and .* says 288": manifest("uint16", "uint32"),
    "tokens must be a whole number of at least 0, got int -1": manifest('"tokens": 72', '"tokens": -1'),
    "format is 9, and this release reads 1": manifest('"format": 1', '"format": 9'),
    "shards do not add up to totals, or hold no token": manifest('{\n  "tokens": 72', '{\n  "tokens": 73'),
    "must be a table": manifest("null"),
    "more than 64 tables": manifest("[" * 100_000 + "]" * 100_000),
}


@pytest.mark.parametrize("words", DAMAGE)
def test_a_damaged_cache_is_made_again_and_says_so(words, tmp_path):
    corpus, folder, tokens = cached(tmp_path)
    good = whole(tokens)
    DAMAGE[words](folder)
    said = f"the tokens in {folder} are damaged and are made again: .*({words})"
    with pytest.warns(UserWarning, match=said):
        again = tokenize(corpus, byte_tokenizer(), cache=tmp_path / "cache")
    third = tokenize(corpus, byte_tokenizer(), cache=tmp_path / "cache")  # without a warning
    assert whole(again) == whole(third) == good
    assert list((tmp_path / "cache").iterdir()) == [folder]


def test_a_cache_whose_writer_was_killed_is_finished(tmp_path, monkeypatch):
    monkeypatch.setattr(tokens_module, "SHARD_TOKENS", 10)
    monkeypatch.setattr(pieces_module, "GROUP_CHARACTERS", 1)
    corpus, folder, tokens = cached(tmp_path)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len(files) == 11
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()

    class Killed(BaseException):
        pass

    def stopping(done, total, note=None):
        if len(list(folder.glob("tokens-*"))) > 2:
            raise Killed

    with pytest.raises(Killed):
        tokenize(corpus, byte_tokenizer(), cache=tmp_path / "cache", progress=stopping)
    kept = [path.stat().st_mtime_ns for path in sorted(folder.glob("tokens-*"))]
    assert len(kept) == 3
    again = tokenize(corpus, byte_tokenizer(), cache=tmp_path / "cache")
    assert whole(again) == whole(tokens)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    assert [path.stat().st_mtime_ns for path in sorted(folder.glob("tokens-*"))][:3] == kept


def test_a_file_in_place_of_the_cache_gives_way(tmp_path):
    corpus, folder, _ = cached(tmp_path)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    folder.write_text("")
    with pytest.warns(UserWarning, match="are damaged and are made again: .*Not a directory"):
        tokenize(corpus, byte_tokenizer(), cache=tmp_path / "cache")
    assert folder.is_dir()
