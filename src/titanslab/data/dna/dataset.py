"""Labelled sequences as a dataset for a classifier, and the batches of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from titanslab.data.dna.alphabet import reverse_complement
from titanslab.data.dna.labelled import LabelledSequences


class SequenceDataset(Dataset):
    """Items for a classifier: a dict of `input_ids` int64 `[T]`, `attention_mask` int64 `[T]` and `labels` int64 `[]`.

    Args:
        data: the sequences.
        encode: from texts to the ids of each, such as `TextEncoder(tokenizer).encode`.
        labels: the names of the classes, in the order of the model's outputs.
        max_length: bases after which a sequence is cut off.
        rc_augment: give the reverse complement of a sequence with probability 1/2, anew at every access, by torch's
            random numbers; it is for training alone.
        rc: give the reverse complement of every sequence.

    Attributes:
        cut: the number of sequences with more bases than `max_length`.

    Raises:
        ValueError: a sequence has a label that is not among `labels`.
    """

    def __init__(
        self,
        data: LabelledSequences,
        encode: Callable[[Sequence[str]], Sequence[Any]],
        labels: Sequence[str],
        *,
        max_length: int,
        rc_augment: bool = False,
        rc: bool = False,
    ) -> None:
        number = {label: i for i, label in enumerate(labels)}
        for label, name in zip(data.labels, data.names, strict=True):
            if label not in number:
                known = ", ".join(labels)
                raise ValueError(f"sequence {name!r} has the label {label!r}; the labels of the model are {known}")
        self.data, self.max_length, self.rc_augment, self.rc = data, max_length, rc_augment, rc
        self.encode = encode
        self.labels = [number[label] for label in data.labels]
        self.cut = sum(len(sequence) > max_length for sequence in data.sequences)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        letters = self.data.sequences[index][: self.max_length]
        if self.rc or (self.rc_augment and bool(torch.rand(()) < 0.5)):
            letters = reverse_complement(letters)
        ids = torch.from_numpy(self.encode([letters])[0].astype("int64"))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor(self.labels[index])}


@dataclass(frozen=True)
class SequenceCollator:
    """Makes a batch of a dataset's items: `input_ids` and `attention_mask` `[B, T]`, padded on the right, `labels [B]`.

    Right padding comes after every real token, so that a causal model never reads it. `pad_id` fills `input_ids`.
    """

    pad_id: int = 0

    def __call__(self, items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        def padded(name: str, value: int) -> Tensor:
            return pad_sequence([item[name] for item in items], batch_first=True, padding_value=value)

        return {
            "input_ids": padded("input_ids", self.pad_id),
            "attention_mask": padded("attention_mask", 0),
            "labels": torch.stack([item["labels"] for item in items]),
        }
