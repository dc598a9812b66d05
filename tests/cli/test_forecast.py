"""`titans forecast`: the files that it writes, and the errors before a model is loaded."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pages import blocks
from titanslab import TitansForecastingConfig, TitansForForecasting
from titanslab.data.series import SeriesFacts

PAGE = Path(__file__).parents[2] / "docs" / "forecasting_libraries.md"


@pytest.fixture(scope="module")
def forecaster(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("forecaster") / "run"
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "patch_length": 8}
    config = TitansForecastingConfig(context_length=24, prediction_length=8, loss="quantile", **sizes)
    TitansForForecasting(config).save_pretrained(folder)
    SeriesFacts(columns=["a"], mean=[0.0], std=[1.0], step="h").write(folder)
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder with my.csv, 40 rows of a column a."""
    monkeypatch.chdir(tmp_path)
    frame = {"date": pd.date_range("2026-01-01", periods=40, freq="h"), "a": np.sin(np.arange(40) / 4)}
    pd.DataFrame(frame).to_csv("my.csv", index=False)
    return tmp_path


def test_it_writes_a_table_and_a_picture(titans, forecaster, here):
    code, out, err = titans("forecast", "my.csv", "--model", forecaster, "--device", "cpu")
    assert (code, out.split(), err) == (0, ["my-forecast.csv", "my-forecast.png"], "")
    table = pd.read_csv(here / "my-forecast.csv")
    assert (len(table), table.date[0], table.date[7]) == (8, "2026-01-02 16:00:00", "2026-01-02 23:00:00")
    assert (here / "my-forecast.png").stat().st_size > 5_000
    code, _, err = titans(
        "forecast", "my.csv", "--model", forecaster, "--horizon", 20, "--output", "new/o.csv", "--column", "a"
    )
    assert code == 0
    assert err == (
        "titans: the model forecasts 8 rows at once; 20 rows are made of 3 forecasts, each from those before it\n"
    )
    longer = pd.read_csv(here / "new" / "o.csv")
    assert len(longer) == 20
    pd.testing.assert_frame_equal(longer[:8], table)
    assert (longer["a-q0.9"] >= longer["a-q0.1"]).all()


def test_errors_are_one_line_that_names_the_option(fails, forecaster, here):
    lines = (here / "my.csv").read_text().splitlines()
    (here / "twice.csv").write_text("\n".join([*lines, lines[-1]]) + "\n")
    assert "occurs twice, in line 41 and line 42" in (line := fails("forecast", "twice.csv", "--model", forecaster))
    assert "give --steps rows" in line
    (here / "gap.csv").write_text("\n".join(lines[:20] + lines[21:]) + "\n")
    assert "--steps fill adds the missing rows" in fails("forecast", "gap.csv", "--model", forecaster)
    assert "--output 'o.txt' must end in .csv" in fails("forecast", "my.csv", "--model", forecaster, "-o", "o.txt")
    assert "steps must be one of" in fails("forecast", "my.csv", "--model", forecaster, "--steps", "some")
    (here / "text.csv").write_text("date,x\n2026-01-01,warm\n")
    assert "name the columns to forecast with --column" in fails("forecast", "text.csv", "--model", forecaster)
    assert "no column 'c'" in fails("forecast", "my.csv", "--model", forecaster, "--column", "c")
    assert "'none.csv' does not exist" in fails("forecast", "none.csv", "--model", forecaster)
    assert "'none' does not exist" in fails("forecast", "my.csv", "--model", "none")
    (here / "my-forecast.png").write_text("kept")
    assert "'my-forecast.png' exists; name another" in fails("forecast", "my.csv", "--model", forecaster)
    assert not (here / "my-forecast.csv").exists()


def test_a_gap_is_filled_where_asked_for(titans, forecaster, here):
    lines = (here / "my.csv").read_text().splitlines()
    (here / "gap.csv").write_text("\n".join(lines[:30] + lines[31:]) + "\n")
    code, _, err = titans("forecast", "gap.csv", "--model", forecaster, "--steps", "fill")
    assert code == 0
    assert "missing in the rows that the model reads: 1 value;" in err
    assert not pd.read_csv(here / "gap-forecast.csv").isna().any().any()


def test_a_fault_of_the_file_is_found_before_a_model_is_loaded(forecaster, here):
    (here / "bad.csv").write_text("date,a\n2026-01-01,warm\n2026-01-02,cold\n")
    program = (
        "import sys\nfrom titanslab.cli import main\n"
        f"try:\n    main(['forecast', 'bad.csv', '--model', {str(forecaster)!r}])\n"
        "except SystemExit as stop:\n    print(stop.code, 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["2", "False"]
    assert "column 'a' holds text in line 2 ('warm')" in done.stderr


def test_the_page_gives_the_same_forecast_by_the_command_and_in_python(titans, forecaster, here):
    (here / "runs").mkdir()
    (here / "runs" / "etth1").symlink_to(forecaster)
    command, program = [b.code for b in blocks(PAGE) if b.language == "sh" or "forecast_series" in b.code]
    assert titans(*command.split()[1:])[0] == 0
    scope = {}
    exec(compile(program, PAGE.name, "exec"), scope)
    table = pd.read_csv(here / "my-forecast.csv")
    assert scope["forecast"].values.shape == (96, 1)
    assert np.allclose(table.a, scope["forecast"].values[:, 0], rtol=1e-6)
