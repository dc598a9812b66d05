"""The rows that [data] of a recipe describes, to train on and to validate with."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from glob import glob
from pathlib import Path
from typing import Any

from torch.utils.data import IterableDataset, Subset
from transformers import PreTrainedTokenizerBase

from titanslab.data import collate, load_tokenizer, open_corpus, padding_id, tokenize
from titanslab.data.bpe import bpe_size, corpus_bpe
from titanslab.data.corpus import Corpus
from titanslab.data.order import MixedRows, ShuffledRows
from titanslab.data.packing import Row, TokenRows
from titanslab.data.pool import sensible_processes
from titanslab.data.shards import ShardedTokens, token_folder
from titanslab.data.tokens import Tokens
from titanslab.models.config import TitansConfig
from titanslab.progress import bar, bar_from_first_report
from titanslab.training.recipe import DataRecipe, Recipe

PATIENCE = 2.0  # seconds by which the first process of a run goes before the others, which show no bar


@dataclass(frozen=True)
class RunData:
    """The data of a run.

    Args:
        rows: the training rows without end, by number in their order (`data.order`), or an iterable of them.
        collator: the function that makes a batch of rows for a model of a type (`config.model_type`).
        tokenizer: of the texts; None for other data.
        per_epoch: number of different rows; None where it is not known.
        validation: rows to validate with, or None.
        bytes_per_token: mean number of bytes of validation text that a scored token stands for.
        score: the name of the logged value that chooses the best validation; "eval_loss" is best where it is least,
            others where they are greatest.
        compute_metrics: of the Trainer, for scores other than the loss.
        labels: the name of the batch's tensor that the loss needs.
        unit: of the loss, for the picture. counted: what the tokens of a log are, such as "values".
        save: writes what the data have to say about the model into the folder of the model, if anything.
    """

    rows: Any
    collator: Callable[[str], Callable[[list[Any]], dict[str, Any]]]
    tokenizer: PreTrainedTokenizerBase | None = None
    per_epoch: int | None = None
    validation: Sequence[Any] | None = None
    bytes_per_token: float | None = None
    score: str = "eval_loss"
    compute_metrics: Callable[[Any], dict[str, float]] | None = None
    labels: str = "labels"
    unit: str = "nats per token"
    counted: str = "tokens"
    save: Callable[[Path], None] | None = None

    def run_rows(self, steps: int, per_step: int) -> Any:
        """A dataset of the rows that a run of `steps` steps sees."""
        return self.rows if isinstance(self.rows, IterableDataset) else Subset(self.rows, range(steps * per_step))


@dataclass(frozen=True)
class Reading:
    """How a process makes tokens of a recipe's texts.

    Args:
        processes: most processes that encode, see `titanslab.data.pool.encoded`.
        leads: whether it goes before other processes of the same run, and shows a progress bar.
    """

    processes: int = 1
    leads: bool = True

    def tokens(self, data: DataRecipe, name: str, tokenizer: Any) -> Tokens | ShardedTokens:
        """The tokens of data.train or data.validation, by the name of the field."""
        source = getattr(data, name)
        if (folder := token_folder(source)) is not None:
            found = ShardedTokens(folder, f"data.{name}")
            found.check_tokenizer(tokenizer)
            return found
        corpus = _corpus(data, name)
        processes = sensible_processes(self.processes, corpus.size if corpus.unit == "bytes" else None)
        show = bar_from_first_report(f"tokenizing data.{name}", corpus.unit) if self.leads else nullcontext()
        with show as progress:
            return tokenize(
                corpus,
                tokenizer,
                cache=tokens_folder(),
                processes=processes,
                progress=progress,
                patience=0.0 if self.leads else PATIENCE,
            )


def open_data(
    recipe: Recipe, num_processes: int = 1, *, reading: Reading | None = None, tokenizer: Any = None
) -> RunData:
    """Read the data of a recipe; `num_processes` share the rows of a step.

    `tokenizer` is one to use in the place of the recipe's.

    Raises FileNotFoundError or ValueError for data that is missing, unreadable or too little.
    """
    data, settings, reading = recipe.data, recipe.training, reading or Reading()
    if tokenizer is None:
        tokenizer = open_tokenizer(data, show=reading.leads)
    per_step = settings.rows(num_processes)
    rows = training_stream(data, tokenizer, seed=settings.seed, rows_needed=per_step, reading=reading)
    validation = (None, None) if data.validation is None else validation_rows(data, tokenizer, reading)
    return RunData(
        rows,
        partial(collator, data, tokenizer),
        tokenizer,
        len(rows.rows) if isinstance(rows, ShuffledRows) else None,
        *validation,
    )


def open_tokenizer(data: DataRecipe, show: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer that [data] names: one that exists, or for `bpe:N` one that is made of the training text.

    Without data.train the text is that of the files which data.task_options name, such as a haystack. `show` shows that
    one is being made. Raises ValueError where there is no text.
    """
    size = bpe_size(data.tokenizer)
    if size is None:
        return load_tokenizer(data.tokenizer)
    source: Any = data.train
    if token_folder(source) is not None:
        raise ValueError(
            f"data.tokenizer = {data.tokenizer!r} is made of the training text, and data.train = {source!r} holds "
            f"tokens; set data.tokenizer = {source!r}, which keeps the tokenizer of its tokens"
        )
    if source is None:
        source = [t for t in data.task_options.values() if isinstance(t, str) and (Path(t).exists() or glob(t))]
    if not source:
        raise ValueError(
            f"data.tokenizer = {data.tokenizer!r} is made of the training text, and data.train is missing; "
            "make one with titans tokenizer BOOKS --output FOLDER, and give the folder"
        )
    with bar("making the tokenizer") if show else nullcontext():
        return corpus_bpe(_corpus(data, "train", source), size)


def collator(
    data: DataRecipe, tokenizer: PreTrainedTokenizerBase, model_type: str
) -> Callable[[list[Row]], dict[str, Any]]:
    """The function that makes a batch of rows for a model of this type.

    Only Titans models read `document_ids`; with one document a row, other models need none, as the padding after a
    document has no label. Raises ValueError where rows would hold several documents for such a model.
    """
    batch = partial(collate, pad_id=padding_id(tokenizer))
    if model_type == TitansConfig.model_type:
        return batch
    if data.train is not None and (data.pack_documents or data.streaming):
        raise ValueError(
            f"data.pack_documents = true puts several documents into a row, and a {model_type} model would read "
            "from one into the next; set data.pack_documents = false and data.streaming = false"
        )
    if data.task_options.get("pack"):
        raise ValueError(
            f"data.task_options.pack = true puts several samples into a row, and a {model_type} model would read "
            "from one into the next; take it out"
        )
    return lambda rows: {name: values for name, values in batch(rows).items() if name != "document_ids"}


def training_stream(
    data: DataRecipe,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    rows_needed: int = 1,
    reading: Reading | None = None,
) -> Any:
    """The endless rows of a run: a stream of rows by number (`data.order`), or with data.streaming an iterable.

    Raises ValueError for a corpus that makes fewer than `rows_needed` rows, the size of a batch.
    """
    if data.streaming:
        if token_folder(data.train) is not None:
            raise ValueError(
                f"data.streaming = true reads texts, and data.train = {data.train!r} holds tokens; set "
                "data.streaming = false"
            )
        from titanslab.data.streaming import StreamedRows

        buffer = data.shuffle_buffer if data.shuffle else 1
        return StreamedRows(_corpus(data, "train"), tokenizer, data.sequence_length, buffer=buffer, seed=seed)
    streams: list[Any] = [] if data.task is None else [task_stream(data, tokenizer, seed)]
    if data.train is not None:
        tokens = (reading or Reading()).tokens(data, "train", tokenizer)
        rows: Any = TokenRows(tokens, data.sequence_length, pack=data.pack_documents, pad_id=padding_id(tokenizer))
        if len(rows) < rows_needed:
            raise ValueError(
                f"data.train holds too little data: {len(tokens):,} tokens make {len(rows)} rows of "
                f"data.sequence_length = {data.sequence_length}, and one batch needs {rows_needed}; give more text, "
                "or lower data.sequence_length, training.batch_size or training.accumulation"
            )
        streams.append(ShuffledRows(rows, seed, shuffle=data.shuffle))
    return streams[0] if len(streams) == 1 else MixedRows(streams, [data.task_share, 1.0 - data.task_share], seed)


def task_stream(data: DataRecipe, tokenizer: PreTrainedTokenizerBase, seed: int) -> Any:
    """The generated rows that data.task names, such as "recall"; data.task_options go to the task."""
    from titanslab.tasks.mixture import Mixture

    assert data.task is not None
    try:
        stream = Mixture(data.task, tokenizer, data.sequence_length, seed, **data.task_options)
        _ = stream[0]  # options that cannot work raise here, before training begins
    except TypeError as error:  # the task has no such option
        raise ValueError(f"data.task_options of data.task = {data.task!r}: {error}") from error
    except ValueError as error:
        raise ValueError(f"data.task = {data.task!r}: {error}") from error
    return stream


def validation_rows(
    data: DataRecipe, tokenizer: PreTrainedTokenizerBase, reading: Reading | None = None
) -> tuple[Sequence[Row], float]:
    """The rows of data.validation in their order, cut off after data.validation_samples, and their bytes a token."""
    tokens = (reading or Reading()).tokens(data, "validation", tokenizer)
    pack, pad_id = data.pack_documents, padding_id(tokenizer)
    rows: Any = TokenRows(tokens, data.sequence_length, pack=pack, keep_tail=True, pad_id=pad_id)
    if data.validation_samples is not None and data.validation_samples < len(rows):
        rows = Subset(rows, range(data.validation_samples))
    return rows, tokens.text_bytes / max(1, len(tokens) - tokens.documents)


def tokens_folder() -> Path:
    """The folder of tokenised corpora, beside the caches of `datasets`."""
    import datasets

    return Path(datasets.config.HF_DATASETS_CACHE) / "titanslab-tokens"


def _corpus(data: DataRecipe, name: str, source: Any = None) -> Corpus:
    """The corpus of data.train or data.validation, by the name of the field; `source` if it is not the field's."""
    split = data.split if name == "train" else data.validation_split
    options = {"column": data.text_column, "text_documents": data.text_documents, "streaming": data.streaming}
    source = getattr(data, name) if source is None else source
    return open_corpus(source, f"data.{name}", subset=data.subset, split=split, **options)
