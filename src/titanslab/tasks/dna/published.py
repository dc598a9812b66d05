"""Published accuracies on GenomicBenchmarks, in percent; figures of different protocols are not comparable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from titanslab.tasks.dna.sets import SETS

# The columns of the tables below, by the names of the sets.
COLUMNS = (
    "human_enhancers_cohn",
    "human_enhancers_ensembl",
    "human_ensembl_regulatory",
    "human_nontata_promoters",
    "human_ocr_ensembl",
)


@dataclass(frozen=True)
class Protocol:
    """How a table's figures were made.

    Args:
        about: selection and repetition. rows: model -> accuracies in the order of `COLUMNS`, None where none is given.
        source: of the figures.
    """

    about: str
    source: str
    rows: dict[str, tuple[float | None, ...]]


PROTOCOLS = {
    "caduceus": Protocol(
        "90/10 split of training by seed, early stopping on the validation part, 10 epochs, mean of 5 seeds",
        "Caduceus, arXiv 2403.03234, table of GenomicBenchmarks",
        {
            "CNN": (70.2, 74.4, 87.2, 86.1, 69.8),
            "HyenaDNA": (72.9, 84.9, 86.9, 94.4, 78.3),
            "Mamba": (73.2, 86.2, 81.4, 93.3, 81.5),
            "Caduceus-Ph": (74.7, 89.3, 87.2, 94.6, 82.8),
            "Caduceus-PS": (74.5, 90.0, 87.3, 94.5, 81.8),
        },
    ),
    "hyenadna": Protocol(
        "up to 100 epochs, the best epoch is chosen on the test part itself",
        "Titans, arXiv 2501.00663, DNA table, whose baselines are those of HyenaDNA and Based",
        {
            "CNN": (69.5, 68.9, 93.3, 84.6, 68.0),
            "DNABERT": (74.0, 85.7, 88.1, 85.6, 75.1),
            "GPT": (70.5, 83.5, 91.5, 87.7, 73.0),
            "HyenaDNA": (74.2, 89.2, 93.8, 96.6, 80.9),
            "Transformer++": (73.4, 89.5, 89.9, 94.4, 79.5),
            "Mamba": (73.0, None, None, 96.6, None),
            "Based": (74.6, 89.5, 89.5, 96.8, 79.0),
            "Neural memory (Titans)": (75.2, 89.6, 89.3, 96.6, 79.9),
        },
    ),
}
NOT_COMPARABLE = "The protocols differ in the part on which a model is selected, so their figures are not comparable."


def published_rows(name: str) -> list[dict[str, Any]]:
    """The published accuracies of one set: protocol, model and accuracy in percent. ValueError for an unknown set."""
    if name not in COLUMNS:
        raise ValueError(f"set is {name!r}; published figures are of {', '.join(SETS)}")
    place = COLUMNS.index(name)
    return [
        {"protocol": protocol, "model": model, "accuracy": figures[place]}
        for protocol, table in PROTOCOLS.items()
        for model, figures in table.rows.items()
        if figures[place] is not None
    ]
