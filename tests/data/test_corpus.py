"""Corpora: every format, compressed or not, and one-line errors that name the file."""

import bz2
import gzip
import json
import lzma

import pyarrow
import pyarrow.parquet
import pytest

from titanslab.data import open_corpus

DOCUMENTS = ["first document\nof two lines", "second: é 漢字", "third"]
OPENERS = {"": open, ".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}


def write_jsonl(path, documents=DOCUMENTS, column="text", opener=open):
    with opener(path, "wt", encoding="utf-8") as file:
        for number, text in enumerate(documents):
            file.write(json.dumps({column: text, "number": number}) + "\n")
    return path


@pytest.mark.parametrize("compression", OPENERS)
def test_jsonl_and_text_compressed_or_not(compression, tmp_path):
    opener = OPENERS[compression]
    path = write_jsonl(tmp_path / f"a.jsonl{compression}", opener=opener)
    assert list(open_corpus(str(path))) == DOCUMENTS
    with opener(tmp_path / f"b.txt{compression}", "wt", encoding="utf-8") as file:
        file.write(DOCUMENTS[0])
    assert list(open_corpus(str(tmp_path / f"b.txt{compression}"))) == DOCUMENTS[:1]


def test_parquet_and_another_column(tmp_path):
    table = pyarrow.table({"body": DOCUMENTS, "id": [1, 2, 3]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert list(open_corpus(str(tmp_path / "a.parquet"), column="body")) == DOCUMENTS


@pytest.mark.parametrize(
    ("cut", "wanted"),
    [("file", ["one\ntwo\n\nthree\n"]), ("line", ["one", "two", "three"]), ("paragraph", ["one\ntwo", "three\n"])],
)
def test_text_files_are_cut_as_asked(cut, wanted, tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n\nthree\n")
    assert list(open_corpus(str(tmp_path), text_documents=cut)) == wanted


def test_folder_glob_and_list_in_a_fixed_order(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name, text in (("b.txt", "B"), ("a.txt", "A"), ("sub/c.txt", "C"), (".hidden/d.txt", "D")):
        (tmp_path / name).write_text(text)
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    write_jsonl(tmp_path / "z.jsonl", ["J"])
    assert list(open_corpus(str(tmp_path))) == ["A", "B", "C", "J"]
    assert list(open_corpus(str(tmp_path / "*.txt"))) == ["A", "B"]
    both = [str(tmp_path / "b.txt"), str(tmp_path / "sub"), str(tmp_path / "b.txt")]
    assert list(open_corpus(both)) == ["B", "C"]


def test_names_with_pattern_characters_are_plain_files(tmp_path):
    (tmp_path / "a[1]*.txt").write_text("text")
    assert list(open_corpus(str(tmp_path / "a[1]*.txt"))) == ["text"]


def test_a_name_with_colons_is_a_plain_file(tmp_path):
    (tmp_path / "std::vector.txt").write_text("text")
    assert list(open_corpus(str(tmp_path / "std::vector.txt"))) == ["text"]


def test_texts_that_look_like_dates_stay_texts(tmp_path):
    dates = ["2021-01-01", "2021-01-02 03:04:05"]
    assert list(open_corpus(str(write_jsonl(tmp_path / "days.jsonl", dates)))) == dates


def test_a_parquet_file_without_rows_is_passed_over(tmp_path):
    for name, texts in (("part-0", ["one", "two"]), ("part-1", [])):
        table = pyarrow.table({"text": pyarrow.array(texts, pyarrow.string())})
        pyarrow.parquet.write_table(table, tmp_path / f"{name}.parquet")
    assert list(open_corpus(str(tmp_path))) == ["one", "two"]


def test_local_files_are_read_without_calling_anybody(tmp_path, monkeypatch):
    import socket

    called = []

    def connect(*args, **kwargs):
        called.append(args)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", connect)
    monkeypatch.setattr(socket.socket, "connect", connect)
    assert list(open_corpus(str(write_jsonl(tmp_path / "a.jsonl")))) == DOCUMENTS
    assert not called


def test_empty_files_hold_no_document(tmp_path):
    (tmp_path / "a.txt").write_text("")
    (tmp_path / "b.jsonl").write_text("")
    (tmp_path / "c.txt").write_text("text")
    assert list(open_corpus(str(tmp_path))) == ["text"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bad.txt", b"caf\xe9 in latin-1", r"bad\.txt' is not text in UTF-8 \(byte 3"),
        ("bad.jsonl", b'{"text": "a"}\n{"text": ', r"bad\.jsonl' cannot be read as json"),
        ("bad.parquet", b"PAR1 but not really", r"bad\.parquet' cannot be read as parquet"),
        ("bad.txt.gz", b"\x1f\x8b\x08\0 cut off", r"bad\.txt\.gz' cannot be read as text"),
        ("bad.txt.xz", lzma.compress(b"x" * 10_000)[:40], r"bad\.txt\.xz' cannot be read as text"),
        ("other.jsonl", b'{"body": "a"}\n', r"no column 'text'; its columns: body"),
        ("number.jsonl", b'{"text": 3}\n', r"entry 1 has int in column 'text'"),
        ("data.csv", b"a,b\n", r"unknown kind; name it \.txt"),
    ],
)
def test_what_cannot_be_read_is_named_in_one_line(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        list(open_corpus(str(tmp_path / name), "data.train"))
    assert str(caught.value).startswith("data.train")
    assert "\n" not in str(caught.value)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data\.train: 'no\.txt' does not exist \(looked for /"):
        open_corpus("no.txt", "data.train")
    with pytest.raises(FileNotFoundError, match="holds no"):
        open_corpus(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no text, JSONL, parquet or FASTA file matches"):
        open_corpus(str(tmp_path / "*.jsonl"))
    with pytest.raises(ValueError, match="empty list"):
        open_corpus([])


def test_hub_names_are_loaded_by_datasets(monkeypatch):
    import datasets

    asked = []

    def load(name, subset, *, split, streaming):
        asked.append((name, subset, split, streaming))
        return datasets.Dataset.from_list([{"body": text} for text in DOCUMENTS])

    monkeypatch.setattr(datasets, "load_dataset", load)
    corpus = open_corpus("someone/stories", subset="en", split="test", streaming=True, column="body")
    assert list(corpus) == DOCUMENTS
    assert asked == [("someone/stories", "en", "test", True)]


@pytest.mark.parametrize("streaming", [False, True])
def test_documents_after_a_place(streaming, tmp_path, monkeypatch):
    """A run that goes on reads no file before its place, and skips rows of the hub."""
    import datasets

    write_jsonl(tmp_path / "a.jsonl", ["one", "two"])
    write_jsonl(tmp_path / "b.jsonl", ["", "three", "four"])
    corpus = open_corpus(str(tmp_path))
    every = list(corpus.entries())
    assert [(e.text, e.file, e.row) for e in every] == [("one", 0, 1), ("two", 0, 2), ("three", 1, 2), ("four", 1, 3)]
    assert every[-1].done == corpus.size
    (tmp_path / "a.jsonl").write_text("no JSON")
    assert [e.text for e in corpus.entries(1, 2)] == ["four"]
    rows = datasets.Dataset.from_list([{"text": text} for text in ("", "one", "", "two", "three")])
    rows = rows.to_iterable_dataset() if streaming else rows
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    hub = open_corpus("someone/stories", streaming=streaming)
    every = list(hub.entries())
    assert every == [("one", 0, 2, 2), ("two", 0, 4, 4), ("three", 0, 5, 5)]
    for entry in every:
        assert list(hub.entries(entry.file, entry.row)) == [other for other in every if other.row > entry.row]
    assert hub.unit == "documents"
    assert hub.size == (None if streaming else 5)
    assert (hub.fingerprint() is None) == streaming


def test_hub_that_cannot_be_reached_is_one_line(monkeypatch):
    import datasets

    def load(*args, **kwargs):
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(ValueError, match=r"neither a file or folder here .* nor a dataset .*: no route$"):
        list(open_corpus("someone/stories"))


def test_an_empty_name_a_path_and_names_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"data is an empty name; give a file, a folder or a pattern"):
        open_corpus("")
    (tmp_path / "~draft.txt").write_text("one")
    assert list(open_corpus("~draft.txt")) == ["one"]
    assert list(open_corpus(tmp_path / "~draft.txt")) == list(open_corpus([tmp_path])) == ["one"]
    with pytest.raises(FileNotFoundError, match=r"data: '~nobody-of-that-name/a.txt' does not exist"):
        open_corpus("~nobody-of-that-name/a.txt")


def test_two_columns_of_one_name_and_an_unknown_cut(tmp_path):
    columns = [pyarrow.array(["a"]), pyarrow.array(["b"])]
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays(columns, names=["text"] * 2), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a.parquet' has 2 columns named 'text'; rename all but one"):
        list(open_corpus(str(tmp_path / "a.parquet")))
    with pytest.raises(ValueError, match=r"text_documents must be 'file', 'line' or 'paragraph', got 'page'"):
        open_corpus(str(tmp_path / "a.parquet"), text_documents="page")
