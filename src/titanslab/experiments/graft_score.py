"""The score "graft" of a study: the controls of a graft in numbers, and facts recalled."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from titanslab.training.settings import build_settings

if TYPE_CHECKING:
    from titanslab.evaluation.graft.controls import Controls
    from titanslab.experiments.sections import Score

BACKGROUND = 2_000_000  # characters of the texts, between whose clauses facts stand


@dataclass
class Options:
    """`score.options`.

    Args:
        documents, tokens: documents that are measured, the longest ones, and tokens of each.
        first: tokens of context before the first token that counts in the means.
        full_context: tokens to which full context is measured; None = the base's positions.
        facts, fact_samples: distances in tokens at which facts are asked, and questions at each.
    """

    documents: int = 8
    tokens: int = 8192
    first: int = 1024
    full_context: int | None = None
    facts: list[int] = field(default_factory=list)
    fact_samples: int = 20


def measure(run: Path, score: Score, device: str) -> dict[str, Any]:
    """The values of a graft, all losses in nats per token, means over the tokens from `first` on.

    "on", "off", "other", "window", "full": the loss in each condition of the controls. "closed": the share of the way
    from window alone to full context that the model goes, over tokens with both. "facts N": percent of facts recalled
    N tokens later, "facts N off" with the memories off. "positions": the loss by position and condition. None where
    there is no such value, as for another document's memory of a graft without memories.
    """
    from titanslab.data import open_corpus
    from titanslab.evaluation.graft.controls import CONDITIONS, measure_controls
    from titanslab.evaluation.graft.documents import longest_documents
    from titanslab.evaluation.graft.facts import facts_recalled
    from titanslab.evaluation.graft.verdict import gains, verdict
    from titanslab.runs.loading import open_model
    from titanslab.tasks.recall.samples import RecallTask

    options = build_settings(Options, score.options, "score.options", "study")
    texts = [score.data] if isinstance(score.data, str) else score.data or []
    model, tokenizer = open_model(run, device)
    corpus = open_corpus(texts, "score.data", streaming=True)
    rows = longest_documents(corpus, tokenizer, options.documents, options.tokens)
    controls = measure_controls(model, rows, full_context=options.full_context)
    found: dict[str, Any] = {"options": asdict(options), "documents": len(rows)}
    found |= _means(controls, options.first) | {"verdict": verdict(controls), "gains": gains(controls)}
    if options.facts:
        background = "\n".join(open_corpus(texts, "score.data", streaming=True).beginnings(BACKGROUND))
        task = RecallTask(tokenizer, background)
        recalled = facts_recalled(model, task, options.facts, samples=options.fact_samples)
        for condition, shares in zip(("", " off"), recalled.values(), strict=False):
            found |= {f"facts {distance}{condition}": 100 * share for distance, share in shares.items()}
    positions = {name: controls.positions(name) for name in CONDITIONS if name in controls.losses}
    found["positions"] = {name: [vars(bucket) for bucket in buckets] for name, buckets in positions.items()}
    return found


def _means(controls: Controls, first: int) -> dict[str, float | None]:
    """The mean losses from position `first` on; those of the first half where the documents are shorter."""
    from titanslab.evaluation.graft.controls import FULL, OFF, ON, OTHER, WINDOW

    names = {"on": ON, "off": OFF, "other": OTHER, "window": WINDOW, "full": FULL}
    start = min(first, controls.losses[ON].shape[1] // 2)
    losses = {name: controls.losses[key][:, start:] for name, key in names.items() if key in controls.losses}
    found: dict[str, float | None] = dict.fromkeys((*names, "closed"))
    found |= {name: float(np.nanmean(values)) for name, values in losses.items() if np.isfinite(values).any()}
    if found["full"] is not None:
        both = np.isfinite(losses["full"])
        room = float((losses["window"] - losses["full"])[both].mean())
        found["closed"] = float((losses["window"] - losses["on"])[both].mean()) / room if room > 0 else None
    return found
