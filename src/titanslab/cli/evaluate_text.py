"""`titans evaluate --data`: perplexity by position of one model or of several, in one table and one picture."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from titanslab.cli.options import output_folder


@dataclass(frozen=True)
class Measurement:
    """The values of the options of `titans evaluate --data`, under their names."""

    models: list[str]
    data: list[str]
    lengths: list[int]
    batch_size: int
    max_tokens: int
    whole_windows: bool
    text_column: str
    split: str


def measure(asked: Measurement, output: Path | None, device: str) -> None:
    """Measure every model on the text, print a table, and write JSON and PNG.

    Args:
        asked: the models, the text and how it is read. output: folder of the files; None = `MODEL/evaluation`.
        device: of the models.
    """
    from titanslab.data import open_corpus
    from titanslab.runs.loading import find_model_folder, open_model

    models = list(dict.fromkeys(asked.models))
    for model in models:
        find_model_folder(model)
    source = asked.data[0] if len(asked.data) == 1 else asked.data
    corpus = open_corpus(source, "--data", column=asked.text_column, split=asked.split, streaming=True)
    if output is None and len(models) > 1:
        raise ValueError(f"{len(models)} models are measured together; give --output FOLDER for their results")
    folder = output_folder(output or Path(models[0]) / "evaluation")
    if len(models) > 1:
        _check_limits(models, asked.lengths[-1])
    from rich.console import Console

    from titanslab.evaluation.perplexity import PerplexityResult, evaluate_perplexity
    from titanslab.evaluation.pictures import plot_positions
    from titanslab.evaluation.table import perplexity_table
    from titanslab.progress import bar

    numbers = folder / f"{_stem(asked.data)}.json"
    sizes: Any = {
        "batch_size": asked.batch_size, "max_tokens": asked.max_tokens, "whole_windows": asked.whole_windows,
    }  # fmt: skip
    results: dict[str, list[PerplexityResult]] = {}
    tokenizers = set()
    for name, model in zip(short_names(models), models, strict=True):
        network, tokenizer = open_model(model, device)
        tokenizers.add(_identity(tokenizer) if len(models) > 1 else "")
        results[name] = []
        for length in asked.lengths:
            title = f"context {length:,}" if len(models) == 1 else f"{name}, context {length:,}"
            with bar(title, "tokens") as show:
                texts = iter(corpus)
                found = evaluate_perplexity(network, tokenizer, texts, context_length=length, progress=show, **sizes)
            results[name].append(found)
        _write(numbers, asked, models, list(results.values()))
    lines = {
        f"context {r.context_length:,}" if len(models) == 1 else _label(name, r.context_length, asked.lengths): r
        for name, measured in results.items()
        for r in measured
    }
    picture = numbers.with_suffix(".png")
    about = models[0] if len(models) == 1 else f"{len(models)} models"
    plot_positions(lines, picture, f"{about} on {Path(asked.data[0]).name}", by_byte=len(tokenizers) > 1)
    console = Console()
    names = [name for name, measured in results.items() for _ in measured] if len(models) > 1 else []
    console.print(perplexity_table([r for measured in results.values() for r in measured], names))
    if len(tokenizers) > 1:
        console.print("The tokenizers differ: compare bits/byte; perplexity and bits/token are of different tokens.")
    console.print(f"{numbers}\n{picture}", highlight=False, soft_wrap=True)


def short_names(models: list[str]) -> list[str]:
    """The last part of each model's name, or as many parts as tell the models apart."""
    parts = [Path(model).absolute().parts for model in models]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(one[-count:]) for one in parts]
        if len(set(names)) == len(models):
            return names
    return models


def _label(name: str, length: int, lengths: list[int]) -> str:
    return name if len(lengths) == 1 else f"{name}, context {length:,}"


def _check_limits(models: list[str], length: int) -> None:
    """ValueError for a model that reads less than `length` tokens, before the first one is measured."""
    from titanslab.runs.bases import is_graft
    from titanslab.runs.loading import find_model_folder, load_config

    for model in models:
        if is_graft(find_model_folder(model)):  # its window may move on; the measurement checks it
            continue
        most = getattr(load_config(model), "max_position_embeddings", None)
        if isinstance(most, int) and length > most:
            raise ValueError(f"--context-length is {length}, but {model} reads at most {most} tokens; give less")


def _identity(tokenizer: Any) -> str:
    from titanslab.data.encode import tokenizer_identity

    return tokenizer_identity(tokenizer)


def _stem(data: list[str]) -> str:
    """The name of the files about these texts, without its ending."""
    first = re.sub(r"[^A-Za-z0-9-]+", "-", Path(data[0]).name.split(".")[0]).strip("-") or "data"
    return f"perplexity-{first}" + (f"-and-{len(data) - 1}-more" if len(data) > 1 else "")


def _write(path: Path, asked: Measurement, models: list[str], results: list[Any]) -> None:
    """Write the JSON of the models measured so far; a single model's results have no list of models around them."""
    from titanslab.files import write_whole
    from titanslab.runs.versions import versions

    measured = [
        {"model": model, "results": [asdict(one) for one in found]}
        for model, found in zip(models, results, strict=False)
    ]
    own: dict[str, Any] = measured[0] if len(models) == 1 else {"models": measured}
    content = {**own, "data": asked.data, "whole_windows": asked.whole_windows, "versions": versions()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(content, indent=1) + "\n")
