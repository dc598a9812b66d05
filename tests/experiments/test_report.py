"""Pictures of curves: lengths as people write them, and a file that is whole or not there."""

import struct

import pytest

from titanslab.experiments.report import _short, picture


@pytest.mark.parametrize(
    ("tokens", "text"),
    [(512, "512"), (2048, "2K"), (16000, "16K"), (128000, "128K"), (1 << 17, "128K"), (1 << 20, "1M"), (10**7, "10M")],
)
def test_lengths(tokens, text):
    assert _short(tokens) == text


def test_a_panel_of_lines_and_one_of_bars(tmp_path):
    lines = {"a": [(1000, 50, 40, 60), (128_000, 10, 0, 20)], "b": [(1000, 50, 50, 50)]}
    panels = [
        {"title": "t", "x": "tokens", "y": "% right", "y_range": (-3, 103), "curves": lines},
        {"title": "t", "x": "tokens", "y": "% right", "curves": {"a": [(1, 2, 1, 3)]}},
    ]
    target = picture(tmp_path / "result.json", panels, "title")
    assert target == tmp_path / "result.png"
    assert target.read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(("panels", "rows"), [(1, 1), (4, 1), (5, 2), (9, 3)])
def test_many_panels_stand_in_rows(tmp_path, panels, rows):
    curve = {"a": [(1000, 50, 40, 60), (2000, 10, 5, 20)]}
    target = picture(tmp_path / "r.json", [{"title": "t", "x": "x", "y": "y", "curves": curve}] * panels, "title")
    width, height = struct.unpack(">II", target.read_bytes()[16:24])
    columns = panels if rows == 1 else 3
    assert width / height == pytest.approx(5.2 * columns / (4.2 * rows), rel=0.01)
