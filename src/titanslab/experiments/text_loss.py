"""The loss of a trained model of a study on its validation text, by position in the context."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from titanslab.experiments.record import read_record, write_record

if TYPE_CHECKING:
    from titanslab.evaluation.perplexity import PerplexityResult
    from titanslab.experiments.sections import Perplexity

RESULT = "perplexity.json"
SAMPLE = 20_000  # characters of the text in which tokens are counted


def measure(run: Path, settings: Perplexity, lengths: Sequence[int], device: str) -> list[PerplexityResult]:
    """The loss of the model of a run at each length. Every document of the text gives a part of the tokens."""
    from titanslab.evaluation.perplexity import evaluate_perplexity
    from titanslab.runs.loading import open_model

    model, tokenizer = open_model(run, device)
    sample = next(beginnings(settings.text, SAMPLE, 1, 1.0), "")
    size = len(sample) / max(1, len(tokenizer.encode(sample, add_special_tokens=False)))
    return [
        evaluate_perplexity(
            model,
            tokenizer,
            beginnings(settings.text, length, settings.max_tokens, size),
            context_length=length,
            batch_size=max(1, settings.batch_tokens // length),
            max_tokens=max(settings.max_tokens, length),
        )
        for length in lengths
    ]


def beginnings(sources: Sequence[str], length: int, tokens: int, size: float) -> Iterator[str]:
    """The beginning of each document, all of them together about `tokens` tokens of `size` characters.

    A beginning has a whole window of `length` tokens at least, where the document has it.
    """
    from titanslab.data import open_corpus

    corpus = open_corpus(list(sources), "perplexity.text", streaming=True)
    count = sum(1 for _ in corpus)
    most = round(max(1.1 * length, tokens / max(1, count)) * size)  # counts differ by document
    return (text[:most] for text in corpus)


def measure_once(run: Path, settings: Perplexity, lengths: Sequence[int], folder: Path, device: str) -> None:
    """`measure`, written to perplexity.json in `folder`; a file with the same settings is kept."""
    wanted = wanted_settings(settings, lengths)
    if read(folder).get("settings") == wanted:
        return
    results = measure(run, settings, lengths, device)
    content = {"settings": wanted, "results": [dataclasses.asdict(result) for result in results]}
    write_record(folder / RESULT, content)


def wanted_settings(settings: Perplexity, lengths: Sequence[int]) -> dict[str, Any]:
    """The settings on which the file perplexity.json depends."""
    return {"lengths": list(lengths), "max_tokens": settings.max_tokens, "text": settings.text}


def read(folder: Path) -> dict[str, Any]:
    """The content of perplexity.json; empty without that file."""
    return read_record(folder / RESULT)
