"""Runs a task's samples against a model: batched by length, resumed where it stopped, scored one by one."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from titanslab.data.encode import encode_long, leading_special_tokens
from titanslab.evaluation.decode import Answerer
from titanslab.evaluation.results import ResultLog
from titanslab.evaluation.sample_cache import SampleCache
from titanslab.progress import Progress
from titanslab.tasks.sample import TaskSample


@dataclass(frozen=True)
class Cell:
    """One square of the result table: a task at a length.

    Args:
        task: the task's name.
        length: nominal length in tokens.
        make: makes sample `index`.
        score: scores of a sample's output by name; the first is the one in the table.
        settings: all that the samples depend on but their index.
    """

    task: str
    length: int
    make: Callable[[int], TaskSample]
    score: Callable[[TaskSample, str], dict[str, float]]
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Task and length: what tells it from the others of a folder."""
        return f"{self.task}-{self.length}"


def run_cells(
    cells: Sequence[Cell],
    answer: Answerer,
    tokenizer: Any,
    output: Path,
    *,
    num_samples: int,
    settings: Mapping[str, Any],
    batch_size: int = 16,
    batch_tokens: int = 1 << 16,
    sample_folder: Path | None = None,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Answer and score `num_samples` samples of every cell that `output` does not hold yet.

    Args:
        cells: what to run, in this order.
        answer: continues prompts; see `GreedyAnswerer`.
        tokenizer: of the model.
        output: folder of `results.jsonl` and `settings.json`.
        num_samples: per cell.
        settings: what decides an answer; a folder made under others, or with cells of other samples, is refused.
        batch_size: most prompts at once.
        batch_tokens: most prompt tokens at once; one prompt may have more.
        sample_folder: keeps the samples for the next time.
        progress: called with the tokens read, those of all cells, and the name of the cell.

    Returns:
        The records of the cells, old and new: task, length, index, prompt_tokens, depth, target, output,
        scores, seconds.
    """
    if num_samples < 1 or batch_size < 1:
        raise ValueError(f"num_samples is {num_samples} and batch_size {batch_size}; both must be at least 1")
    with ResultLog(output, settings, {cell.name: cell.settings for cell in cells}) as log:
        done = log.done()
        todo = {
            i: [n for n in range(num_samples) if (cell.task, cell.length, n) not in done]
            for i, cell in enumerate(cells)
        }
        read, total = 0, sum(max(1, cells[i].length) * len(left) for i, left in todo.items())

        def advance(cell: Cell, tokens: int) -> None:
            nonlocal read
            read += tokens
            if progress is not None:
                progress(read, total, f"{cell.task} at {cell.length:,} tokens")

        for i, cell in enumerate(cells):
            if not todo[i]:
                continue
            advance(cell, 0)
            cache = SampleCache(sample_folder, cell.name, cell.settings, cell.make, num_samples, cell.length)
            for batch in _batches(todo[i], cache, tokenizer, batch_size, batch_tokens):
                samples, prompts = zip(*batch, strict=True)
                log.add(_answer(cell, samples, prompts, answer, tokenizer, partial(advance, cell)))
        wanted = {(cell.task, cell.length) for cell in cells}
        kept = [r for r in log.records if (r["task"], r["length"]) in wanted and r["index"] < num_samples]
    return sorted(kept, key=lambda r: (r["task"], r["length"], r["index"]))


def _batches(
    indices: Sequence[int],
    cache: SampleCache,
    tokenizer: Any,
    batch_size: int,
    batch_tokens: int,
) -> Iterator[list[tuple[TaskSample, np.ndarray]]]:
    prefix = np.asarray(leading_special_tokens(tokenizer), dtype=np.int32)
    batch: list[tuple[TaskSample, np.ndarray]] = []
    for index in indices:
        sample = cache[index]
        prompt = np.concatenate([prefix, encode_long(tokenizer, sample.prompt)])
        width = max(len(ids) for _, ids in [*batch, (sample, prompt)])
        if batch and (len(batch) == batch_size or width * (len(batch) + 1) > batch_tokens):
            yield batch
            batch = []
        batch.append((sample, prompt))
    if batch:
        yield batch


def _answer(
    cell: Cell,
    samples: Sequence[TaskSample],
    prompts: Sequence[np.ndarray],
    answer: Answerer,
    tokenizer: Any,
    progress: Callable[[int], None],
) -> list[dict[str, Any]]:
    begun, read, nominal = time.perf_counter(), 0, max(1, cell.length) * len(samples)

    def advance(tokens: int) -> None:
        # The bar counts nominal tokens, so that it ends at its end whatever the model's tokenizer.
        nonlocal read
        before, total = read, sum(len(prompt) for prompt in prompts)
        read = min(total, read + tokens)
        progress(nominal * read // total - nominal * before // total)

    new = answer(prompts, advance)
    advance(sum(len(prompt) for prompt in prompts))
    seconds = (time.perf_counter() - begun) / len(samples)
    records = []
    for sample, prompt, ids in zip(samples, prompts, new, strict=True):
        output = tokenizer.decode(ids, skip_special_tokens=True)
        records.append(
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
        )
    return records
