"""Regions of a genome as samtools writes them, read piece by piece."""

import pytest

from titanslab.data.dna import fasta
from titanslab.data.dna.genome import Genome, GenomeRegion, parse_region


@pytest.mark.parametrize(
    ("text", "region"),
    [
        ("chr1", GenomeRegion("chr1", 0, None)),
        ("chr1:1-100,000", GenomeRegion("chr1", 0, 100_000)),
        ("gi|6|ref|NC_1.1|:5-7", GenomeRegion("gi|6|ref|NC_1.1|", 4, 7)),
        ("HLA:01:500-", GenomeRegion("HLA:01", 499, None)),
        ("chr1:7", GenomeRegion("chr1", 6, None)),
    ],
)
def test_a_region_is_written_as_for_samtools(text, region):
    assert parse_region(text) == region


@pytest.mark.parametrize("text", ["", "chr1:0-5", "chr1:9-5"])
def test_impossible_regions_are_named(text):
    with pytest.raises(ValueError, match=r"region is empty|must begin at base 1 or later"):
        parse_region(text)


@pytest.mark.parametrize("block", [4, 1 << 20])
def test_pieces_of_a_region(block, tmp_path, monkeypatch):
    monkeypatch.setattr(fasta, "BLOCK", block)
    path = tmp_path / "g.fa"
    path.write_text(">a one\nAAAA\n>b\nACGTACGTAC\nGT\n>c\nTTT\n")

    def read(text, warm_up=0):
        genome = Genome(path, "genome", None if text is None else parse_region(text), warm_up)
        pieces = list(genome.pieces())
        assert genome.bases == sum(len(piece.bases) for piece in pieces)
        return pieces[0].start, "".join(piece.bases for piece in pieces), genome.sizes

    assert read(None) == (0, "AAAAACGTACGTACGTTTT", {"a": 4, "b": 12, "c": 3})
    assert read("b") == (0, "ACGTACGTACGT", {"b": 12})
    assert read("b:3-10") == (2, "GTACGTAC", {"b": 12})
    assert read("b:3-10", warm_up=1) == (1, "CGTACGTAC", {"b": 12})
    assert read("b:11-") == (10, "GT", {"b": 12})
    with pytest.raises(ValueError, match="genome has no sequence 'x'; its sequences: a, b, c"):
        read("x")
    with pytest.raises(ValueError, match="region b:3-13 goes beyond the end: b has 12 bases"):
        read("b:3-13")
    with pytest.raises(ValueError, match="region b:13- goes beyond the end: b has 12 bases"):
        read("b:13-")
    path.write_text(">a\nA\n>a\nC\n")
    with pytest.raises(ValueError, match="two records of the name 'a'"):
        read(None)
    path.write_text(">\nA\n")
    with pytest.raises(ValueError, match="record 1 has no name"):
        read(None)
