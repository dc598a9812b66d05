"""A task run on a model: samples are batched by length, answered, scored and recorded; a stopped run resumes."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from titanslab.data import padding_id
from titanslab.data.encode import TokenCounter, encode_long, leading_special_tokens, load_counter, tokenizer_identity
from titanslab.evaluation.decode import Answerer, GreedyAnswerer, end_tokens
from titanslab.evaluation.identity import model_identity
from titanslab.evaluation.results import add_records, kept_samples, open_results
from titanslab.progress import Progress, bar
from titanslab.runs.loading import find_model_folder, load_config, load_model, load_model_tokenizer
from titanslab.tasks.sample import Cell, TaskSample, split_lengths
from titanslab.tasks.table import Task

Record = dict[str, Any]


@dataclass(frozen=True)
class TaskRun:
    """A model, the samples of a task for it, and the way it reads and answers them.

    Args:
        task: a row of the table that has cells. options: the task's own options by name; see `Task.options`.
        lengths: such as `2k,4k`; see `split_lengths`. samples: their number per sub-task and length. seed: of these.
        model: folder of a run or of a Hugging Face model. device: of the model.
        output: folder of `results.jsonl` and `settings.json`.
        max_new_tokens: length of the longest answer. sample_folder: keeps the samples for later runs; None = `samples`
            in the output folder.
        tokenizer_for_length: name of the tokenizer that measures lengths, see `load_counter`; None = the model's own.
        batch_size, batch_tokens: most prompts and prompt tokens in a batch; a single prompt may have more tokens.
        piece: tokens that a Titans model reads at once.
        learn, forget: False freezes the memories, or sets their alpha to 0 (`memory_forgetting` in the config).
    """

    task: Task
    lengths: str
    samples: int
    model: str
    output: Path
    device: torch.device
    max_new_tokens: int
    seed: int = 42
    options: Mapping[str, Any] = field(default_factory=dict)
    tokenizer_for_length: str | None = None
    sample_folder: Path | None = None
    batch_size: int = 16
    batch_tokens: int = 1 << 16
    piece: int = 4096
    learn: bool = True
    forget: bool = True


class Answered(NamedTuple):
    """Records of an evaluation: those of its cells, and all records of the output folder."""

    asked: list[Record]
    everything: list[Record]


def run_task(run: TaskRun, settings: Mapping[str, Any] | None = None) -> Answered:
    """Answer every sample that the output folder has no answer to, and show a progress bar.

    Args:
        run: the model, the samples and the output folder.
        settings: further values that the answers depend on; a folder that was made under other values is refused.
    """
    if run.task.cells is None:
        raise ValueError(f"task {run.task.name} has training rows alone; choose a task that has cells")
    folder = find_model_folder(run.model)
    tokenizer = load_model_tokenizer(run.model)
    other = run.tokenizer_for_length
    counter = TokenCounter(tokenizer) if other is None else load_counter(other)
    # The identity depends on the tokenizer's contents, so a copy in another folder gives the same samples.
    counter_name = tokenizer_identity(counter.tokenizer)
    lengths = split_lengths(run.lengths, run.task.kilo)
    cells = run.task.cells(lengths=lengths, counter=counter, counter_name=counter_name, seed=run.seed, **run.options)
    if not run.forget and getattr(load_config(run.model), "variant", "attention") == "attention":
        raise ValueError("forget=False keeps a memory from fading, and this model has none")
    network: Any = load_model(run.model, **({} if run.forget else {"memory_forgetting": False}))
    answer = GreedyAnswerer(
        network.to(run.device),
        max_new_tokens=run.max_new_tokens,
        piece=run.piece,
        pad_token_id=padding_id(tokenizer),
        eos_token_ids=end_tokens(tokenizer, network),
        learn=run.learn,
    )
    identity = {
        **model_identity(folder, tokenizer),
        "seed": run.seed,
        "max_new_tokens": run.max_new_tokens,
        "tokenizer_for_length": counter_name,
        "task": run.task.name,
        **({} if run.learn else {"learn": False}),
        **({} if run.forget else {"forget": False}),
        **(settings or {}),
    }
    with bar("asking", "tokens") as progress:
        return run_cells(run, cells, answer, tokenizer, identity, progress)


def run_cells(
    run: TaskRun,
    cells: Sequence[Cell],
    answer: Answerer,
    tokenizer: Any,
    settings: Mapping[str, Any],
    progress: Progress | None = None,
) -> Answered:
    """Answer and score the first `run.samples` samples of every cell, except those that `run.output` holds already.

    Args:
        run: the output folder, the samples and the batches; its other fields have no effect.
        cells: the cells in the order in which they run. settings: as in `open_results`.
        answer: continues prompts; see `GreedyAnswerer`. tokenizer: of the model.
        progress: called with the tokens read, those of all cells, and the name of the cell.

    Returns:
        Records of `task`, `length`, `index`, `prompt_tokens`, `depth`, `target`, `output`, `scores`, `seconds`; those
        of the cells are sorted by the first three.
    """
    count, samples_at = run.samples, run.sample_folder or run.output / "samples"
    if count < 1 or run.batch_size < 1:
        raise ValueError(f"samples is {count} and batch_size {run.batch_size}; both must be at least 1")
    with open_results(run.output, settings, {cell.name: cell.settings for cell in cells}) as records:
        done = {_key(record) for record in records}
        todo = [(cell, [n for n in range(count) if (cell.task, cell.length, n) not in done]) for cell in cells]
        read, total = 0, sum(max(1, cell.length) * len(left) for cell, left in todo)

        def advance(cell: Cell, tokens: int) -> None:
            nonlocal read
            read += tokens
            if progress is not None:
                progress(read, total, f"{cell.task} at {cell.length:,} tokens")

        for cell, left in todo:
            if not left:
                continue
            advance(cell, 0)
            kept = kept_samples(samples_at, cell, count)
            samples = (kept[n] if n < len(kept) else cell.make(n) for n in left)
            for batch in _batches(samples, tokenizer, run.batch_size, run.batch_tokens):
                new = _answer(cell, batch, answer, tokenizer, partial(advance, cell))
                add_records(run.output, new)
                records += new
        wanted = {(cell.task, cell.length, n) for cell in cells for n in range(count)}
        return Answered(sorted((r for r in records if _key(r) in wanted), key=_key), records)


def _key(record: Record) -> tuple[str, int, int]:
    return record["task"], record["length"], record["index"]


Batch = list[tuple[TaskSample, np.ndarray]]  # samples with the ids of their prompts


def _batches(samples: Iterable[TaskSample], tokenizer: Any, batch_size: int, batch_tokens: int) -> Iterator[Batch]:
    prefix = np.asarray(leading_special_tokens(tokenizer), dtype=np.int32)
    batch: Batch = []
    for sample in samples:
        prompt = np.concatenate([prefix, encode_long(tokenizer, sample.prompt)])
        width = max(len(ids) for _, ids in [*batch, (sample, prompt)])
        if batch and (len(batch) == batch_size or width * (len(batch) + 1) > batch_tokens):
            yield batch
            batch = []
        batch.append((sample, prompt))
    if batch:
        yield batch


def _answer(
    cell: Cell, batch: Batch, answer: Answerer, tokenizer: Any, progress: Callable[[int], None]
) -> list[Record]:
    """The records of a batch; `progress` is called with nominal tokens, the sample's length instead of its own."""
    begin, read, nominal = time.perf_counter(), 0, max(1, cell.length) * len(batch)
    total = sum(len(prompt) for _, prompt in batch)

    def advance(tokens: int) -> None:
        nonlocal read
        before, read = read, min(total, read + tokens)
        progress(nominal * read // total - nominal * before // total)

    new = answer([prompt for _, prompt in batch], advance)
    advance(total)
    seconds = (time.perf_counter() - begin) / len(batch)
    outputs = [tokenizer.decode(ids, skip_special_tokens=True) for ids in new]
    return [
        {
            "task": sample.task,
            "length": sample.length,
            "index": sample.index,
            "prompt_tokens": len(prompt),
            "depth": sample.info.get("depth"),
            "target": sample.target,
            "output": output,
            "scores": cell.score(sample, output),
            "seconds": round(seconds, 4),
        }
        for (sample, prompt), output in zip(batch, outputs, strict=True)
    ]
