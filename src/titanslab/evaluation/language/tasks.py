"""The tasks of the paper's table of language modelling and common sense, a row each."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from msgspec import Struct

from titanslab.evaluation.language import files, rows
from titanslab.evaluation.language.files import Reader


class Column(NamedTuple):
    """A column of the table.

    Args:
        title: its heading, as in the paper.
        metric: lm-eval's name of the value.
        kind: perplexities are shown as they are, and accuracies in percent.
    """

    title: str
    metric: str
    kind: Literal["perplexity", "accuracy"] = "accuracy"


@dataclass(frozen=True)
class LanguageTask:
    """A row of `TASKS`.

    Args:
        name: the task in lm-eval and in `--tasks`.
        yaml: its file among lm-eval's tasks, which gives prompts, targets, metrics and their aggregation.
        columns: the paper's columns of its values.
        row: the columns of its data on the hub.
        files: names of its local files. form: what they hold, for errors.
        read: converts them into rows with the hub's columns.
    """

    name: str
    yaml: str
    columns: tuple[Column, ...]
    row: type[Struct]
    files: tuple[str, ...]
    form: str
    read: Reader


_QUESTIONS = "a JSON object a line with query ('Question: ...'), choices and gold, counted from 0"
_ROWS = (
    LanguageTask(
        "wikitext",
        "wikitext/wikitext.yaml",
        (Column("Wiki ppl", "word_perplexity", "perplexity"),),
        rows.WikiText,
        ("wikitext2-test.txt",),
        "plain text in which a line ' = TITLE = ' begins a page",
        files.wikitext,
    ),
    LanguageTask(
        "lambada_openai",
        "lambada/lambada_openai.yaml",
        (Column("LMB ppl", "perplexity", "perplexity"), Column("LMB acc", "acc")),
        rows.Lambada,
        ("lambada_test.jsonl",),
        "a JSON object a line with text",
        files.lambada,
    ),
    LanguageTask(
        "piqa",
        "piqa/piqa.yaml",
        (Column("PIQA acc", "acc"),),
        rows.Piqa,
        ("piqa-valid.jsonl", "piqa-valid-labels.lst"),
        "a JSON object a line with goal, sol1 and sol2, and a line with 0 or 1 for each",
        files.piqa,
    ),
    LanguageTask(
        "hellaswag",
        "hellaswag/hellaswag.yaml",
        (Column("Hella acc_n", "acc_norm"),),
        rows.HellaSwag,
        ("hellaswag_val_full.txt",),
        "six lines a sample: 'ACTIVITY: CONTEXT', the number of the right ending from 0, four endings",
        files.hellaswag,
    ),
    LanguageTask(
        "winogrande",
        "winogrande/default.yaml",
        (Column("Wino acc", "acc"),),
        rows.WinoGrande,
        ("winogrande.jsonl",),
        "a JSON object a line with two context_options, continuation and gold, 0 or 1",
        files.winogrande,
    ),
    LanguageTask(
        "arc_easy",
        "arc/arc_easy.yaml",
        (Column("ARC-e acc", "acc"),),
        rows.Arc,
        ("arc_easy.jsonl",),
        _QUESTIONS,
        files.arc,
    ),
    LanguageTask(
        "arc_challenge",
        "arc/arc_challenge.yaml",
        (Column("ARC-c acc_n", "acc_norm"),),
        rows.Arc,
        ("arc_challenge.jsonl",),
        _QUESTIONS,
        files.arc,
    ),
    LanguageTask(
        "social_iqa",
        "siqa/siqa.yaml",
        (Column("SIQA acc", "acc"),),
        rows.SocialIqa,
        ("siqa_dev_3choice.jsonl",),
        "a JSON object a line with passage, question, options ('A. ...', 'B. ...', 'C. ...' in lines) and answer",
        files.social_iqa,
    ),
    LanguageTask(
        "boolq",
        "super_glue/boolq/default.yaml",
        (Column("BoolQ acc", "acc"),),
        rows.BoolQ,
        ("boolq.jsonl",),
        "a JSON object a line with query ('Passage: ...', then a line 'Question: ...'), choices (no, yes) and gold",
        files.boolq,
    ),
)
TASKS: dict[str, LanguageTask] = {row.name: row for row in _ROWS}
