"""Scores of a classifier: accuracy, Matthews correlation, area under the ROC curve; by scikit-learn."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

NAMES = ("accuracy", "mcc", "roc_auc")


def classification_scores(targets: np.ndarray, probabilities: np.ndarray) -> dict[str, float | None]:
    """The scores of `NAMES`.

    Args:
        targets: int `[N]`, the number of the right class. probabilities: float `[N, C]`, rows sum to 1.

    Returns:
        For more than two classes `roc_auc` is the mean over classes against the rest. It is None where the targets
        lack a class, and `mcc` where they have one class alone: they are not defined there.

    Raises:
        ValueError: the shapes do not fit, or a probability is not finite. ImportError: scikit-learn is not there.
    """
    try:
        from sklearn.metrics import accuracy_score, matthews_corrcoef, roc_auc_score
    except ImportError:
        raise ImportError(
            "scores of a classifier need a package: pip install 'titans-lab[dna]' (scikit-learn)"
        ) from None
    targets, probabilities = np.asarray(targets), np.asarray(probabilities, np.float64)
    if probabilities.ndim != 2 or targets.shape != probabilities.shape[:1] or not len(targets):
        raise ValueError(
            f"targets and probabilities must have shapes [N] and [N, C], got {list(targets.shape)} and "
            f"{list(probabilities.shape)}"
        )
    if not np.isfinite(probabilities).all():
        raise ValueError("probabilities hold values that are not finite; did the training diverge?")
    classes = probabilities.shape[1]
    guesses = probabilities.argmax(1)
    kinds, area = len(np.unique(targets)), None
    if kinds == classes:
        two = classes == 2
        given = probabilities[:, 1] if two else probabilities / probabilities.sum(1, keepdims=True)
        area = float(roc_auc_score(targets, given, **({} if two else {"multi_class": "ovr", "labels": range(classes)})))
    return {
        "accuracy": float(accuracy_score(targets, guesses)),
        "mcc": float(matthews_corrcoef(targets, guesses)) if kinds > 1 else None,
        "roc_auc": area,
    }


def mean_and_spread(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float | int]]:
    """For each score that every run has: its mean, and the sample standard deviation over the runs (0 for one)."""
    found = {}
    for name in NAMES:
        values = [run[name] for run in runs if run.get(name) is not None]
        if values and len(values) == len(runs):
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            found[name] = {"mean": statistics.fmean(values), "spread": spread, "runs": len(values)}
    return found
