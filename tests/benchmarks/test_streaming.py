"""Benchmark `streaming`: its figures and its verdict."""

import argparse
import json

import pytest
from benchmarks.streaming import Point, count, main, verdict

from benchmarks import streaming


def test_count():
    assert [count(t) for t in ("10M", "100k", "1.5M", "77")] == [10_000_000, 100_000, 1_500_000, 77]
    for wrong in ("x", "0", "-3K", "M"):
        with pytest.raises(argparse.ArgumentTypeError):
            count(wrong)


def points(last_resident, last_speed):
    made = [Point(50_000 * (i + 1), 1000 if i < 10 else last_resident, 5, 100.0, 90.0) for i in range(20)]
    return [*made[:-2], *(Point(p.tokens, p.resident, 5, last_speed, 90.0) for p in made[-2:])]


def test_verdict():
    good = verdict(points(1050, 95.0))
    assert (good["memory_from"], good["memory_ok"], good["speed_ok"]) == (100_000, True, True)
    assert verdict(points(1051, 95.0))["memory_ok"] is False
    slow = verdict(points(1000, 94.0))
    assert slow["speed_ok"] is False
    assert slow["tokens_per_second"]["ratio"] == pytest.approx(0.94)
    assert slow["tokens_per_cpu_second"]["ratio"] == 1.0


def test_a_short_stream(tmp_path, monkeypatch, capsys):
    text = tmp_path / "text.txt"
    text.write_text("A short text. " * 10)
    monkeypatch.setattr(streaming, "STEPS", 4)
    monkeypatch.setattr(streaming, "fresh_against_old", lambda *_: {"ratio": 1.0})
    out = tmp_path / "out.json"
    main(["--tokens", "600", "--variant", "lmm", "--file", str(text), "--piece-size", "96", "--output", str(out)])
    found = json.loads(out.read_text())
    assert found["complete"]
    assert [p["tokens"] for p in found["results"]] == [192, 384, 576, 600]
    assert len({p["cache"] for p in found["results"]}) == 1
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "end over start" in capsys.readouterr().out
