"""The facts of a run that trained a classifier of sequences, in a small file beside its model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from titanslab.documents import read_json
from titanslab.files import write_whole

FILE = "sequences.json"


class SequenceFacts(Struct, frozen=True):
    """Facts by which new sequences become inputs of the model.

    Args:
        labels: names of the classes, in the order of the model's outputs.
        max_length: bases after which a sequence is cut off.
        rc: whether the run selects and reports its models with reverse-complement averaging.
    """

    labels: Annotated[list[str], Meta(min_length=2)]
    max_length: Annotated[int, Meta(ge=1, lt=1 << 31)]
    rc: bool = False


def write_facts(folder: Path, facts: SequenceFacts) -> None:
    """Write the facts into the folder of a model, beside its tokenizer."""
    write_whole(folder / FILE, msgspec.json.format(msgspec.json.encode(facts)).decode() + "\n")


def read_facts(folder: Path) -> SequenceFacts:
    """The facts in the folder of a model, or for a checkpoint those of its run.

    Raises:
        ValueError: there are none, so that the model is no classifier of sequences, or they cannot be used.
    """
    places = (folder, folder.parent.parent)  # RUN/checkpoints/step-N
    found = next((place / FILE for place in places if (place / FILE).is_file()), None)
    if found is None:
        raise ValueError(
            f"model folder {str(folder)!r} holds no {FILE}, so it is no classifier of sequences; train one from a "
            "recipe with a section [sequences]"
        )
    return read_json(found, SequenceFacts, fix="copy the file again from its run")
