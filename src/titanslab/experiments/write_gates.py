"""Measures a trained model's mean write gates by the kind of text, and the half-lives of its memories.

    python -m titanslab.experiments.write_gates --text essays.txt --length 2k --samples 8 RUN [RUN ...]
    python -m titanslab.experiments.write_gates --text books.txt --facts babi/ --length 8k RUN [RUN ...]

A gate is the sigmoid of theta's projection; 1 is a write at the stability limit. Gates are averaged over the
background, and over the needle and its value (S-NIAH) or the facts (BABILong, with --facts). A half-life in tokens is
computed from alpha, averaged over the whole text; the shortest one of a memory's heads and layers is printed. The
output has one line for each model, task and memory.
"""

import argparse
import math
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from titanslab.data.text import iter_texts
from titanslab.evaluation.trace import memories_of
from titanslab.experiments.report import Report
from titanslab.tasks.babilong.samples import BABILong
from titanslab.tasks.niah.samples import NIAH, VARIANTS
from titanslab.tasks.sample import derive_seed, parse_length

TASKS = ("qa1", "qa2", "qa3", "qa4", "qa5")
Places = dict[str, list[tuple[int, int]]]  # name -> ranges of characters


def gates_of(model: Any, ids: list[int]) -> tuple[list[Tensor], list[Tensor]]:
    """For each memory: gate `[T]`, mean over heads and layers; -log(1 - alpha) `[H, 1 or L]`, mean over tokens."""
    memories_of(model)  # raises for a model without a memory
    output = model.model(input_ids=torch.tensor([ids]), use_cache=False, output_memory_stats=True)
    blocks = [block for block in output.memory_stats if block]
    gates = [block["write"].mean((0, 2, 3)) for block in blocks]
    return gates, [-torch.log1p(-block["alpha"][0].double()).mean(0) for block in blocks]


def niah_texts(task: NIAH, length: int, samples: int, seed: int) -> Iterator[tuple[str, Places]]:
    """Yields prompts with the places of the haystack, the needle and its value."""
    for index in range(samples):
        sample = task.sample(length, index, seed=seed)
        value = sample.prompt.index(sample.target)
        start = sample.prompt.rindex("One of the special magic", 0, value)
        end = value + len(sample.target)
        question = sample.prompt.rindex("\nWhat is the special magic")
        hay = [(200, start), (end, question)]  # the instruction has fewer than 200 characters
        yield sample.prompt, {"background": hay, "needle": [(start, value)], "value": [(value, end)]}


def babilong_texts(task: BABILong, length: int, samples: int, seed: int) -> Iterator[tuple[str, Places]]:
    """Yields prompts with the places of the facts and the background."""
    rng = random.Random(derive_seed("write gates", task.name, seed))
    for _ in range(samples):
        question = task.draw(rng)
        pieces, places = task.context(question, length, rng)
        found: Places = {"background": [], "facts": []}
        at, facts = 0, set(places)
        for i, piece in enumerate(pieces):
            found["facts" if i in facts else "background"].append((at, at + len(piece)))
            at += len(piece) + 1
        yield " ".join([*pieces, question.question]), found


def measure(model: Any, tokenizer: Any, texts: Iterator[tuple[str, Places]]) -> list[dict[str, Any]]:
    """The mean gates and half-lives of each memory.

    Args:
        model: a model in eval mode.
        tokenizer: the model's tokenizer, which must return offsets.
        texts: prompts with their places.

    Returns:
        One dictionary per memory: for each place, the mean gate over all texts; `background_sum`, the sum of the gates
        over the background of one text; `half_lives` in tokens, a list over layers for each head; `half_life`, the
        shortest of them. None stands for no forgetting.
    """
    sums: list[dict[str, list[float]]] = []
    decays: list[list[Tensor]] = []
    count = 0
    for text, places in texts:
        count += 1
        encoded = tokenizer(text, return_offsets_mapping=True)
        offsets = torch.tensor(encoded["offset_mapping"])
        # A word's token may include the space before the word, which belongs to no place.
        offsets[:, 0] += torch.tensor([high - low > 1 and text[low] == " " for low, high in offsets.tolist()])
        each, decay = gates_of(model, encoded["input_ids"])
        decays.append(decay)
        for memory, gates in enumerate(each):
            if len(sums) <= memory:
                sums.append({name: [] for name in places})
            for name, spans in places.items():
                for low, high in spans:
                    inside = (offsets[:, 0] >= low) & (offsets[:, 1] <= high) & (offsets[:, 1] > offsets[:, 0])
                    sums[memory][name] += gates[inside].tolist()
    means = [{name: sum(v) / max(1, len(v)) for name, v in row.items()} for row in sums]
    rows: list[dict[str, Any]] = []
    for mean, row, own in zip(means, sums, zip(*decays, strict=True), strict=True):
        lives = [[math.log(2) / d if d > 0 else None for d in head] for head in (sum(own) / count).tolist()]
        shortest = min((life for head in lives for life in head if life is not None), default=None)
        rows.append(
            {**mean, "background_sum": sum(row["background"]) / count, "half_life": shortest, "half_lives": lives}
        )
    return rows


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m titanslab.experiments.write_gates",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("models", nargs="+", help="trained runs, or model folders, with a neural memory")
    parser.add_argument("--text", required=True, help="text of the haystack (single_2, single_3) or of the background")
    parser.add_argument("--facts", help="folder of bAbI; measures BABILong in place of S-NIAH")
    parser.add_argument("--length", default="2k", help="tokens per sample; default: 2k")
    parser.add_argument("--samples", type=int, default=8, help="samples per variant; default: 8")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--output", type=Path, help="path of a JSON file for the results")
    options = parser.parse_args(words)
    for name in ("text", "facts"):
        if getattr(options, name) and not Path(getattr(options, name)).exists():
            parser.error(f"--{name} {getattr(options, name)!r} does not exist; name a file or folder")
    try:
        length = parse_length(options.length)
    except ValueError as error:
        parser.error(f"--length: {error}")
    from titanslab.runs.loading import prepare_process

    prepare_process()
    from titanslab.data.encode import TokenCounter
    from titanslab.runs.loading import load_model, load_model_tokenizer
    from titanslab.tasks.babilong.background import Background

    settings = {name: value for name, value in vars(options).items() if name != "output"}
    results = []
    texts = list(iter_texts(options.text))
    for path in options.models:
        model: Any = load_model(Path(path))
        tokenizer: Any = load_model_tokenizer(Path(path))
        model, counter = model.eval(), TokenCounter(tokenizer)
        books = Background(texts, counter) if options.facts else None
        for name in TASKS if options.facts else VARIANTS:
            task: Any
            if options.facts:
                task = BABILong(name, options.facts, counter, background=books)
                made = babilong_texts(task, length, options.samples, options.seed)
            else:
                task = NIAH(name, counter, haystack=None if name == "single_1" else texts)
                made = niah_texts(task, length, options.samples, options.seed)
            with torch.inference_mode():
                rows = measure(model, tokenizer, made)
            for block, row in enumerate(rows):
                results.append({"model": path, "task": name, "block": block, **row})
                life = row["half_life"]
                numbers = "  ".join(f"{place} {row[place]:.4f}" for place in row if not place.startswith("half"))
                numbers += "  no forgetting" if life is None else f"  half-life {life:,.0f}"
                print(f"{path[-40:]:40} {name:9} block {block}  {numbers}")
    if options.output is not None:
        report = Report("write_gates", options.seed, torch.device("cpu"), settings, options.output)
        report.content["results"] = results
        report.finish()
    return 0


if __name__ == "__main__":
    sys.exit(main())
