"""The JSON of a benchmark run."""

import pytest
import torch
from benchmarks.output import new_report


def test_out_is_a_file_before_anything_is_measured(tmp_path):
    with pytest.raises(SystemExit, match=r"--out must name a JSON file, got the folder .*; give e\.g\. .*decode\.json"):
        new_report("decode", 0, torch.device("cpu"), {}, tmp_path)
    new_report("decode", 0, torch.device("cpu"), {}, tmp_path / "decode.json").add({"tokens": 1})
    assert [p.name for p in tmp_path.iterdir()] == ["decode.json"]
