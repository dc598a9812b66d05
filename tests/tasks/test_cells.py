"""Cells of the result tables, and the lists of names and lengths that choose them."""

import pytest

from titanslab.data.encode import load_counter
from titanslab.tasks.babilong.samples import babilong_cells
from titanslab.tasks.niah.samples import niah_cells
from titanslab.tasks.sample import split_lengths, split_names
from titanslab.tasks.table import TASKS


def test_babilong_cells(babi, tmp_path):
    book = tmp_path / "book.txt"
    book.write_text("The bell in the tower rang for the third time that long and windy evening. " * 40)
    cells = babilong_cells("qa1", [0, 1000], load_counter("byte"), "byte", facts=str(babi), background=str(book))
    assert [cell.length for cell in cells] == [0, 1000]
    sample = cells[1].make(0)
    assert 950 < len(sample.prompt) < 1020
    assert cells[1].score(sample, sample.target) == {"official": 1.0, "corrected": 1.0}
    with pytest.raises(ValueError, match="background is missing"):
        babilong_cells("qa1", [1000], load_counter("byte"), "byte", facts=str(babi))


def test_lists_of_names_and_lengths():
    known = ("qa1", "qa2", "qa3", "qa4")
    assert split_names("qa2-qa4, qa1,qa2", known, "tasks") == ["qa2", "qa3", "qa4", "qa1"]
    assert split_lengths("2k,2048,1M", 1024) == [2048, 2**20]
    with pytest.raises(ValueError, match="tasks has 'qa9'"):
        split_names("qa9", known, "tasks")
    with pytest.raises(ValueError, match="tasks has 'qa3-qa1'"):
        split_names("qa3-qa1", known, "tasks")
    with pytest.raises(ValueError, match="lengths is ','"):
        split_lengths(",", 1024)
    with pytest.raises(ValueError, match="haystack is missing"):
        niah_cells("single_2", [4096], load_counter("byte"), "byte")


def test_niah_cells_are_all_variants_with_a_haystack_and_else_single_1(prose, tmp_path):
    (tmp_path / "essay.txt").write_text(prose)
    for haystack, names in ((None, ["single_1"]), (str(tmp_path / "essay.txt"), list(TASKS["niah"].parts))):
        cells = niah_cells(None, [4096], load_counter("byte"), "byte", haystack=haystack)
        assert [cell.task for cell in cells] == [f"niah_{name}" for name in names]
        for cell in cells:
            sample = cell.make(3)
            assert cell.score(sample, f"It is {sample.target}.") == {"contained": 1.0}
    with pytest.raises(ValueError, match="leave it out"):
        niah_cells("single_1", [4096], load_counter("byte"), "byte", haystack=str(tmp_path / "essay.txt"))


def test_rows_of_the_table_are_consistent():
    for name, task in TASKS.items():
        assert name == task.name
        assert task.rows or task.cells
        if task.cells is not None:
            assert task.score is not None
            assert task.parts_option in [option.name for option in task.options]
            assert set(task.average) <= set(task.parts)
            assert all(set(option.parts) <= set(task.parts) for option in task.options)
            assert split_lengths(task.lengths, task.kilo)
