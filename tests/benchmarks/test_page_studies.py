"""The sections of studies on the page of results."""

import json

import pytest
from benchmarks.page import studies


def report(tmp_path, name, *rows):
    results = []
    for row, perplexity in rows:
        measured = {"perplexity": perplexity, "context_length": 2048, "positions": []}
        training = {"tokens": 100, "seconds": 3.0, "final_loss": 4.0}
        results.append(
            {
                "set": "main", "row": row, "model": row, "seed": 0, "parameters": 10, "training": training,
                "lessons": [], "cells": [], "language": {}, "sweep": {}, "perplexity": {"results": [measured]},
            }
        )  # fmt: skip
    (tmp_path / name).write_text(json.dumps({"results": results}))
    return str(tmp_path / name)


def about(*files):
    return {"study": "table1", "title": "A title", "text": "Words.", "command": "titans x", "files": list(files)}


def test_a_section_has_the_rows_of_all_files_and_the_paper(tmp_path):
    first = report(tmp_path, "a.json", ("lmm", 70.5), ("attention", 80.25))
    second = report(tmp_path, "b.json", ("attention", 78.0))
    text = studies.study(about(first, f"{second}#at another rate"))
    assert text.startswith("### A title\n\nWords.")
    assert "| lmm | 70.50 | 26.18 | 29.97 |" in text
    assert "| attention | 80.25 | 31.52 | 41.08 |" in text
    assert "| attention, at another rate | 78.00 |" in text
    assert "Columns marked (paper): Titans, arXiv 2501.00663" in text


def test_one_run_twice_and_no_run_are_errors(tmp_path):
    first, second = report(tmp_path, "a.json", ("lmm", 70.5)), report(tmp_path, "b.json", ("lmm", 71.0))
    with pytest.raises(ValueError, match=r"b\.json and .*a\.json both have lmm with seed 0"):
        studies.study(about(first, second))
    with pytest.raises(ValueError, match="there is no result of table1"):
        studies.study(about(report(tmp_path, "c.json")))
