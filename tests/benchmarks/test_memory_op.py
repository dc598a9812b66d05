"""Benchmark `memory_op` from end to end on a tiny setting: its JSON, and the list of missing peers."""

import argparse
import json
import math
import sys

import pytest
import torch
from benchmarks.output import free_path, table
from benchmarks.peers import CANDIDATES, Missing, Setting, build, candidate, too_much

from benchmarks import memory_op, peers

TINY = Setting(24, 8, dim=16, heads=2, expansion=2, window=8)


@pytest.fixture
def without(monkeypatch):
    """Makes packages impossible to import."""

    def hide(*names):
        for name in names:
            monkeypatch.setitem(sys.modules, name, None)

    return hide


@pytest.mark.parametrize("name", ["titanslab", "titanslab-op", "sdpa-full", "sdpa-window"])
def test_candidates_reach_every_leaf(name):
    work = build(name, TINY)
    grads = []
    work.output().square().sum().backward()
    for leaf in work.leaves:
        grads.append(leaf.grad)
        leaf.grad = None
    assert all(g is not None and g.abs().sum() > 0 for g in grads)
    assert work.forward().shape[:2] == (1, 24)
    work.step()
    assert all(leaf.grad is None for leaf in work.leaves)


def test_layer_and_op_count_the_same_memory():
    layer, op = build("titanslab", TINY), build("titanslab-op", TINY)
    assert layer.fast_weights == op.fast_weights == sum(w.numel() for w in op.leaves[6:8])
    assert layer.flops > op.flops


def test_a_candidate_of_ours_may_name_its_backend():
    assert candidate("titanslab-op:triton") == "titanslab-op:triton"
    assert build("titanslab-op:recurrent", TINY).setting.backend == "recurrent"
    for wrong in ("nobody", "titanslab-op:", "titanslab-op:fast", "sdpa-full:triton"):
        with pytest.raises(argparse.ArgumentTypeError, match=r"must be one of .*titanslab and titanslab-op may have"):
            candidate(wrong)
    with pytest.raises(SystemExit):
        memory_op.main(["--candidates", "titanslab:fast"])


def test_a_run_that_is_ended_keeps_the_candidates_before(tmp_path, monkeypatch):
    class Ended(BaseException):
        pass

    class Work(peers.Work):
        def step(self):
            if self.setting.backend == "recurrent":
                raise Ended
            return super().step()

    monkeypatch.setattr(peers, "Work", Work)
    monkeypatch.setattr(memory_op, "rate_probes", _small_probes)
    path = tmp_path / "r.json"
    options = ["--tokens", "24", "--base-tokens", "24", "--chunk", "8", "--base-chunk", "8", "--depth", "2"]
    options += ["--dim", "16", "--heads", "2", "--device", "cpu", "--repeats", "3", "--no-memory", "--no-forward"]
    with pytest.raises(Ended):
        memory_op.main([*options, "--candidates", "titanslab-op:chunked", "titanslab-op:recurrent", "--out", str(path)])
    content = json.loads(path.read_text())
    assert content["complete"] is False
    (result,) = content["results"]
    assert len(result["candidates"]["titanslab-op:chunked"]["step"]["repeats"]) == 1
    assert "step" not in result["candidates"]["titanslab-op:recurrent"]


def test_missing_peers_give_the_reason(without):
    without("titans_pytorch", "titans", "titans.utils.memory")
    for name in ("titans-pytorch", "titans-pytorch-per-token", "titans-unofficial"):
        with pytest.raises(Missing, match="titans-lab\\[bench\\]"):
            build(name, TINY)
    for name in ("fla-gated-delta-rule", "fla-ttt-linear"):
        with pytest.raises(Missing, match="runs on a GPU"):
            build(name, TINY)
    with pytest.raises(ValueError, match="candidate must be one of"):
        build("nobody", TINY)


def test_what_would_not_fit_is_left_out_with_a_reason():
    assert "--memory-limit" in str(too_much("titans-pytorch", Setting(32768, 1), 12 << 30, 512))
    assert "--slow-tokens" in str(too_much("titans-unofficial", Setting(2048, 1), 12 << 30, 512))
    assert too_much("titans-pytorch", Setting(4096, 64), 12 << 30, 512) is None
    assert too_much("titanslab", Setting(32768, 1), 12 << 30, 512) is None


def test_json_holds_all_that_is_needed_to_judge_it(tmp_path, without, monkeypatch):
    without("titans_pytorch", "titans", "titans.utils.memory")
    monkeypatch.setattr(memory_op, "in_fresh_process", lambda *a: {"error": "not measured in a test"})
    monkeypatch.setattr(memory_op, "picture", lambda *a: None)
    monkeypatch.setattr(memory_op, "rate_probes", _small_probes)
    path = tmp_path / "r.json"
    options = ["--tokens", "24", "--chunk", "8", "--depth", "2", "--base-tokens", "24", "--base-chunk", "8"]
    options += ["--dim", "16", "--heads", "2", "--window", "8", "--device", "cpu", "--repeats", "2"]
    memory_op.main([*options, "--out", str(path)])
    content = json.loads(path.read_text())
    for key in ("command", "seed", "commit", "uncommitted_code", "machine", "versions", "settings", "date"):
        assert key in content
    assert content["complete"] is True
    assert content["machine"]["cpu"]
    assert content["versions"]["torch"] == torch.__version__
    missing = {m["name"]: m["reason"] for m in content["missing"]}
    assert set(missing) == set(CANDIDATES) - {"titanslab", "titanslab-op", "sdpa-full", "sdpa-window"} - {
        "titans-pytorch-per-token"
    }
    (result,) = content["results"]
    assert set(result["candidates"]) | set(result["left_out"]) == set(CANDIDATES) - {"titans-pytorch-per-token"}
    step = result["candidates"]["titanslab"]["step"]
    assert len(step["repeats"]) == 2
    assert step["tokens_per_second"] == pytest.approx(24 / step["median"])
    assert 0 < step["floor"]["fraction_reached"] < math.inf
    assert set(result["ratios"]) == {
        f"{a} / {b}" for a in ("titanslab", "titanslab-op") for b in ("sdpa-full", "sdpa-window")
    }
    assert result["candidates"]["titanslab"]["memory"] == {"error": "not measured in a test"}
    assert "titanslab" in memory_op.show(result)


def _small_probes(device, dtype, shapes):
    from benchmarks.rates import Product

    class Copy:
        work = 8

        def __call__(self):
            return None

    return {"matmul 8": Product(1, 8, 8, 8, dtype, device), "copy": Copy()}


def test_row_verdict_reads_speed_and_memory():
    def entry(peak):
        return {"memory": {"forward_backward_peak": {"bytes": peak}}, "step": {}}

    results = [
        {
            "candidates": {"titanslab": entry(40), "titans-pytorch": entry(100)},
            "ratios": {"titanslab / titans-pytorch": {"median": 7.0}},
        }
    ]
    verdict = memory_op.verdict(results, memory_op.ROWS["cpu64"])
    assert verdict["speed titanslab / titans-pytorch"] == 7.0
    assert verdict["peak memory titanslab / titans-pytorch"] == 0.4


def test_sweep_varies_one_axis_at_a_time():
    arguments = memory_op.parser().parse_args([])
    settings = memory_op.sweep(arguments, Setting(2048, 16))
    assert len(settings) == len(set(settings)) == 4 + 5 + 4 - 2
    assert {s.depth for s in settings} == {1, 2, 3, 4}
    arguments.grid = True
    assert len(memory_op.sweep(arguments, Setting(2048, 16))) == 4 * 5 * 4


def test_rows_name_known_candidates():
    for row in memory_op.ROWS.values():
        assert set(row["names"]) <= set(CANDIDATES)
        assert row["peer"] is None or row["peer"] in row["names"]


def test_results_are_not_overwritten(tmp_path):
    path = tmp_path / "a.json"
    assert free_path(path) == path
    path.write_text("")
    assert free_path(path).name == "a-2.json"


def test_table_aligns():
    lines = table(["n", "value"], [["a", 1], ["long", 100]]).splitlines()
    assert len({len(line) for line in lines}) == 1
