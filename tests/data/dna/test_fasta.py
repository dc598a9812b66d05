"""FASTA: pieces, records, the language-model corpus made of them, and one line for each kind of damage."""

import gzip
import io

import pytest

from titanslab.data import load_tokenizer, open_corpus, tokenize
from titanslab.data.dna import fasta
from titanslab.data.dna.fasta import fasta_pieces, fasta_records, read_fasta

TWO = b"\xef\xbb\xbf>chr1 the first\r\nACGT\r\nacgu\r\n\n>chr2\nNNRY\n>chr3\nGG"
RECORDS = [("chr1 the first", "ACGTACGT"), ("chr2", "NNNN"), ("chr3", "GG")]


@pytest.mark.parametrize("block", [1, 2, 3, 7, 1 << 20])
def test_records_do_not_depend_on_the_size_of_a_block(block, monkeypatch):
    monkeypatch.setattr(fasta, "BLOCK", block)
    data = TWO.removeprefix(b"\xef\xbb\xbf") if block < 3 else TWO
    assert list(fasta_records(io.BytesIO(data), "x")) == RECORDS
    pieces = list(fasta_pieces(io.BytesIO(data), "x"))
    assert max(len(piece.bases) for piece in pieces) <= block
    for number, (_, bases) in enumerate(RECORDS, 1):
        own = [piece for piece in pieces if piece.number == number]
        assert [bases[p.start : p.start + len(p.bases)] for p in own] == [p.bases for p in own]
    assert pieces[0].name == "chr1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "x holds no record"),
        (b"\n \n", "x holds no record"),
        (b"ACGT\n", r"x is not FASTA: it begins with 'ACGT', not with a header"),
        (b">a\nACGT\n>b\n>c\nA\n", r"x, record 2 \('b'\) has no bases"),
        (b">a\nACGT\n>b", r"x, record 2 \('b'\) has no bases"),
        (b">a\nMK\nLV\n", r"x, record 1 \('a'\) holds 'L' at place 3, which is no nucleotide"),
        (b">a\n" + b"ACGT\n" * (1 << 18) + b"!", rf"x, record 1 \('a'\) holds '!' at place {(1 << 20) + 1}, which"),
    ],
)
def test_faults_are_one_line(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        list(fasta_records(io.BytesIO(text), "x"))
    assert "\n" not in str(caught.value)


def test_a_truncated_gz_is_named(tmp_path):
    path = tmp_path / "g.fa.gz"
    whole = gzip.compress(b">a\n" + b"ACGTTGCA" * 1000)
    path.write_bytes(whole)
    assert [len(bases) for _, bases in read_fasta(path, "genome")] == [8000]
    path.write_bytes(whole[:-20])
    with pytest.raises(ValueError, match=r"genome cannot be read as FASTA: it does not decompress .*; is it whole\?"):
        list(read_fasta(path, "genome"))
    with pytest.raises(ValueError, match="does not decompress"):
        list(open_corpus(str(path)))


def test_a_genome_is_a_corpus_for_language_models(tmp_path):
    (tmp_path / "a.fna").write_bytes(TWO)
    with gzip.open(tmp_path / "b.fasta.gz", "wb") as file:
        file.write(b">x\nAC\n")
    corpus = open_corpus(str(tmp_path))
    assert list(corpus) == [*(bases for _, bases in RECORDS), "AC"]
    tokens = tokenize(corpus, load_tokenizer("dna"))
    assert tokens.documents == 4
    assert tokens.ids[:10].tolist() == [5, 0, 1, 2, 3, 0, 1, 2, 3, 6]
    assert tokens.text_bytes == 16


def test_wrong_letters_of_a_text_are_named_whatever_the_number_of_processes(tmp_path):
    (tmp_path / "a.txt").write_text("ACGT" * 100_000 + "!")
    with pytest.raises(ValueError, match="holds '!' at place 1, which is no nucleotide"):
        tokenize(open_corpus(str(tmp_path)), load_tokenizer("dna"), processes=2)
