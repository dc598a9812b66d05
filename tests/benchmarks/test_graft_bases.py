"""Benchmark `graft_bases`: the result of a base that stays as it is, is refused, differs, or is not made."""

import json

import torch

from benchmarks import graft_bases


def test_results_of_a_few_bases(tmp_path, capsys):
    graft_bases.main(["llama", "gptj", "bert", "--out", str(tmp_path / "out.json")])
    report = json.loads((tmp_path / "out.json").read_text())
    found = {result["kind"]: result for result in report["results"]}
    assert found["llama"] == {"kind": "llama", "no window": "identical", "window": "identical"}
    assert found["gptj"]["no window"] == "identical"
    assert found["gptj"]["window"].startswith("refused: the keys of layer 0 turn")
    assert found["bert"]["no window"].startswith("refused: BertEncoder attends to later tokens")
    assert "no window: identical: 2; no window: refused: 1" in capsys.readouterr().out


def test_a_base_that_differs_or_cannot_be_made(monkeypatch):
    real = graft_bases.titanslab.graft

    def broken(model, config):
        model = real(model, config)
        for memory in model.graft.memories:
            torch.nn.init.ones_(memory.output_projection.weight)
        return model

    monkeypatch.setattr(graft_bases.titanslab, "graft", broken)
    assert graft_bases.compare("llama")["no window"].startswith("differs: logits, logits with padding")
    monkeypatch.setitem(graft_bases.SIZES, "num_key_value_heads", 3)
    assert graft_bases.compare("llama")["not made"]
