"""The data of a run that reads documents in order, a line of the batch beside the others."""

from collections.abc import Callable
from functools import partial
from typing import Any

from titanslab.data import padding_id
from titanslab.data.documents import DocumentRows, OnePass, WithTask, collate_documents
from titanslab.training.recipe import DataRecipe, TrainingRecipe
from titanslab.training.sources import Reading, RunData, task_stream


def read_in_order(
    data: DataRecipe,
    training: TrainingRecipe,
    tokenizer: Any,
    processes: int,
    reading: Reading,
    say: Callable[[str], None],
    pieces: int | None = None,
) -> RunData:
    """The documents of [data] in order, mixed with the rows of its task.

    Args:
        processes: that share the rows of a step.
        reading: see `open_data`. say: called with facts about the data.
        pieces: see `DocumentRows`.

    Raises:
        FileNotFoundError, ValueError: the data are missing, unreadable or too little.
    """
    tokens = reading.tokens(data, "train", tokenizer)
    lines = training.batch_size * processes
    rows: Any = DocumentRows(
        tokens, data.sequence_length, lines, shuffle=data.shuffle, pieces=pieces, seed=training.seed
    )
    say(
        f"{tokens.documents:,} documents of {len(tokens) // max(1, tokens.documents):,} tokens on average, read in "
        f"order by {lines} lines in pieces of {data.sequence_length:,}"
    )
    if data.task is not None:
        rows = WithTask(rows, task_stream(data, tokenizer, training.seed), data.task_share)
    held, bytes_per_token = None, None
    if data.validation is not None:
        found = reading.tokens(data, "validation", tokenizer)
        held_lines = (training.eval_batch_size or training.batch_size) * processes
        held = OnePass(_held_rows(found, data, held_lines), data.validation_samples)
        bytes_per_token = found.text_bytes / max(1, len(found) - found.documents)
    collate = partial(collate_documents, pad_id=padding_id(tokenizer))
    return RunData(rows, lambda _: collate, tokenizer, len(rows), held, bytes_per_token)


def _held_rows(tokens: Any, data: DataRecipe, lines: int) -> DocumentRows:
    """The rows to validate with; ValueError names the key for too little text."""
    try:
        return DocumentRows(tokens, data.sequence_length, lines, shuffle=False)
    except ValueError as error:
        raise ValueError(str(error).replace("data.train", "data.validation")) from None
