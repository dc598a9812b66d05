"""Where a model writes: its mean write gate on the haystack, on the needle and on the needle's value.

    python -m benchmarks.write_gates --haystack essays.txt --length 2k --samples 8 RUN [RUN ...]

A gate is the sigmoid of theta's projection: 1 is a write at the stability limit. One row a model, variant and memory.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.report import Report
from titanslab.evaluation.trace import memories_of
from titanslab.memory import counting_writes
from titanslab.tasks.niah import NIAH, VARIANTS
from titanslab.tasks.sample import parse_length
from titanslab.tasks.sources import iter_texts


def gates_of(model: Any, ids: list[int]) -> list[Tensor]:
    """Mean gate over heads and layers `[T]` of each memory, first block first."""
    memories_of(model)  # an error where there is none
    cache = model.model(input_ids=torch.tensor([ids[:1]]), use_cache=True).past_key_values.reset()
    with counting_writes(model) as counted:
        model.model(input_ids=torch.tensor([ids]), past_key_values=cache, use_cache=True)
    # persistent tokens come first, where a memory reads them before the text
    return [torch.cat([w.mean((0, 2, 3)) for w in writes])[-len(ids) :] for writes in counted]


def measure(model: Any, tokenizer: Any, task: NIAH, length: int, samples: int, seed: int) -> list[dict[str, float]]:
    """For each memory the mean gate on haystack, needle sentence and value over all samples."""
    sums: list[dict[str, list[float]]] = []
    for index in range(samples):
        sample = task.sample(length, index, seed=seed)
        encoded = tokenizer(sample.prompt, return_offsets_mapping=True)
        value = sample.prompt.index(sample.target)
        start = sample.prompt.rindex("One of the special magic", 0, value)
        end = value + len(sample.target)
        question = sample.prompt.rindex("\nWhat is the special magic")
        places: dict[str, list[int]] = {"haystack": [], "needle": [], "value": []}
        for i, (low, high) in enumerate(encoded["offset_mapping"]):
            if value <= low and high <= end:
                places["value"].append(i)
            elif start <= low and high <= end:
                places["needle"].append(i)
            elif 200 < low < question:  # past the instruction
                places["haystack"].append(i)
        for memory, gates in enumerate(gates_of(model, encoded["input_ids"])):
            if len(sums) <= memory:
                sums.append({name: [] for name in places})
            for name, tokens in places.items():
                sums[memory][name] += gates[tokens].tolist()
    return [{name: sum(v) / max(1, len(v)) for name, v in row.items()} for row in sums]


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.write_gates",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("models", nargs="+", help="trained runs, or model folders, with a neural memory")
    parser.add_argument("--haystack", required=True, help="running text for single_2 and single_3")
    parser.add_argument("--length", default="2k", help="tokens of a sample; default: 2k")
    parser.add_argument("--samples", type=int, default=8, help="of each variant; default: 8")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--output", type=Path, help="the JSON; default: one in benchmarks/results")
    options = parser.parse_args(words)
    if not Path(options.haystack).exists():
        parser.error(f"--haystack {options.haystack!r} does not exist; name a file or folder of text")
    try:
        length = parse_length(options.length)
    except ValueError as error:
        parser.error(f"--length: {error}")
    from titanslab.cli.quiet import quiet_libraries

    quiet_libraries()
    from titanslab.tasks.tokens import TokenCounter
    from titanslab.training.loading import load_model, load_model_tokenizer

    settings = {name: value for name, value in vars(options).items() if name != "output"}
    report = Report("write_gates", options.seed, torch.device("cpu"), settings, path=options.output)
    texts = list(iter_texts(options.haystack))
    print(f"{'model':40} {'variant':9} {'block':>5} {'haystack':>9} {'needle':>7} {'value':>6}")
    for path in options.models:
        model: Any = load_model(Path(path))
        tokenizer: Any = load_model_tokenizer(Path(path))
        model = model.eval()
        for variant in VARIANTS:
            task = NIAH(variant, TokenCounter(tokenizer), haystack=None if variant == "single_1" else texts)
            with torch.inference_mode():
                rows = measure(model, tokenizer, task, length, options.samples, options.seed)
            for block, row in enumerate(rows):
                report.add({"model": path, "variant": variant, "block": block, **row})
                numbers = f"{row['haystack']:9.4f} {row['needle']:7.3f} {row['value']:6.3f}"
                print(f"{path[-40:]:40} {variant:9} {block:5} {numbers}")
    report.finish()
    return 0


if __name__ == "__main__":
    sys.exit(main())
