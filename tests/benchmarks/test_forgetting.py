"""Benchmark `forgetting`: matrices that do not forget have alpha = 0 for the moment."""

import json

import pytest
import torch
from benchmarks.forgetting import drawn_to_start, main, unforgetting

from titanslab import TitansConfig, TitansForCausalLM
from titanslab.data import byte_tokenizer
from titanslab.evaluation import perplexity
from titanslab.evaluation.perplexity import evaluate_perplexity
from titanslab.evaluation.trace import memories_of
from titanslab.models.cache import cache_of
from titanslab.runs.loading import open_model


def small(**options):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return TitansForCausalLM(TitansConfig(variant="lmm", vocab_size=len(byte_tokenizer()), **sizes, **options))


def alphas(model):
    x = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(1))
    return [memory.gates(x)[2] for memory in memories_of(model)]


def test_the_gates_of_the_matrices_are_closed_for_the_moment():
    model = small()
    before = alphas(model)
    for matrices, others in (((0,), (1,)), ((1,), (0,)), ((0, 1), ())):
        with unforgetting(model, matrices):
            for was, now in zip(before, alphas(model), strict=True):
                assert (now[..., list(matrices)] < 1e-15).all()
                assert torch.equal(now[..., list(others)], was[..., list(others)])
        assert all(map(torch.equal, alphas(model), before))


def test_a_memory_without_forgetting_is_refused():
    with pytest.raises(SystemExit, match="no memory that forgets"), unforgetting(small(memory_forgetting=False), (0,)):
        pass


def test_a_memory_is_drawn_to_its_start():
    model = small(num_persistent_tokens=2)
    ids = torch.randint(0, 256, (2, 16), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        plain = cache_of(model(ids, use_cache=True)).states
        for share, half_life in ((0.5, 16), (0.75, 8), (1 - 2**-0.25, 64)):
            with drawn_to_start(model, half_life):
                drawn = cache_of(model(input_ids=ids, use_cache=True)).states
            mixers = [block.mixer for block in model.model.layers]
            starts = [mixer.memory(mixer.persistent[None])[1].memory.weights for mixer in mixers]
            for was, now, start in zip(plain, drawn, starts, strict=True):
                for w, found, m in zip(was.memory.memory.weights, now.memory.memory.weights, start, strict=True):
                    torch.testing.assert_close(found, (1 - share) * w + share * m)
        again = cache_of(model(ids, use_cache=True)).states
    assert torch.equal(again[0].memory.memory.weights[0], plain[0].memory.memory.weights[0])


def test_losses(tmp_path, monkeypatch):
    monkeypatch.setattr(perplexity, "LONGEST_PIECE", 64)
    small().save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    letters = torch.randint(97, 123, (3, 400), generator=torch.Generator().manual_seed(0)).tolist()
    for number, row in enumerate(letters):
        (tmp_path / f"{number}.txt").write_text("".join(map(chr, row)))
    data = [tmp_path / f"{number}.txt" for number in range(3)]
    options = [
        "--tokens",
        "256",
        "--windows",
        "2",
        "--rows",
        "64",
        "--half-lives",
        "32,1000",
        "--out",
        str(tmp_path / "out.json"),
    ]
    main(["--model", str(tmp_path / "model"), "--data", str(tmp_path / "*.txt"), *options])
    first, *rows = json.loads((tmp_path / "out.json").read_text())["results"]
    shortest, longest = first["half_lives_of_biases"][0]
    lower = pytest.approx(2**24, rel=0.01)
    assert shortest == [lower, pytest.approx(64, rel=0.01)]
    assert longest == [lower, pytest.approx(2**14, rel=0.01)]
    found = {row["way"]: row for row in rows}
    model, tokenizer = open_model(str(tmp_path / "model"), "cpu")
    texts = [path.read_text()[:256] for path in data[:2]]
    for way, length in (("as trained", 256), ("a new memory every 64 tokens", 64)):
        wanted = evaluate_perplexity(model, tokenizer, texts, context_length=length, whole_windows=True)
        assert found[way]["loss"] == pytest.approx(wanted.loss, abs=1e-6)
        assert found[way]["tokens"] == 512
    ways = ["as trained", "matrix 1 does not forget", "matrix 2 does not forget", "no matrix forgets"]
    ways += ["drawn to its start, half-life 32", "drawn to its start, half-life 1,000"]
    assert len({found[way]["loss"] for way in ways}) == 6
