"""From [data] of a recipe to the rows that a run trains on and validates with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from titanslab.data import (
    Corpus,
    DocumentRows,
    MixedRows,
    PackedRows,
    Row,
    Rows,
    RowStream,
    ShuffledRows,
    Tokens,
    open_corpus,
    padding_id,
    tokenize,
)
from titanslab.progress import Progress
from titanslab.training.recipe import DataRecipe

if TYPE_CHECKING:
    from torch.utils.data import IterableDataset
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Validation:
    """Rows to validate with, and how many bytes of text a scored token stands for."""

    rows: Rows
    bytes_per_token: float


@dataclass(frozen=True)
class TaskRows:
    """Generated rows: `task_row(index)` of a dataset whose row i depends on nothing but the seed and i."""

    task: Any

    def row(self, index: int) -> Row:
        return {name: np.asarray(value) for name, value in self.task[index].items()}


def training_stream(
    data: DataRecipe,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    rows_needed: int = 1,
    progress: Progress | None = None,
) -> RowStream | IterableDataset:
    """The endless rows of a run: a stream addressed by number, or an iterable where data.streaming is on.

    Raises ValueError when the corpus makes fewer than `rows_needed` rows, which is one batch.
    """
    if data.streaming:
        from titanslab.data.streaming import StreamedRows

        corpus = _corpus(data, data.train, "data.train", data.split)
        buffer = data.shuffle_buffer if data.shuffle else 1
        return StreamedRows(corpus, tokenizer, data.sequence_length, buffer=buffer, seed=seed)
    streams: list[RowStream] = []
    shares: list[float] = []
    if data.task is not None:
        streams.append(task_stream(data, tokenizer, seed))
        shares.append(data.task_share)
    if data.train is not None:
        corpus = _corpus(data, data.train, "data.train", data.split)
        tokens = tokenize(corpus, tokenizer, cache=tokens_folder(), progress=progress)
        rows = _rows(tokens, data, tokenizer)
        if len(rows) < rows_needed:
            raise ValueError(
                f"data.train holds too little data: {len(tokens):,} tokens make {len(rows)} rows of "
                f"data.sequence_length = {data.sequence_length}, and one batch needs {rows_needed}; give "
                "more text, "
                "or lower data.sequence_length, training.batch_size or training.accumulation"
            )
        streams.append(ShuffledRows(rows, seed, shuffle=data.shuffle))
        shares.append(1.0 - data.task_share if data.task is not None else 1.0)
    return streams[0] if len(streams) == 1 else MixedRows(streams, shares, seed)


def task_stream(data: DataRecipe, tokenizer: PreTrainedTokenizerBase, seed: int) -> RowStream:
    """The generated rows that data.task names, such as "recall"; data.task_options go to the task."""
    from titanslab.tasks.mixture import Mixture

    assert data.task is not None
    try:
        stream = TaskRows(Mixture(data.task, tokenizer, data.sequence_length, seed, **data.task_options))
        stream.row(0)  # what cannot work shows before training begins
    except TypeError as error:  # an option that the task does not have
        raise ValueError(f"data.task_options of data.task = {data.task!r}: {error}") from error
    except ValueError as error:
        raise ValueError(f"data.task = {data.task!r}: {error}") from error
    return stream


def validation_rows(
    data: DataRecipe, tokenizer: PreTrainedTokenizerBase, progress: Progress | None = None
) -> Validation:
    """The rows of data.validation in their order, cut off after data.validation_samples."""
    # A hub dataset named once serves for both, by its splits.
    corpus = _corpus(data, data.validation, "data.validation", data.validation_split)
    tokens = tokenize(corpus, tokenizer, cache=tokens_folder(), progress=progress)
    rows = _rows(tokens, data, tokenizer, keep_tail=True)
    if data.validation_samples is not None and data.validation_samples < len(rows):
        rows = FirstRows(rows, data.validation_samples)
    return Validation(rows, tokens.text_bytes / max(1, len(tokens) - tokens.num_documents))


@dataclass(frozen=True)
class FirstRows:
    """The first `count` of other rows."""

    rows: Rows
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < self.count:
            raise IndexError(index)
        return self.rows[index]


def tokens_folder() -> Path:
    """The folder of tokenised corpora, beside the caches of `datasets`."""
    import datasets

    return Path(datasets.config.HF_DATASETS_CACHE) / "titanslab-tokens"


def _rows(tokens: Tokens, data: DataRecipe, tokenizer: Any, keep_tail: bool = False) -> Rows:
    pad_id = padding_id(tokenizer)
    if data.pack_documents:
        return PackedRows(tokens, data.sequence_length, keep_tail=keep_tail, pad_id=pad_id)
    return DocumentRows(tokens, data.sequence_length, pad_id=pad_id)


def _corpus(data: DataRecipe, source: str | list[str] | None, name: str, split: str) -> Corpus:
    assert source is not None
    return open_corpus(
        source,
        name,
        subset=data.subset,
        split=split,
        column=data.text_column,
        text_documents=data.text_documents,
        streaming=data.streaming,
    )
