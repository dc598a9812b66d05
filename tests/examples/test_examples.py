"""Every example runs as a script does, and its last line holds the figure that it is there to show."""

import re
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples"
NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?:e-?\d+)?")


@pytest.fixture
def last_line(capsys) -> Callable[[str], list[float]]:
    """A function that runs an example and returns the numbers in its last line."""

    def run(name: str) -> list[float]:
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
        line = capsys.readouterr().out.strip().splitlines()[-1]
        return [float(n.replace(",", "")) for n in NUMBER.findall(line)]

    return run


def test_the_surprise_marks_the_fault_in_a_stream(last_line) -> None:
    fault, marked, times, grown = last_line("sensor_stream")
    assert fault <= marked < fault + 50
    assert times > 2
    assert grown == 0


def test_a_forecaster_with_memory_beats_itself_without(last_line) -> None:
    on, off, mean = last_line("time_series")
    assert on < 0.3
    assert off > 0.9
    assert mean > 0.9


def test_a_gene_is_known_when_it_comes_again(last_line) -> None:
    first, _, again, off = last_line("dna")
    assert first > 1.3  # ln 4 = 1.386 is chance
    assert off > 1.3
    assert again < 1.1


def test_a_class_token_reads_the_patches_through_the_memory(last_line) -> None:
    right, chance = last_line("encoder_block")
    assert right > 80
    assert chance == 25


def test_a_policy_keeps_the_signal_until_the_end_of_its_episode(last_line) -> None:
    first, _, last, _ = last_line("step_loop")
    assert first < 75
    assert last > 90


def test_a_grafted_memory_knows_the_letters_of_its_document(last_line) -> None:
    on, off, other = last_line("graft_trainer")
    assert on < off - 0.3
    assert on < other - 0.1


def test_an_exported_layer_goes_on_learning(last_line) -> None:
    _, worst, moved = last_line("export")
    assert worst < 1e-4
    assert moved > 0.1


def test_a_layer_goes_on_learning_in_onnx_runtime(last_line) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    _, worst, moved = last_line("onnx_step")
    assert worst < 1e-4
    assert moved > 0.1


def test_the_folder_describes_each_example() -> None:
    text = (FOLDER / "README.md").read_text()
    assert [p.name for p in FOLDER.glob("*.py") if f"[{p.name}]({p.name})" not in text] == []
