"""The reader of texts: every kind of file, compressed or not, whole or in pieces; errors that name the file."""

import bz2
import datetime
import gzip
import json
import lzma
import random
import sys

import pytest

from titanslab.data import open_corpus
from titanslab.data import text as text_module
from titanslab.data.text import TextSource, iter_texts, read_words
from titanslab.tasks.babilong.babi import read_babi

try:
    from compression import zstd  # Python 3.14
except ImportError:
    from backports import zstd


def test_texts_from_every_kind_of_file(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.json").write_text(json.dumps({"text": "two"}))
    (tmp_path / "c.jsonl").write_text('{"text": "three"}\n\n{"text": "four"}\n')
    with lzma.open(tmp_path / "d.jsonl.xz", "wt") as file:
        file.write('{"text": "five"}\n')
    with gzip.open(tmp_path / "e.txt.gz", "wt") as file:
        file.write("six")
    (tmp_path / "f.png").write_bytes(b"\x00")
    (tmp_path / "g.txt.zst").write_bytes(zstd.compress(b"seven"))
    (tmp_path / "h.json").write_text(json.dumps([{"text": "eight"}, "nine"], indent=2))
    (tmp_path / "i.json").write_text('[{"text": "ten"}]')
    wanted = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    assert list(iter_texts(tmp_path)) == wanted
    assert list(open_corpus(str(tmp_path))) == wanted


def test_half_a_character_and_other_encodings(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "bad \\ud800 half"}\n')
    assert list(iter_texts(tmp_path / "a.jsonl")) == ["bad ? half"]
    (tmp_path / "words.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(ValueError, match=r"words\.txt is not text in UTF-8 \(byte 3"):
        read_words(tmp_path / "words.txt")
    with pytest.raises(ValueError, match=r"words\.txt is not text in UTF-8"):
        read_babi(tmp_path / "words.txt")
    with pytest.raises(ValueError, match=r"words\.txt is not text in UTF-8 \(byte 3"):
        list(iter_texts(tmp_path / "words.txt"))


@pytest.mark.parametrize("cut", ["file", "line", "paragraph"])
@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstd.compress])
def test_a_wrong_byte_is_counted_from_the_start_of_the_text(cut, compress, tmp_path):
    path = tmp_path / f"a.txt{ {bytes: '', gzip.compress: '.gz', zstd.compress: '.zst'}[compress] }"
    path.write_bytes(compress("é line\n".encode() * 10_000 + b"\xff" + b"more\n" * 10_000))
    with pytest.raises(ValueError, match=r"is not text in UTF-8 \(byte 80000: invalid start byte\)"):
        list(open_corpus(str(path), text_documents=cut))
    with pytest.raises(ValueError, match=r"is not text in UTF-8 \(byte 80000: invalid start byte\)"):
        list(TextSource(path).pieces())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"txt": 1}\n', "entry 2"),
        ("a.json", b"{", "not valid JSON"),
        ("a.txt", b"  \n", "holds no text"),
        ("a.jsonl.xz", b"no xz", "does not decompress"),
        ("a.jsonl.gz", b"no gz", "does not decompress"),
        ("a.txt.bz2", b"no bz2", "does not decompress"),
        ("a.txt.zst", b"no zst", "does not decompress"),
    ],
)
def test_broken_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(iter_texts(tmp_path / name))


@pytest.mark.parametrize(
    ("suffix", "compress"), [(".gz", gzip.compress), (".xz", lzma.compress), (".zst", zstd.compress)]
)
def test_a_file_that_is_cut_off_is_not_taken_for_whole(suffix, compress, tmp_path):
    path, text = tmp_path / f"book.txt{suffix}", random.Random(0).randbytes(100_000).hex().encode()
    whole = compress(text[:90_000]) + compress(text[90_000:])
    path.write_bytes(whole)
    assert "".join(open_corpus(str(path))).encode() == text
    for end in (len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:end])
        for read in (open_corpus(str(path)), (piece.text for piece in TextSource(path).pieces())):
            with pytest.raises(ValueError, match=rf"book\.txt\{suffix}.* does not decompress"):
                list(read)


def test_zstd_without_its_package_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "a.txt.zst").write_bytes(zstd.compress(b"text"))
    monkeypatch.setitem(sys.modules, "compression.zstd", None)
    monkeypatch.setitem(sys.modules, "backports.zstd", None)
    with pytest.raises(ImportError, match=r"a\.txt\.zst needs .*titans-lab\[zstd\]"):
        list(iter_texts(tmp_path / "a.txt.zst"))


@pytest.mark.parametrize("compress", [bytes, gzip.compress, lzma.compress, bz2.compress, zstd.compress])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "mark"])
def test_every_reader_gives_one_text(compress, mark, tmp_path):
    """The name need not tell the compression; a byte order mark and the kind of line ends are no part of the text."""
    path = tmp_path / "book.txt"
    path.write_bytes(compress(mark + b"It was dark.\r\nNobody came.\rNo one.\n" * 4000))
    text = "It was dark.\nNobody came.\nNo one.\n" * 4000
    assert "".join(open_corpus(str(path))) == text
    assert "".join(iter_texts(path)) == text
    assert text_module.whole_text(path, "book") == text
    pieces = list(TextSource(path).pieces())
    assert "".join(piece.text for piece in pieces) == text
    assert len(pieces) > 1
    assert list(TextSource(path).pieces(pieces[1].start)) == pieces[1:]
    assert pieces[0].begin <= len(mark)
    assert pieces[-1].end == path.stat().st_size


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text".encode("utf-16"), "UTF-16, not UTF-8; convert it: iconv"),
        ("text".encode("utf-16-le"), "zero bytes, as UTF-16"),
        (b"\x7fELF\x02\x01\x01\x00\x00", "zero bytes"),
    ],
)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_other_encodings_are_named(name, content, message, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    for read in (lambda: list(open_corpus(str(path))), lambda: list(TextSource(path).pieces())):
        with pytest.raises(ValueError, match=message):
            read()


def test_columns_that_are_no_text_are_named(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    days = [datetime.date(2020, 1, 1)]
    for column, values in {"day": days, "raw": [b"x"], "parts": [["a"]], "text": [None]}.items():
        parquet.write_table(pa.table({column: values}), tmp_path / "a.parquet")
        with pytest.raises(ValueError, match=rf"entry 1 has \w+ in column '{column}', not text"):
            list(open_corpus(str(tmp_path / "a.parquet"), column=column))
    strings = pa.array(["2020-01-01", "1e5", "null"]).dictionary_encode()
    parquet.write_table(pa.table({"text": strings}), tmp_path / "a.parquet")
    assert list(open_corpus(str(tmp_path / "a.parquet"))) == ["2020-01-01", "1e5", "null"]


@pytest.mark.parametrize("name", ["a:b.txt", "[a]*?.txt", " a .txt", "é.txt", "a,b=c.txt", "-a.txt", "a.tar.txt"])
def test_odd_names(name, tmp_path):
    (tmp_path / name).write_text("one")
    assert list(open_corpus(str(tmp_path / name))) == ["one"]
    assert list(iter_texts(tmp_path)) == ["one"]


def test_words(tmp_path):
    (tmp_path / "w.txt").write_text("red\n\nblue \nred\n")
    assert read_words(tmp_path / "w.txt") == ["red", "blue"]


@pytest.mark.parametrize("length", [3, 4, 16])
def test_line_ends_are_the_same_whole_and_in_pieces(length, tmp_path, monkeypatch):
    monkeypatch.setattr(text_module, "PIECE_BYTES", length)
    text = "It was dark.\r\n\r\nNobody\rcame.\n\r\nx" * 5
    path = tmp_path / "book.txt"
    path.write_bytes(text.encode())
    wanted = text.replace("\r\n", "\n").replace("\r", "\n")
    pieces = list(TextSource(path).pieces())
    assert "".join(open_corpus(str(path))) == "".join(piece.text for piece in pieces) == wanted
    for number, piece in enumerate(pieces):
        assert list(TextSource(path).pieces(piece.start)) == pieces[number:]


@pytest.mark.parametrize(("suffix", "compress"), [("", bytes), (".gz", gzip.compress), (".zst", zstd.compress)])
def test_pieces_go_on_from_any_of_them(suffix, compress, tmp_path):
    path, text = tmp_path / f"a.txt{suffix}", "".join(f"word{i} dévot\n" for i in range(20_000))
    path.write_bytes(compress(text.encode()))
    pieces = list(TextSource(path).pieces())
    assert "".join(piece.text for piece in pieces) == text
    assert pieces[-1].end == path.stat().st_size
    middle = pieces[2]
    assert [piece.text for piece in TextSource(path).pieces(middle.start)] == [piece.text for piece in pieces[2:]]
    if suffix:
        with pytest.raises(ValueError, match="is shorter than the part that was read before"):
            list(TextSource(path).pieces(len(text.encode()) + 9))
