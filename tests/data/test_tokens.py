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

import titanslab.data.tokens as tokens_module
from titanslab.data import TextEncoder, byte_tokenizer, encode, open_corpus, tokenize
from titanslab.data.bpe import train_bpe


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("some text")
    return path


def test_the_second_time_is_read_from_the_cache(text_file, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    first = tokenize(open_corpus(str(text_file)), byte_tokenizer(), cache=cache)
    monkeypatch.setattr(tokens_module.TextEncoder, "documents", None)  # encoding again would fail
    second = tokenize(open_corpus(str(text_file)), byte_tokenizer(), cache=cache)
    assert second.ids.tolist() == first.ids.tolist()
    assert second.offsets.tolist() == first.offsets.tolist()
    assert second.text_bytes == first.text_bytes == 9
    assert not [name for name in os.listdir(cache) if name.startswith(".")]


def test_changed_text_is_tokenised_anew(text_file, tmp_path):
    cache = tmp_path / "cache"
    tokenize(open_corpus(str(text_file)), byte_tokenizer(), cache=cache)
    text_file.write_text("other text, longer")
    again = tokenize(open_corpus(str(text_file)), byte_tokenizer(), cache=cache)
    assert bytes(again.ids[1:-1].astype(np.uint8)) == b"other text, longer"


def test_small_batches_give_the_same_tokens(tmp_path, monkeypatch):
    for number in range(5):
        (tmp_path / f"{number}.txt").write_text(f"text {number}")
    whole = tokenize(open_corpus(str(tmp_path)), byte_tokenizer())
    monkeypatch.setattr(tokens_module, "BATCH_CHARACTERS", 7)
    seen = []
    pieces = tokenize(
        open_corpus(str(tmp_path)), byte_tokenizer(), progress=lambda done, total: seen.append((done, total))
    )
    assert pieces.ids.tolist() == whole.ids.tolist()
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
    whole = TextEncoder(tokenizer).documents([text])[0]
    monkeypatch.setattr(encode, "PART_CHARACTERS", 150)
    monkeypatch.setattr(encode, "GROUP_CHARACTERS", 1500)
    seen = []
    tokens = tokenize(open_corpus(str(path)), tokenizer, progress=lambda done, total: seen.append((done, total)))
    assert len(TextEncoder(tokenizer)._parts(text)) > 50
    assert tokens.ids.tolist() == whole.tolist()
    assert len(seen) > 10
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert (seen[0], seen[-1]) == ((0, path.stat().st_size), (path.stat().st_size, path.stat().st_size))


def test_tokenizers_that_may_join_words_get_whole_texts():
    text = "a word " * 50_000
    assert TextEncoder(byte_tokenizer())._parts(text) == [text]
    backend = Tokenizer(models.BPE(vocab={"a": 0, " ": 1}, merges=[]))
    assert TextEncoder(backend)._parts(text) == [text]
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert len(TextEncoder(backend)._parts(text)) == 4
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    assert TextEncoder(backend)._parts(text) == [text]


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
    monkeypatch.setattr(tokens_module, "BATCH_CHARACTERS", 50_000)
    seen = []
    tokenize(open_corpus(str(path)), byte_tokenizer(), progress=lambda done, total: seen.append(done / total))
    assert seen == sorted(seen)
    assert seen[-1] <= 1
    assert len({round(share, 2) for share in seen}) > 4


def test_two_processes_tokenise_a_text_once(text_file, tmp_path):
    """The second waits for the first, which is made slow, and reads what it wrote."""
    program = (
        "import sys, time\nfrom titanslab.data import byte_tokenizer, open_corpus, tokenize\n"
        "import titanslab.data.tokens as module\nfrom pathlib import Path\nmade, encode = [], module._encode\n"
        "def slow(*a):\n    made.append(1); time.sleep(1); return encode(*a)\n"
        "module._encode = slow\nnotes = []\n"
        "tokens = tokenize(open_corpus(sys.argv[1]), byte_tokenizer(), cache=Path(sys.argv[2]),\n"
        "                  progress=lambda done, total, note='': notes.append(note))\n"
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


def change(array: np.ndarray, place: int, value: int) -> np.ndarray:
    array = np.array(array)
    array[place] = value
    return array


def save(name: str, make):
    return lambda folder, tokens: np.save(folder / name, make(tokens))


def text(value):
    return lambda folder, tokens: (folder / "text.json").write_text(value)


DAMAGE = {
    "do not agree with their checksum": save("ids.npy", lambda t: change(t.ids, 5, 66)),
    "do not agree with their checksum ": save("offsets.npy", lambda t: change(t.offsets, 3, t.offsets[3] + 1)),
    "offsets.npy does not cut the": save("offsets.npy", lambda t: change(t.offsets, 3, -7)),
    "offsets.npy does not cut the ": save("offsets.npy", lambda t: change(t.offsets, 3, 10**9)),
    "offsets.npy does not cut the  ": save("offsets.npy", lambda t: t.offsets[:-1]),
    "ids.npy holds float32": save("ids.npy", lambda t: t.ids.astype(np.float32)),
    "ids.npy holds uint16 .2": save("ids.npy", lambda t: t.ids[: len(t) // 2 * 2].reshape(2, -1)),
    "Python objects in dtype": save("ids.npy", lambda t: np.array([{}], dtype=object)),
    "mmap length is greater": lambda folder, tokens: os.truncate(folder / "ids.npy", 200),
    "No data left|Cannot mmap|empty": lambda folder, tokens: os.truncate(folder / "offsets.npy", 0),
    "No such file": lambda folder, tokens: (folder / "ids.npy").unlink(),
    "text.json: text_bytes must be": text('{"text_bytes": -1}'),
    "text.json must be a table": text("null"),
    "more than 64 tables": text("[" * 100_000 + "]" * 100_000),
}


@pytest.mark.parametrize("words", DAMAGE)
def test_a_damaged_cache_is_made_again_and_says_so(words, tmp_path):
    corpus, folder, good = cached(tmp_path)
    good = tokens_module.Tokens(np.array(good.ids), np.array(good.offsets), good.text_bytes)
    DAMAGE[words](folder, good)
    said = f"the tokens in {folder} are damaged and are made again: .*({words.strip()})"
    with pytest.warns(UserWarning, match=said):
        again = tokenize(corpus, byte_tokenizer(), cache=tmp_path / "cache")
    third = tokenize(corpus, byte_tokenizer(), cache=tmp_path / "cache")  # without a warning
    for tokens in (again, third):
        assert tokens.ids.tolist() == good.ids.tolist()
        assert tokens.offsets.tolist() == good.offsets.tolist()
        assert tokens.text_bytes == good.text_bytes
    assert list((tmp_path / "cache").iterdir()) == [folder]


def test_a_cache_without_a_checksum_is_checked_and_used(tmp_path, monkeypatch):
    corpus, folder, good = cached(tmp_path)
    (folder / "text.json").write_text(json.dumps({"text_bytes": good.text_bytes}))
    monkeypatch.setattr(tokens_module.TextEncoder, "documents", None)  # encoding again would fail
    with pytest.warns(UserWarning, match=f"the tokens in {folder} carry no checksum"):
        assert tokenize(corpus, byte_tokenizer(), cache=tmp_path / "cache").ids.tolist() == good.ids.tolist()
    monkeypatch.undo()
    np.save(folder / "ids.npy", change(good.ids, 5, 60_000))
    with pytest.warns(UserWarning, match="ids.npy holds the id 60000, and the tokenizer has 2"):
        assert tokenize(corpus, byte_tokenizer(), cache=tmp_path / "cache").ids.tolist() == good.ids.tolist()


def test_a_file_in_place_of_the_cache_gives_way(tmp_path):
    corpus, folder, _ = cached(tmp_path)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    folder.write_text("")
    with pytest.warns(UserWarning, match="are damaged and are made again: .*Not a directory"):
        tokenize(corpus, byte_tokenizer(), cache=tmp_path / "cache")
    assert folder.is_dir()
