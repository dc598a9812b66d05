"""Training steps of a model on a CPU with numbers below 1e-38 kept, as torch does, and counted as 0, in turns.

    python -m benchmarks.denormals --model RUN --data text.txt

Attention that has learned to look at few tokens gives the others weights below 1e-38, and a CPU takes far longer
for one of these denormal numbers than for another. `titans train` counts them as 0.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.output import new_report, settings_of, table
from titanslab.data import open_corpus
from titanslab.runs.loading import open_model


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a trained language model or its run")
    parser.add_argument("--data", required=True, help="text, from whose beginning a batch is made")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=2048, help="of a row")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each way")
    parser.add_argument("--out", type=Path, help="JSON file; default: a new one in benchmarks/results")
    given = parser.parse_args(arguments)
    report = new_report("denormals", 0, torch.device("cpu"), settings_of(given, "model", "data"), given.out)
    model, tokenizer = open_model(given.model, "cpu")
    model.train()
    size = given.rows * given.tokens
    ids: list[int] = []
    for text in open_corpus(given.data, "--data", streaming=True):
        ids += tokenizer(text[: 8 * size])["input_ids"]
        if len(ids) >= size:
            break
    if len(ids) < size:
        raise SystemExit(f"--data has {len(ids):,} tokens; {size:,} are needed")
    batch = torch.tensor(ids[:size]).view(given.rows, given.tokens)
    seconds: dict[str, list[float]] = {"kept": [], "counted as 0": []}
    for turn in range(given.repeats + 1):
        for name, flushed in (("kept", False), ("counted as 0", True)):
            torch.set_flush_denormal(flushed)
            begun = time.perf_counter()
            model.zero_grad()
            model(input_ids=batch, labels=batch).loss.backward()
            if turn:  # the first turn warms up
                seconds[name].append(time.perf_counter() - begun)
    ratios = [kept / zero for kept, zero in zip(*seconds.values(), strict=True)]
    report.add({"seconds": seconds, "ratios": ratios, "median_ratio": statistics.median(ratios)})
    rows = [[name, *(f"{value:.3f}" for value in values)] for name, values in seconds.items()]
    print(table(["denormal numbers", *(f"turn {n}" for n in range(1, given.repeats + 1))], rows))
    print(f"{statistics.median(ratios):.2f} times as long with them")
    report.finish()


if __name__ == "__main__":
    main()
