"""Benchmark `decode`: caches of many tokens, which a measurement does not change."""

import json

import pytest
import torch
from benchmarks.decode import CANDIDATES, Decoder
from benchmarks.models import ModelSetting
from benchmarks.peers import Missing

from benchmarks import decode

GIB = 1 << 30
TINY = ModelSetting("tiny", 4096)


@pytest.fixture(scope="module")
def lmm():
    return Decoder("lmm", TINY)


def test_a_short_past_is_really_read(lmm):
    past = lmm.past(32, real=64, memory_limit=GIB)
    assert past.how == "read"
    assert past.cache.position.tolist() == [32]
    assert past.nbytes == past.cache.nbytes()


def test_a_long_past_is_advanced_and_says_so(lmm):
    short, long = lmm.past(32, 32, GIB), lmm.past(10 << 20, 32, GIB)
    assert long.how == "advanced from 32 read"
    assert long.cache.position.tolist() == [10 << 20]
    assert long.cache.get_seq_length() == 10 << 20
    assert long.nbytes == short.nbytes


def test_an_advance_keeps_chunk_boundaries(lmm):
    with pytest.raises(Missing, match="not a multiple"):
        lmm.past(1 << 20, 33, GIB)


def test_measuring_leaves_the_cache_as_it_was(lmm):
    past = lmm.past(32, 32, GIB)
    before = {k: t.clone() for k, t in past.cache.tensors().items()}
    lmm.decode(past, 2)
    first = lmm.prefill(past, 8)
    assert all(t.equal(before[k]) for k, t in past.cache.tensors().items())
    assert lmm.prefill(past, 8).equal(first)


@pytest.mark.parametrize("name", ["attention-full", "llama"])
def test_growing_caches_are_filled_and_keep_their_length(name):
    decoder = Decoder(name, ModelSetting("tiny", 4096))
    past = decoder.past(64, real=16, memory_limit=GIB)
    assert past.how == "filled with random keys and values after 16 read"
    assert past.cache.get_seq_length() == 64
    first = decoder.prefill(past, 4)
    decoder.decode(past, 2)
    assert decoder.prefill(past, 4).equal(first)
    persistent = getattr(decoder.config, "num_persistent_tokens", 0)
    assert past.nbytes == pytest.approx((64 + persistent) * decoder.bytes_per_token(), abs=8)
    with pytest.raises(Missing, match="memory-limit"):
        decoder.past(10 << 20, 16, GIB)


def test_low_precision_keeps_what_the_model_keeps():
    decoder = Decoder("mac", ModelSetting("tiny", 4096, dtype="bfloat16"))
    dtypes = {p.dtype for p in decoder.model.parameters()}
    assert dtypes == {torch.bfloat16, torch.float32}
    assert decoder.model.lm_head.weight.dtype == torch.bfloat16
    assert decoder.prefill(decoder.past(16, 16, GIB), 4).isfinite().all()


def test_json_says_how_each_cache_was_made_and_who_is_missing(tmp_path, monkeypatch):
    def absent(*_):
        raise ImportError("no Llama here")

    monkeypatch.setattr(decode, "llama_config", absent)
    monkeypatch.setattr(decode, "picture", lambda *a: None)
    monkeypatch.setattr(decode, "rate_probes", lambda *a: {"copy": _Probe()})
    path = tmp_path / "r.json"
    options = ["--candidates", "lmm", "llama", "--positions", "32", "1024", "--real", "32", "--device", "cpu"]
    options += ["--decode-tokens", "2", "--prefill-tokens", "8", "--repeats", "2"]
    decode.main([*options, "--out", str(path)])
    content = json.loads(path.read_text())
    (result,) = content["results"]
    assert {k: e["how"] for k, e in result["positions"].items()} == {"32": "read", "1024": "advanced from 32 read"}
    assert result["cache_bytes_equal"] is True
    assert set(result["ratios"]) == {"decode 1024 / 32", "prefill 1024 / 32"}
    assert len(result["positions"]["32"]["decode"]["repeats"]) == 2
    assert content["missing"] == [{"name": "llama", "reason": "ImportError: no Llama here"}]
    assert "lmm" in decode.show(result, ["decode", "prefill"])
    assert len(decode.curves(content["results"], ["decode", "prefill"])) == 3


def test_a_graph_is_refused_without_a_gpu(capsys):
    with pytest.raises(SystemExit):
        decode.main(["--what", "graph", "--device", "cpu"])
    assert "--what graph needs a GPU, got --device cpu" in capsys.readouterr().err


def test_a_graph_is_recorded_once_and_goes_on(monkeypatch, lmm):
    from titanslab.models import decode_graph

    recorded = []

    class Step(decode_graph.StaticStep):
        def __init__(self, *arguments):
            recorded.append(arguments)
            super().__init__(*arguments)

    monkeypatch.setattr(decode_graph, "DecodeGraph", Step)
    past = lmm.past(32, 32, GIB)
    assert lmm.graph(past, 3).shape == (1,)
    lmm.graph(past, 2)
    assert len(recorded) == 1
    assert past.graph.cache().position.tolist() == [37]
    assert past.cache.position.tolist() == [32]


class _Probe:
    work = 8

    def __call__(self):
        return None


def test_positions_share_their_phase():
    # all positions have the same place in chunk and segment
    assert len({p % 1024 for p in decode.POSITIONS}) == 1
    assert set(CANDIDATES) >= {"lmm", "mac", "attention-full", "llama"}
