"""Bits per base of models trained on DNA, of their frozen memories, and of Markov models of orders 0 to 12.

    python -m benchmarks.genome --train train.fa --test region.fa lambda.fa --run lmm=RUN --run attention=RUN

Each run reads every test file twice: in windows of `--window` bases, each with a new memory; and as one stream, if the
model's cache has a constant size. A model with a memory streams once more with the memory frozen. A Markov model counts
the words of the training files, and an adaptive one those of the test file too, each base after it was scored. With
--both-strands both count the words of the reverse complement too.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.output import new_report, settings_of, table, transient
from titanslab.data.dna.alphabet import ids_of
from titanslab.data.dna.fasta import FastaPiece, read_fasta
from titanslab.evaluation.decode import is_recurrent
from titanslab.evaluation.dna.along import track_names, values_along
from titanslab.evaluation.dna.bins import Positions
from titanslab.models.config import TitansConfig
from titanslab.runs.loading import open_model
from titanslab.tasks.dna.markov import markov_bits

WAYS = ("windows", "stream", "frozen")


def measure(run: str, records: Sequence[tuple[str, str]], window: int) -> dict[str, Any]:
    """Bits per base of the model of a run, by the way in which it reads the records."""
    model, tokenizer = open_model(run, "cpu")
    config: Any = model.config
    memory = len(track_names(model)) > 1
    constant = is_recurrent(config) or memory or getattr(config, "window_size", None) is not None
    found: dict[str, Any] = {"windows": _bits(values_along(model, tokenizer, _windows(records, window)))}
    if constant:
        found["stream"] = _bits(values_along(model, tokenizer, _whole(records)))
    if memory:
        found["frozen"] = _bits(values_along(model, tokenizer, _whole(records), learn=False))
    found["parameters"] = sum(p.numel() for p in model.parameters())
    found["model"] = config.variant if isinstance(config, TitansConfig) else config.model_type
    return found


def _whole(records: Sequence[tuple[str, str]]) -> Iterator[FastaPiece]:
    for number, (title, bases) in enumerate(records, start=1):
        yield FastaPiece(number, title, 0, bases)


def _windows(records: Sequence[tuple[str, str]], size: int) -> Iterator[FastaPiece]:
    cut = [(title, bases[at : at + size]) for title, bases in records for at in range(0, len(bases), size)]
    return _whole(cut)


def _bits(stream: Any) -> dict[str, Any]:
    """Bits per base, and by the number of bases before in the same record or window."""
    positions, total, count = Positions(), 0.0, 0
    for part in stream:
        values = part.values["loss"]
        positions.add(part.start, values)
        total, count = total + float(np.nansum(values)), count + int(np.isfinite(values).sum())
        transient(f"{count:,} bases, {total / count:.4f} bits")
    return {"bits": total / count, "bases": count, "positions": positions.rows()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=Path, nargs="+", required=True, help="FASTA files of the Markov models")
    parser.add_argument("--test", type=Path, nargs="+", required=True, help="FASTA files to score, each by itself")
    parser.add_argument("--run", action="append", default=[], metavar="NAME=FOLDER", help="a trained model; repeatable")
    parser.add_argument("--window", type=int, default=8192, help="bases of a window")
    parser.add_argument("--orders", type=int, nargs="+", default=list(range(13)), help="orders of the Markov models")
    parser.add_argument("--both-strands", action="store_true", help="Markov models count the reverse complement too")
    parser.add_argument("--out", type=Path, help="JSON file; default: a new one in benchmarks/results")
    given = parser.parse_args(arguments)
    report = new_report("genome", 0, torch.device("cpu"), settings_of(given, "train", "test"), given.out)

    def ids(path: Path) -> list[np.ndarray]:
        return [ids_of(bases) for _, bases in read_fasta(path, str(path))]

    train = [row for path in given.train for row in ids(path)]
    rows = []
    for path in given.test:
        for adaptive in (False, True):
            ways = {"adaptive": adaptive, "both_strands": given.both_strands}
            for order, found in markov_bits(train, ids(path), given.orders, **ways).items():
                kind = "adaptive" if adaptive else "frozen"
                report.add({"test": path.name, "markov": order, "adaptive": adaptive, **found})
                rows.append([f"Markov, order {order}, {kind}", path.name, f"{found['bits']:.4f}"])
        records = list(read_fasta(path, str(path)))
        for run in given.run:
            name, _, folder = run.partition("=")
            found = measure(folder, records, given.window)
            report.add({"test": path.name, "run": name, **found})
            rows += [[f"{name}, {how}", path.name, f"{found[how]['bits']:.4f}"] for how in WAYS if how in found]
    print(table(["model", "test", "bits per base"], rows))
    report.finish()


if __name__ == "__main__":
    main()
