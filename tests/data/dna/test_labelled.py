"""Labelled sequences of every form, the dataset made of them, and one line for each kind of damage."""

import gzip
from pathlib import Path

import pytest
import torch

from titanslab.data import TextEncoder, load_tokenizer
from titanslab.data.dna.dataset import SequenceCollator, SequenceDataset
from titanslab.data.dna.labelled import Columns, read_labelled

A, B = "ACGTACGTAA", "GGGGCCCCNN"


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("name", "text", "columns"),
    [
        ("a.tsv", f"seq\tlabel\n{A}\t1\n{B.lower()}\t0\n", Columns()),
        ("a.csv.gz", f"Label,Sequence\n1,{A}\n0,{B}\n", Columns()),
        ("a.csv", f"id;region_bases;y\nx;{A};1\ny;{B};0\n", Columns()),
        ("a.csv", f"\ufeffid,is_promoter,bases\nx,1,{A}\n\ny,0,{B}\n", Columns(label="is_promoter")),
        ("a.txt", f"{A}\t1\n{B}\t0\n", Columns()),
        ("a.tsv", f"left\tright\tkind\n{B}\t{A}\t1\n{B}\t{B}\t0\n", Columns("right", "kind")),
        ("a.fa", f">x label=1 note\n{A[:4]}\n{A[4:]}\n>y class:0|z\n{B}\n", Columns()),
        ("a.fasta.gz", f">x 1\n{A}\n>y 0\n{B}\n", Columns()),
        ("a.fna", f">chr1|x|1\n{A}\n>chr1|y|0\n{B}\n", Columns()),
    ],
)
def test_every_form_gives_the_same_sequences(name, text, columns, tmp_path):
    data = read_labelled(write(tmp_path, name, text), columns)
    assert list(data.sequences) == [A, B]
    assert list(data.labels) == ["1", "0"]
    assert data.label_names == ["0", "1"]
    assert len(set(data.names)) == 2


def test_folders_with_a_class_each(tmp_path):
    write(tmp_path, "files/positive/1.txt", A + "\n")
    write(tmp_path, "files/positive/2.txt", B)
    write(tmp_path, "files/negative/1.txt", B)
    data = read_labelled(tmp_path / "files")
    assert list(zip(data.sequences, data.labels, strict=True)) == [(B, "negative"), (A, "positive"), (B, "positive")]
    write(tmp_path, "fasta/yes.fa.gz", f">a\n{A}\n")
    write(tmp_path, "fasta/no.fa.gz", f">b\n{B}\n")
    data = read_labelled(tmp_path / "fasta")
    assert list(zip(data.sequences, data.labels, data.names, strict=True)) == [(B, "no", "b"), (A, "yes", "a")]
    named = read_labelled({"x": str(tmp_path / "fasta/yes.fa.gz"), "y": str(tmp_path / "fasta/no.fa.gz")})
    assert list(named.labels) == ["x", "y"]
    with pytest.raises(ValueError, match="must hold a folder or a file for each of at least two classes"):
        read_labelled(tmp_path / "files/positive")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.tsv", "", "is empty"),
        ("a.tsv", "seq\tlabel\n", "holds a header and no row"),
        ("a.tsv", f"seq\tlabel\n{A}\t1\n\t0\n", "row 3 has an empty sequence"),
        ("a.tsv", f"seq\tlabel\n{A}\t1\n{B}\t\n", "row 3 has no label in column 'label'"),
        ("a.tsv", f"seq\tlabel\n{A}\t1\n{B}\n", "row 3 has 1 columns, and the first row 2"),
        ("a.tsv", f"seq\tlabel\n{A}\t1\nACQT\t0\n", "row 3 holds 'Q' at place 3, which is no nucleotide"),
        ("a.csv", f"id,seq,kind\n1,{A},1\n", r"no label column; its columns: id, seq, kind; name one \(label_column\)"),
        ("a.csv", "id,kind\n1,2\n", r"no column of sequences; its columns: id, kind"),
        ("a.fa", f">x\n{A}\n", "no label in the header 'x'"),
        ("a.fa", "".join(f">chr{i} number {i}\n{A}\n" for i in range(5)), "the last word of every header is another"),
        ("a.fa", ">x 1\n>y 0\nAC\n", r"record 1 \('x 1'\) has no bases"),
        ("a.gb", "LOCUS", r"of an unknown kind; give a table \(\.tsv, \.csv\), FASTA"),
        ("a.bed", "chr1\t1\t5\tx\n", "give the genome's FASTA file as reference"),
    ],
)
def test_faults_are_one_line(name, text, message, tmp_path):
    path = write(tmp_path, name, text)
    with pytest.raises(ValueError, match=message) as caught:
        read_labelled(path, name="--data")
    assert str(caught.value).startswith(f"--data: {str(path)!r}")
    assert "\n" not in str(caught.value)


def test_other_faults(tmp_path):
    path = write(tmp_path, "a.tsv", f"seq\tlabel\n{A}\t1\n")
    with pytest.raises(ValueError, match="has no label column 'kind'; its columns: seq, label"):
        read_labelled(path, Columns(label="kind"))
    with pytest.raises(FileNotFoundError, match=r"nothing\.tsv' does not exist"):
        read_labelled(tmp_path / "nothing.tsv")
    path = write(tmp_path, "a.tsv.gz", "seq\tlabel\n" + f"{A}\t1\n{B}\t0\n" * 500)
    path.write_bytes(path.read_bytes()[:-15])
    with pytest.raises(ValueError, match="cannot be read as a table: it does not decompress"):
        read_labelled(path)


GENOME = ">chr1 a\nACGTAC\nGTNN\n>chr2\nGGGTTT\n"


def test_regions_of_a_genome(tmp_path):
    pytest.importorskip("pyfaidx")
    columns = Columns(reference=str(write(tmp_path, "g.fa", GENOME)))
    bed = "# comment\ntrack name=x\nchr1\t0\t4\tyes\t0\t+\nchr2\t1\t6\tno\t0\t-\n"
    data = read_labelled(write(tmp_path, "r.bed", bed), columns)
    assert list(data.sequences) == ["ACGT", "AAACC"]
    assert list(data.labels) == ["yes", "no"]
    assert list(data.names) == ["chr1:0-4", "chr2:1-6"]
    table = "id,region,start,end,strand\n1,chr1,2,6,+\n"
    for label in ("positive", "negative"):
        write(tmp_path, f"set/{label}.csv.gz", table)
    data = read_labelled(tmp_path / "set", columns)
    assert list(zip(data.sequences, data.labels, strict=True)) == [("GTAC", "negative"), ("GTAC", "positive")]
    for row, message in (
        ("chr1\t0\t11\tyes", r"row 1 ends at 11, and chr1 has 10 bases; is it of another assembly\?"),
        ("chr3\t0\t4\tyes", r"row 1: .*g\.fa' has no sequence 'chr3'; its sequences: chr1, chr2"),
        ("chr1\t4\t4\tyes", "start must be at least 0 and below end, got 4 and 4"),
        ("chr1\t0\tx\tyes", "start and end must be whole numbers, got '0' and 'x'"),
        ("chr1\t0\t4", "row 1 has 3 columns; .* the label of a region in column 4"),
    ):
        with pytest.raises(ValueError, match=message):
            read_labelled(write(tmp_path, "r.bed", row + "\n"), columns)
    with pytest.raises(FileNotFoundError, match=r"reference .*none\.fa' does not exist"):
        read_labelled(write(tmp_path, "r.bed", bed), Columns(reference=str(tmp_path / "none.fa")))


def test_items_and_batches_of_a_dataset(tmp_path):
    path = write(tmp_path, "a.tsv", "seq\tlabel\nACGT\tb\nAACGTAC\ta\n")
    data, encode = read_labelled(path), TextEncoder(load_tokenizer("dna")).encode
    dataset = SequenceDataset(data, encode, data.label_names, max_length=6)
    assert (len(dataset), dataset.cut) == (2, 1)
    batch = SequenceCollator(7)([dataset[0], dataset[1]])
    assert batch["input_ids"].tolist() == [[0, 1, 2, 3, 7, 7], [0, 0, 1, 2, 3, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 0, 0], [1] * 6]
    assert batch["labels"].tolist() == [1, 0]
    other = SequenceDataset(data, encode, data.label_names, max_length=6, rc=True)
    assert other[1]["input_ids"].tolist() == [3, 0, 1, 2, 3, 3]
    both = SequenceDataset(data, encode, data.label_names, max_length=6, rc_augment=True)
    torch.manual_seed(0)
    seen = [tuple(both[1]["input_ids"].tolist()) for _ in range(20)]
    assert set(seen) == {(0, 0, 1, 2, 3, 0), (3, 0, 1, 2, 3, 3)}
    with pytest.raises(ValueError, match="sequence '2' has the label 'b'; the labels of the model are a, c"):
        SequenceDataset(data, encode, ["a", "c"], max_length=6)
