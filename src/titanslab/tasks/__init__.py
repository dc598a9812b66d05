"""Tasks that measure memory: they make samples and training rows and score answers, and they import no model."""

from titanslab.tasks.sample import Cell, SampleMaker, TaskSample, derive_seed, length_label, parse_length
from titanslab.tasks.table import TASKS, LmEval, Option, Task

__all__ = [
    "TASKS",
    "Cell",
    "LmEval",
    "Option",
    "SampleMaker",
    "Task",
    "TaskSample",
    "derive_seed",
    "length_label",
    "parse_length",
]
