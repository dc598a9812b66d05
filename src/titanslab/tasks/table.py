"""The table of tasks: everything that training, evaluation and the command line know of a task.

A task is a folder of `tasks/` and one row of `TASKS`. A function of a row is imported at its first call, so that
`titans evaluate --help` reads this table without torch and without the libraries of data sets.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal

from titanslab.tasks.babilong import TASKS as BABILONG_TASKS
from titanslab.tasks.niah import VARIANTS as NIAH_VARIANTS
from titanslab.tasks.sample import Cell, TaskSample


@dataclass(frozen=True)
class Option:
    """An option of one task, on the command line, in a study and in lm-eval's metadata.

    Args:
        name: parameter of the task's `cells`; the command line writes it with dashes.
        help: one sentence for `--help`.
        default: its value where none is given.
        type: of its value; None is allowed too where it is the default.
        parts: the sub-tasks that read the option; empty = all.
        is_path: whether its value is the name of a file or a folder.
    """

    name: str
    help: str
    default: Any = None
    type: type = str
    parts: tuple[str, ...] = ()
    is_path: bool = False


@dataclass(frozen=True)
class LmEval:
    """A task in lm-eval, where every sub-task is `titans_NAME_PART` and one run has one length.

    Args:
        length, samples: defaults of the length and of the number of samples.
        metrics: name there of each score whose name differs, by the name here.
        needs: options that the metadata must hold.
    """

    length: str
    samples: int
    metrics: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """A row of the table.

    Args:
        name: the task on the command line (`titans evaluate NAME`) and in recipes (`data.task`). Sub-tasks are
            called `NAME_PART`.
        title, about: heading of result tables and pictures; one line for the list of tasks.
        rows: called with a tokenizer and options, returns a `MakeRow` for a `Mixture`; None = no training rows.
        cells: returns the cells of the result table; called with the task's own options by name and with `lengths` in
            tokens, the `counter` that measures them, `counter_name`, the identity of its tokenizer, which is part of
            the cells' settings, and `seed` of the samples. None = the task is for training alone and has none of the
            fields below.
        score: the scores of a sample's output by name; the first one is the one in pictures.
        help, example: text of `titans evaluate NAME --help`, and options of the command in that text.
        kilo: number of tokens that `k` means in a length.
        lengths, samples, max_new_tokens: defaults of an evaluation: its lengths, the number of samples per sub-task and
            length, and the length of the longest answer.
        parts, parts_option: names of the sub-tasks, and the option that chooses among them.
        options: the task's own options.
        average: sub-tasks that the result table averages where all of them are present.
        shorter: the default lengths where an option is not given, by the option's name.
        headings: called with the options, returns words about the samples and each score, by the score's name; they
            stand above its table.
        picture: rows of the heat map: `depth` of the answer, with a panel per sub-task, or `task`, in one panel.
        lm_eval: the task in lm-eval; None = it is not there.
    """

    name: str
    title: str
    about: str
    rows: Callable[..., Any] | None = None
    cells: Callable[..., list[Cell]] | None = None
    score: Callable[[TaskSample, str], dict[str, float]] | None = None
    help: str = ""
    example: str = ""
    kilo: int = 1024
    lengths: str = ""
    samples: int = 100
    max_new_tokens: int = 20
    parts: tuple[str, ...] = ()
    parts_option: str = ""
    options: tuple[Option, ...] = ()
    average: tuple[str, ...] = ()
    shorter: Mapping[str, str] = field(default_factory=dict)
    headings: Callable[[Mapping[str, Any]], Mapping[str, str]] = lambda options: {}
    picture: Literal["depth", "task"] = "task"
    lm_eval: LmEval | None = None


def _later(module: str, name: str) -> Callable[..., Any]:
    """The function `name` of a module of `titanslab.tasks`, which is imported at the first call."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return getattr(import_module(f"titanslab.tasks.{module}"), name)(*args, **kwargs)

    return call


def _babilong_headings(options: Mapping[str, Any]) -> dict[str, str]:
    """Whose stories a run of BABILong asks; the metric is the official one for bAbI's alone."""
    if options["facts"] is None:
        return {"official": "own stories, right answers", "corrected": "own stories, right by the corrected metric"}
    return {name: f"bAbI's stories, right by the {name} metric" for name in ("official", "corrected")}


_ROWS = (
    Task(
        name="niah",
        title="S-NIAH",
        about="A needle in a haystack, by length and depth (S-NIAH).",
        rows=_later("niah.rows", "niah_rows"),
        cells=_later("niah.samples", "niah_cells"),
        score=_later("niah.samples", "score"),
        help="Hide a needle in texts of several lengths and ask for it (RULER's S-NIAH, 500 samples per length).",
        example="--lengths 2k,4k,8k --samples 100",
        lengths="2k,4k",
        max_new_tokens=128,
        parts=NIAH_VARIANTS,
        parts_option="variant",
        options=(
            Option(
                "variant",
                "single_1, single_2, single_3, or several with commas; default: all with --haystack, else single_1.",
            ),
            Option(
                "haystack",
                "Running text for single_2 and single_3: a file or a folder.",
                parts=NIAH_VARIANTS[1:],
                is_path=True,
            ),
            Option("adjectives", "Word list for the first halves of the keys, one word a line.", is_path=True),
            Option("nouns", "Word list for the second halves of the keys.", is_path=True),
        ),
        headings=lambda options: {"contained": "answers that contain the value"},
        picture="depth",
        lm_eval=LmEval(length="4k", samples=500, metrics={"contained": "acc"}),
    ),
    Task(
        name="babilong",
        title="BABILong",
        about="Facts scattered over books, by task and length (BABILong).",
        rows=_later("babilong.rows", "BabilongRows"),
        cells=_later("babilong.samples", "babilong_cells"),
        score=_later("babilong.samples", "score"),
        help="Scatter facts over books and ask about them (BABILong); a length of 0k is the facts alone.",
        example="--facts babi/ --background books.jsonl",
        kilo=1000,
        lengths="0k,1k",
        parts=BABILONG_TASKS,
        parts_option="tasks",
        options=(
            Option(
                "facts",
                "Folder of bAbI's files, qa1_..._test.txt and so on; default: generated stories, qa1 to qa5.",
                is_path=True,
            ),
            Option("tasks", "qa1 to qa10: a range, or several with commas.", "qa1-qa5"),
            Option(
                "background",
                "Books to hide the facts in: a file or a folder; without them lengths are 0k alone.",
                is_path=True,
            ),
            Option("split", "Which of bAbI's questions: test or train.", "test"),
            Option("form", "Form of the prompt: base, the context and the question.", "base"),
        ),
        average=BABILONG_TASKS[:5],
        shorter={"background": "0k"},
        headings=_babilong_headings,
        lm_eval=LmEval(length="0k", samples=100, needs=("facts",)),
    ),
    Task(
        name="recall",
        title="Recall",
        about="Facts in running text that come again far away; the quickstart's task.",
        rows=_later("recall.samples", "recall_rows"),
    ),
    Task(
        name="kv_recall",
        title="Key-value recall",
        about="A stream of keys and values on a small vocabulary, without text.",
        rows=_later("recall.kv", "kv_rows"),
    ),
)
TASKS: dict[str, Task] = {row.name: row for row in _ROWS}
