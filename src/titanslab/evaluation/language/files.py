"""Local files of the tasks, converted into rows with the hub's columns.

A reader gets the paths of its files and yields pairs of a place, such as "boolq.jsonl, line 3", and a row. A
`ValueError` of a row's contents names its place; `local_rows` in `local.py` checks the rows.
"""

import os
import re
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta, Struct

from titanslab.documents import DocumentError, checked, parse_json

Row = dict[str, Any]
Reader = Callable[[list[Path]], Iterator[tuple[str, Row]]]
FIX = "correct it, or leave the task out with --tasks"
ARC_LABELS = "ABCDEFGHIJ"


class Question(Struct):
    """A line of arc_easy.jsonl, arc_challenge.jsonl or boolq.jsonl."""

    query: str
    choices: Annotated[list[str], Meta(min_length=2, max_length=len(ARC_LABELS))]
    gold: Annotated[int, Meta(ge=0)]


class Solutions(Struct):
    """A line of piqa-valid.jsonl; the labels are in a file of their own."""

    goal: str
    sol1: str
    sol2: str


class Options(Struct):
    """A line of siqa_dev_3choice.jsonl; an option is a line such as "A. a good friend"."""

    passage: str
    question: str
    options: Annotated[str, Meta(pattern=r"^A\. .+\nB\. .+\nC\. .+$")]
    answer: str


class TwoContexts(Struct):
    """A line of winogrande.jsonl: the two contexts differ in the word that stands for the blank."""

    context_options: Annotated[list[str], Meta(min_length=2, max_length=2)]
    continuation: Annotated[str, Meta(min_length=1)]
    gold: Annotated[int, Meta(ge=0, le=1)]


def read_text(path: Path) -> str:
    """The contents of a text file in UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DocumentError(f"{path} is not text in UTF-8 (byte {error.start:,}); {FIX}") from None


def text_lines(path: Path) -> list[str]:
    """The lines of a text file, without those that are empty at its end."""
    return read_text(path).rstrip("\n").split("\n")


def json_lines(path: Path) -> Iterator[tuple[str, Row]]:
    """The JSON objects of a file, one a line, each with its place."""
    for number, line in enumerate(text_lines(path), 1):
        place = f"{path}, line {number}"
        yield place, parse_json(line, dict[str, Any], origin=place, fix=FIX)


def _of_lines(kind: type[Struct], convert: Callable[[Any, str], Row]) -> Reader:
    """The reader of one file with a JSON object a line, of type `kind`."""

    def read(paths: list[Path]) -> Iterator[tuple[str, Row]]:
        for place, record in json_lines(paths[0]):
            yield place, convert(checked(record, kind, place, FIX), place)

    return read


def _after(text: str, start: str, place: str) -> str:
    """`text` without `start`, which it must begin with."""
    if not text.startswith(start):
        raise DocumentError(f"{place}: query must begin with {start!r}, got {text[:40]!r}; {FIX}")
    return text.removeprefix(start)


def _arc(record: Question, place: str) -> Row:
    if record.gold >= len(record.choices):
        raise DocumentError(f"{place}: gold is {record.gold}, and there are {len(record.choices)} choices; {FIX}")
    choices = {"text": record.choices, "label": list(ARC_LABELS[: len(record.choices)])}
    question = _after(record.query, "Question: ", place)
    return {"question": question, "choices": choices, "answerKey": ARC_LABELS[record.gold]}


def _boolq(record: Question, place: str) -> Row:
    if record.choices != ["no", "yes"]:
        raise DocumentError(f"{place}: choices must be no and yes, got {record.choices}; {FIX}")
    passage, found, question = _after(record.query, "Passage: ", place).rpartition("\nQuestion: ")
    if not found:
        raise DocumentError(f"{place}: query must hold a line that begins with 'Question: '; {FIX}")
    return {"passage": passage, "question": question.removesuffix("?"), "label": record.gold}


def _social_iqa(record: Options, place: str) -> Row:
    options = record.options.split("\n")
    if record.answer not in options:
        raise DocumentError(f"{place}: answer must be one of the options, got {record.answer!r}; {FIX}")
    answers = {f"answer{option[0]}": option[3:] for option in options}
    label = str(options.index(record.answer) + 1)
    return {"context": record.passage, "question": record.question, **answers, "label": label}


def _winogrande(record: TwoContexts, place: str) -> Row:
    """The words before the blank end at the last space that both contexts share."""
    first, second = record.context_options
    shared = os.path.commonprefix([first, second])  # noqa: RUF071  characters, and no path
    before = "" if "_" in shared else shared[: shared.rfind(" ") + 1]
    return {
        "sentence": f"{before}_ {record.continuation}",
        "option1": first.removeprefix(before),
        "option2": second.removeprefix(before),
        "answer": str(record.gold + 1),
    }


arc = _of_lines(Question, _arc)
boolq = _of_lines(Question, _boolq)
social_iqa = _of_lines(Options, _social_iqa)
winogrande = _of_lines(TwoContexts, _winogrande)


def lambada(paths: list[Path]) -> Iterator[tuple[str, Row]]:
    """A JSON object with the text a line, as on the hub."""
    return json_lines(paths[0])


def piqa(paths: list[Path]) -> Iterator[tuple[str, Row]]:
    """Goals with two solutions in one file, the number of the right one, 0 or 1, in the other."""
    goals, labels = paths
    for number, (pair, label) in enumerate(zip_longest(json_lines(goals), text_lines(labels)), 1):
        if pair is None or label is None:
            shorter, longer = (goals, labels) if pair is None else (labels, goals)
            raise DocumentError(f"{shorter} ends before line {number}, and {longer} goes on; {FIX}")
        place, record = pair
        if label.strip() not in ("0", "1"):
            raise DocumentError(f"{labels}, line {number}: the label must be 0 or 1, got {label[:40]!r}; {FIX}")
        solutions = checked(record, Solutions, place, FIX)
        yield place, {"goal": solutions.goal, "sol1": solutions.sol1, "sol2": solutions.sol2, "label": int(label)}


LAST_SENTENCE = re.compile(r"^(?P<a>.*[.!?\"')])\s+(?P<b>[a-z][^.!?]*)$")
HELLASWAG_LINES = 6


def hellaswag(paths: list[Path]) -> Iterator[tuple[str, Row]]:
    """Blocks of six lines: the context, the number of the right ending, and the four endings.

    The begun sentence at the end of a context, as in "A man is sitting on a roof. he", is the hub's `ctx_b`, which
    lm-eval writes with a capital.
    """
    (path,) = paths
    lines = text_lines(path)
    if len(lines) % HELLASWAG_LINES:
        raise DocumentError(
            f"{path} has {len(lines):,} lines, and each sample has {HELLASWAG_LINES} (context, number of the right "
            f"ending, four endings); {FIX}"
        )
    for start in range(0, len(lines), HELLASWAG_LINES):
        context, label, *endings = lines[start : start + HELLASWAG_LINES]
        place = f"{path}, lines {start + 1} to {start + HELLASWAG_LINES}"
        activity, found, text = context.partition(": ")
        if not found:
            raise DocumentError(f"{place}: the context must begin with 'ACTIVITY: ', got {context[:40]!r}; {FIX}")
        begun = LAST_SENTENCE.match(text)
        before, after = (begun["a"], begun["b"]) if begun else (text, "")
        yield place, {
            "activity_label": activity, "ctx_a": before, "ctx_b": after, "endings": endings, "label": label.strip(),
        }  # fmt: skip


def wikitext(paths: list[Path]) -> Iterator[tuple[str, Row]]:
    """The pages of a file of WikiText: a line such as " = Title = " begins one, as in the hub's data set of pages."""
    (path,) = paths
    page: list[str] = []
    first = 1
    lines = read_text(path).split("\n")
    for number, line in enumerate(lines, 1):
        heading = line.replace("= = =", "===").replace("= =", "==").strip()
        if heading.startswith("= ") and heading.endswith(" ="):
            if "".join(page).strip():
                yield f"{path}, lines {first} to {number - 1}", {"page": "\n".join(page)}
            page, first = [], number
        page.append(line)
    yield f"{path}, lines {first} to {len(lines)}", {"page": "\n".join(page)}
