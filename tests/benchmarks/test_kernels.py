"""Benchmark `kernels`: what it calls right, and what its JSON and exit code say after a failure."""

import json
from dataclasses import replace

import pytest
from benchmarks.kernels import SHAPES, TIMED, Problem

from benchmarks import kernels

OPTIONS = ["--device", "cpu", "--tiny"]


@pytest.fixture
def portable(monkeypatch):
    """The shapes with the portable path in place of the kernels, which are slow in the interpreter."""
    shapes = {name: replace(shape, backend="chunked") for name, shape in SHAPES.items()}
    monkeypatch.setattr(kernels, "SHAPES", shapes)


def run(path, *options: str) -> tuple[int, dict]:
    code = kernels.main([*OPTIONS, *options, "--out", str(path)])
    return code, json.loads(path.read_text())


def test_right_shapes(tmp_path, portable, capsys):
    code, content = run(tmp_path / "k.json", "--shapes", "portable", "bf16-16", "step", "float32-ragged")
    assert code == 0
    assert content["complete"]
    assert [r["name"] for r in content["results"]] == ["portable", "bf16-16", "step", "float32-ragged"]
    assert all(r["right"] and r["distance"] <= r["limit"] for r in content["results"])
    gradients = {n.removeprefix("gradient of ") for n in content["results"][3]["distances"] if n.startswith("gradient")}
    assert gradients >= {"q", "k", "v", "theta", "eta", "alpha", "weight1", "norm_bias", "state_momentum0"}
    assert {"y", "loss"} <= set(content["results"][2]["distances"])
    assert capsys.readouterr().out.count(" right ") == 4


@pytest.mark.parametrize(("name", "code"), [("bf16-16", 2), ("bf16-wide", 1)])
def test_a_wrong_gradient_is_found(tmp_path, portable, monkeypatch, name, code):
    assert (name in TIMED) == (code == 2)
    whole = Problem.whole

    def wrong(self, backend, dtype):
        found = whole(self, backend, dtype)
        if str(dtype) == "torch.bfloat16":
            found["gradient of eta"] = 1.5 * found["gradient of eta"]
        return found

    monkeypatch.setattr(Problem, "whole", wrong)
    found_code, content = run(tmp_path / "k.json", "--shapes", name, "float32-16")
    assert found_code == code
    first, second = content["results"]
    assert (first["right"], first["worst"], second["right"]) == (False, "gradient of eta", True)


def test_other_bits_the_second_time_are_wrong(tmp_path, portable, monkeypatch):
    whole, calls = Problem.whole, []

    def unsteady(self, backend, dtype):
        calls.append(dtype)
        found = whole(self, backend, dtype)
        found["y"] = found["y"] * (1 + 1e-6 * len(calls))
        return found

    monkeypatch.setattr(Problem, "whole", unsteady)
    code, content = run(tmp_path / "k.json", "--shapes", "float32-64")
    assert code == 1
    assert content["results"][0]["same_bits_twice"] is False


def test_errors_and_values_that_are_not_finite_do_not_stop_the_rest(tmp_path, portable, monkeypatch, capsys):
    whole = Problem.whole

    def broken(self, backend, dtype):
        if self.shape.depth == 1:
            raise RuntimeError("no kernel\nlong trace")
        found = whole(self, backend, dtype)
        if self.shape.chunk == 64 and str(dtype) != "torch.float64":
            found["y"] = found["y"] / 0
        return found

    monkeypatch.setattr(Problem, "whole", broken)
    code, content = run(tmp_path / "k.json", "--shapes", "bf16-linear", "float32-64", "float32-16")
    assert code == 1
    assert [r.get("error") for r in content["results"]] == ["RuntimeError: no kernel", "y is not finite", None]
    assert capsys.readouterr().out.count("WRONG") == 2


def test_no_shape_begins_after_the_time(tmp_path, portable):
    code, content = run(tmp_path / "k.json", "--shapes", "bf16-16", "step", "--seconds", "-1")
    assert code == 0
    assert [m["name"] for m in content["missing"]] == ["bf16-16", "step"]


def test_a_lost_gpu_ends_the_run_with_a_reason(tmp_path, portable, monkeypatch):
    def lost(device):
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(kernels, "check", lambda *_: {"right": False, "error": "a fault"})
    monkeypatch.setattr(kernels, "synchronize", lost)
    code, content = run(tmp_path / "k.json", "--shapes", "bf16-16", "step", "float32-16")
    assert code == 2
    assert [r["name"] for r in content["results"]] == ["bf16-16"]
    assert [m["name"] for m in content["missing"]] == ["step", "float32-16"]
    assert "illegal memory access" in content["missing"][0]["reason"]


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr(kernels.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="torch finds no GPU"):
        kernels.main([])
