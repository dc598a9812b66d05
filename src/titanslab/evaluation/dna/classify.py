"""A classifier against labelled sequences: probabilities, predictions in a file from which scores follow, a summary."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from titanslab.data import TextEncoder, padding_id
from titanslab.data.dna.dataset import SequenceCollator, SequenceDataset
from titanslab.data.dna.labelled import LabelledSequences
from titanslab.documents import read_json
from titanslab.files import write_whole
from titanslab.runs.sequences import SequenceFacts
from titanslab.tasks.dna.scores import classification_scores, mean_and_spread

PREDICTIONS, SUMMARY = "predictions.tsv", "summary.json"


@torch.inference_mode()
def predict(
    model: Any,
    tokenizer: Any,
    data: LabelledSequences,
    facts: SequenceFacts,
    *,
    rc: bool = False,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """The probabilities of the classes, float64 `[N, C]`, in the order of the sequences.

    Args:
        model: a classifier of sequences. tokenizer: its own. facts: of its run.
        rc: the mean of the probabilities of a sequence and of its reverse complement.
        batch_size: sequences at a time. progress: called with the sequences done and all.

    Raises:
        ValueError: a label is not one of the model's.
    """
    encode, collate = TextEncoder(tokenizer).encode, SequenceCollator(padding_id(tokenizer))
    model.eval()
    total: np.ndarray | None = None
    strands = (False, True) if rc else (False,)
    for turn, turned in enumerate(strands):
        items = SequenceDataset(data, encode, facts.labels, max_length=facts.max_length, rc=turned)
        found = []
        done = turn * len(items)
        for batch in DataLoader(items, batch_size, collate_fn=collate):
            inputs = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
            found.append(model(**inputs).logits.double().softmax(-1).cpu().numpy())
            done += len(batch["labels"])
            if progress is not None:
                progress(done, len(strands) * len(items))
        one = np.concatenate(found)
        total = one if total is None else total + one
    assert total is not None
    return total / len(strands)


def evaluate_classifier(data: LabelledSequences, probabilities: np.ndarray, labels: Sequence[str]) -> dict[str, Any]:
    """The scores of `classification_scores`, the number of sequences, and the confusion of the classes.

    `confusion[right][guess]` counts the sequences of a right label with a guess.
    """
    number = {label: i for i, label in enumerate(labels)}
    targets = np.array([number[label] for label in data.labels])
    table = np.zeros((len(labels), len(labels)), int)
    np.add.at(table, (targets, probabilities.argmax(1)), 1)
    return {
        "sequences": len(data),
        **classification_scores(targets, probabilities),
        "confusion": {a: dict(zip(labels, map(int, row), strict=True)) for a, row in zip(labels, table, strict=True)},
    }


def write_results(
    folder: Path, data: LabelledSequences, probabilities: np.ndarray, facts: SequenceFacts, about: Mapping[str, Any]
) -> dict[str, Any]:
    """Write predictions.tsv and summary.json into `folder`, which is made; returns the contents of the summary.

    A row of the predictions has the sequence's name, its label, the guess and the probability of each class, from
    which all scores follow.
    """
    text = io.StringIO()
    rows = csv.writer(text, delimiter="\t", lineterminator="\n")
    rows.writerow(["name", "label", "prediction", *(f"p_{label}" for label in facts.labels)])
    guesses = probabilities.argmax(1)
    for name, label, guess, row in zip(data.names, data.labels, guesses, probabilities, strict=True):
        rows.writerow([name, label, facts.labels[guess], *(f"{p:.9g}" for p in row)])
    summary = {**about, **evaluate_classifier(data, probabilities, facts.labels)}
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / PREDICTIONS, text.getvalue())
    write_whole(folder / SUMMARY, json.dumps(summary, indent=1) + "\n")
    return summary


def summarise_runs(folders: Sequence[Path]) -> dict[str, Any]:
    """Mean and spread of the scores in the summary.json of several seeds' runs; see `mean_and_spread`.

    Raises:
        FileNotFoundError, ValueError: a folder has no summary, or one of another data set.
    """
    summaries = []
    for folder in folders:
        if not (folder / SUMMARY).is_file():
            raise FileNotFoundError(f"{str(folder)!r} holds no {SUMMARY}; run titans evaluate dna first")
        summaries.append(read_json(folder / SUMMARY, dict[str, Any]))
    kinds = {(s.get("data"), s.get("sequences"), s.get("rc")) for s in summaries}
    if len(kinds) != 1:
        raise ValueError(f"the runs are of {len(kinds)} different data sets or ways to evaluate; give those of one")
    return {"runs": [str(folder) for folder in folders], **mean_and_spread(summaries)}
