"""Values along a genome against one whole forward pass; coordinates of the files by real readers; bounded memory."""

import json
import math

import numpy as np
import pandas
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from titanslab import TitansConfig, TitansForCausalLM
from titanslab.data import load_tokenizer
from titanslab.data.dna.genome import Genome, parse_region
from titanslab.evaluation.dna.along import track_names, values_along
from titanslab.evaluation.dna.bins import Binner, Overview, Positions
from titanslab.evaluation.dna.track import TrackSettings, write_tracks

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 8}
GDN = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
GDN |= {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_experts": 0, "vocab_size": 8}


def build(kind):
    torch.manual_seed(0)
    if kind == "qwen3_next":
        config = AutoConfig.for_model(kind, layer_types=["linear_attention"] * 2, **GDN)
        return AutoModelForCausalLM.from_config(config).eval()
    more = {"segment_len": 8, "window_size": 8, "num_persistent_tokens": 2, "chunk_size": 4}
    return TitansForCausalLM(TitansConfig.preset("tiny", kind, **SMALL, **more)).eval()


@pytest.fixture
def genome(tmp_path):
    rng = np.random.default_rng(0)
    records = {"chrA": "".join(rng.choice(list("ACGTN"), 61, p=[0.3, 0.2, 0.2, 0.25, 0.05])), "chrB": "ACGTTGCA"}
    path = tmp_path / "g.fa"
    path.write_text("".join(f">{name} x\n{bases}\n" for name, bases in records.items()))
    return path, records


@pytest.mark.parametrize("kind", ["lmm", "mac", "attention", "qwen3_next"])
def test_values_do_not_depend_on_pieces_and_are_those_of_a_whole_pass(kind, genome):
    path, records = genome
    model, tokenizer = build(kind), load_tokenizer("dna")
    parts = list(values_along(model, tokenizer, Genome(path, "g").pieces(), piece_size=16))
    for name, bases in records.items():
        own = [part for part in parts if part.name == name]
        places = np.concatenate([part.start + np.arange(len(part.values["loss"])) for part in own])
        assert places.tolist() == list(range(len(bases)))
        ids = torch.tensor([[5, *tokenizer(bases).input_ids]])
        stats = {"output_memory_stats": True} if kind in ("lmm", "mac") else {}
        with torch.no_grad():
            outputs = model(ids, use_cache=False, **stats)
        bits = torch.nn.functional.cross_entropy(outputs.logits[0, :-1], ids[0, 1:], reduction="none") / math.log(2)
        known = np.array([base != "N" for base in bases])
        found = np.concatenate([part.values["loss"] for part in own])
        assert np.isnan(found[~known]).all()
        assert np.allclose(found[known], bits.numpy()[known], atol=1e-4)
        if stats:
            surprise = torch.stack([block["loss"][0, 1:].mean(-1) for block in outputs.memory_stats]).mean(0)
            found = np.concatenate([part.values["surprise"] for part in own])
            assert np.allclose(found[known], surprise.numpy()[known], rtol=1e-3, atol=1e-5)
        assert set(own[0].values) == set(track_names(model))


def test_a_frozen_memory_writes_nothing(genome):
    model, tokenizer = build("lmm"), load_tokenizer("dna")
    frozen = list(values_along(model, tokenizer, Genome(genome[0], "g").pieces(), piece_size=16, learn=False))
    learning = list(values_along(model, tokenizer, Genome(genome[0], "g").pieces(), piece_size=16))
    assert np.nanmax(np.concatenate([part.values["write"] for part in frozen])) == 0
    assert np.nanmin(np.concatenate([part.values["write"] for part in learning])) > 0
    one, two = (np.concatenate([part.values["loss"] for part in run]) for run in (frozen, learning))
    assert np.nanmax(abs(one - two)) > 1e-5
    with pytest.raises(ValueError, match="learn=False freezes a memory, and this model has none"):
        list(values_along(build("attention"), tokenizer, Genome(genome[0], "g").pieces(), learn=False))
    bpe = load_tokenizer("dna")
    bpe.add_tokens(["ACG"])
    with pytest.raises(ValueError, match="needs one token a base"):
        list(values_along(model, bpe, Genome(genome[0], "g").pieces()))


@pytest.mark.parametrize("size", [1, 10])
def test_coordinates_are_those_of_bedgraph_and_bigwig(size, genome, tmp_path):
    reader = pytest.importorskip("pyBigWig")
    path, _ = genome
    model, tokenizer = build("lmm"), load_tokenizer("dna")
    source = Genome(path, "g", parse_region("chrA:4-57"), 2)
    stream = list(values_along(model, tokenizer, source.pieces(), piece_size=16))
    settings = TrackSettings(size, source.sizes, first=3, bigwig=True, track_line=size == 10)
    summary = write_tracks(tmp_path / "out", stream, track_names(model), settings, about={"title": "t"})
    exact = np.full(61, np.nan)
    for part in stream:
        exact[part.start : part.start + len(part.values["loss"])] = part.values["loss"]
    exact[:3] = np.nan  # the region begins at base 4
    columns = ["chrom", "start", "end", "value"]
    table = pandas.read_csv(
        tmp_path / "out" / "loss.bedgraph", sep="\t", names=columns, skiprows=1 if size == 10 else 0
    )
    assert set(table.chrom) == {"chrA"}
    assert (table.end.iloc[:-1].to_numpy() <= table.start.iloc[1:].to_numpy()).all()
    assert (table.start.min(), table.end.max()) == (3, 57)
    for row in table.itertuples():
        assert row.end - row.start <= size
        assert row.value == pytest.approx(np.nanmean(exact[row.start : row.end]), rel=1e-4)
    lines = np.concatenate([np.arange(start, end) for start, end in zip(table.start, table.end, strict=True)])
    assert set(np.flatnonzero(np.isfinite(exact))) <= set(lines.tolist())
    with reader.open(str(tmp_path / "out" / "loss.bw")) as bigwig:
        assert bigwig.chroms() == {"chrA": 61}
        values = np.array(bigwig.values("chrA", 0, 61))
        if size == 1:
            assert np.allclose(values, exact, rtol=1e-4, equal_nan=True)
        assert bigwig.intervals("chrA")[0][:2] == (3, 4 if size == 1 else 10)
    known = exact[np.isfinite(exact)]
    assert summary["scored"] == len(known)
    assert summary["bits_per_base"] == pytest.approx(known.mean(), rel=1e-6)
    assert summary["bases"] == 54
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary
    names = {"loss", "surprise", "write"}
    wanted = {f"{n}.{kind}" for n in names for kind in ("bedgraph", "bw")} | {"track.png", "summary.json"}
    assert {file.name for file in (tmp_path / "out").iterdir()} == wanted


def test_bins_do_not_depend_on_the_parts():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(2, 95))
    values[:, 40:52] = np.nan
    for cuts in ([], [1, 2, 30], [7, 14, 21, 90]):
        binner, bins = Binner(7, 2), []
        for start, part in zip([0, *cuts], np.split(values, cuts, axis=1), strict=True):
            bins += binner.add("x", 3 + start, part)
        bins += [*binner.rest()]
        assert [(b.start, b.end) for b in bins] == [(3, 7), *((s, min(s + 7, 98)) for s in range(7, 98, 7))]
        for one in bins:
            inside = values[:, one.start - 3 : one.end - 3]
            finite = np.isfinite(inside).any(1)
            assert np.array_equal(np.isfinite(one.means), finite)
            assert np.allclose(one.means[finite], np.nanmean(inside[finite], axis=1) if finite.any() else [])
    assert [(b.name, b.start) for b in [*binner.add("x", 0, values[:, :1]), *binner.add("y", 0, values[:, :1])]] == [
        ("x", 0)
    ]


def test_the_overview_has_a_bounded_size_and_the_right_means():
    values = np.arange(100.0).reshape(1, 100)
    overview = Overview(1, columns=8)
    for start in range(0, 100, 10):
        overview.add("a" if start < 50 else "b", start % 50 + 7, values[:, start : start + 10])
    places, means, bases = overview.means()
    assert overview.stride == bases == 16
    assert overview.sums.shape == (1, 8)
    assert places.tolist() == [8, 24, 40, 56, 72, 88, 104]
    assert means[0].tolist() == [values[0, i : i + 16].mean() for i in range(0, 100, 16)]
    places, means, bases = overview.means(40)
    assert (bases, places.tolist()) == (32, [16, 48, 80, 112])
    assert means[0].tolist() == [values[0, i : i + 32].mean() for i in range(0, 100, 32)]
    assert overview.records == [("a", 0, 7), ("b", 50, 7)]


def test_bits_by_the_number_of_bases_before():
    positions = Positions()
    positions.add(0, np.array([1.0, 2.0, np.nan, 4.0]))
    positions.add(4, np.array([8.0]))
    assert positions.rows() == [
        {"first": 0, "last": 0, "bases": 1, "bits": 1.0},
        {"first": 1, "last": 1, "bases": 1, "bits": 2.0},
        {"first": 2, "last": 3, "bases": 1, "bits": 4.0},
        {"first": 4, "last": 7, "bases": 1, "bits": 8.0},
    ]


def test_the_cache_has_the_same_size_at_every_base(tmp_path):
    (tmp_path / "g.fa").write_text(">x\n" + "ACGTTGCAAT" * 40 + "\n")
    model, seen = build("mac"), []
    hook = model.register_forward_hook(lambda *_: seen.append(_[-1].past_key_values.nbytes))
    list(values_along(model, load_tokenizer("dna"), Genome(tmp_path / "g.fa", "g").pieces(), piece_size=16))
    hook.remove()
    assert len(seen) > 20
    assert len(set(seen[4:])) == 1


def test_a_genome_of_n_has_no_track(tmp_path):
    (tmp_path / "g.fa").write_text(">x\nNNNN\n")
    model = build("lmm")
    source = Genome(tmp_path / "g.fa", "g")
    stream = values_along(model, load_tokenizer("dna"), source.pieces())
    with pytest.raises(ValueError, match="there is no base to score"):
        write_tracks(tmp_path / "out", stream, track_names(model), TrackSettings(1, source.sizes), about={})
    assert not (tmp_path / "out").exists()
