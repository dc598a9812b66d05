"""Task samples as training rows: mixed lengths, labels on answers alone, every row a function of its number."""

import math
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from titanslab.data import padding_id
from titanslab.data.packing import IGNORED, padded
from titanslab.tasks.sample import derive_seed
from titanslab.tasks.table import TASKS


class Mixture:
    """Rows `{input_ids, labels}` of at most `sequence_length` tokens; row i is a pure function of (`seed`, i).

    Args:
        name: a task of the table that has training rows, such as `niah`.
        tokenizer: encodes to ids; a task without text uses its padding id alone.
        sequence_length: tokens per row; short samples are filled up on the right with padding and labels of -100.
        min_length: length of the shortest sample; default `sequence_length`. Lengths are drawn evenly on a
            logarithmic scale.
        curriculum_rows: number of rows over which the longest sample grows from `min_length` to `sequence_length`.
        later_min_length: length of the shortest sample after the curriculum; default `min_length`.
        pack: put several samples in a row, separated by `document_ids`.
        same_length_rows: N > 0 draws one length for rows N*i to N*i + N - 1 and gives these rows that length, so that
            a batch of N rows is not padded to `sequence_length`.
        options: of the task's `rows` function.
    """

    def __init__(
        self,
        name: str,
        tokenizer: Any,
        sequence_length: int,
        seed: int,
        *,
        min_length: int | None = None,
        curriculum_rows: int = 0,
        later_min_length: int | None = None,
        pack: bool = False,
        same_length_rows: int = 0,
        **options: Any,
    ):
        makers = {task.name: task.rows for task in TASKS.values() if task.rows is not None}
        if name not in makers:
            raise ValueError(f"name is {name!r}; it must be one of {', '.join(makers)}")
        self.sequence_length, self.seed, self.name = sequence_length, seed, name
        self.min_length = sequence_length if min_length is None else min_length
        if not 0 < self.min_length <= sequence_length:
            raise ValueError(f"min_length is {min_length}; it must be 1 to sequence_length, {sequence_length}")
        if same_length_rows < 0:
            raise ValueError(f"same_length_rows is {same_length_rows}; it must be 0 (off) or the rows of a batch")
        if same_length_rows and pack:
            raise ValueError("same_length_rows makes short rows and pack fills rows up; choose one of the two")
        self.curriculum_rows, self.pack, self.same_length_rows = curriculum_rows, pack, same_length_rows
        self.later_min_length = self.min_length if later_min_length is None else later_min_length
        if not self.min_length <= self.later_min_length <= sequence_length:
            raise ValueError(
                f"later_min_length is {later_min_length}; it must be min_length to sequence_length, "
                f"{self.min_length} to {sequence_length}"
            )
        self.pad = padding_id(tokenizer)
        self._make = makers[name](tokenizer, **options)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Row `index`: int64 tensors `[T]` with T = `sequence_length`, or the drawn length with `same_length_rows`.

        A task with hints adds `block_targets [T, blocks]`; see `TitansForCausalLM.forward`.
        """
        ids, labels, documents = list[int](), list[int](), list[int]()
        hints = list[tuple[int, int, int]]()
        first = index - index % self.same_length_rows if self.same_length_rows else index
        rng = random.Random(derive_seed("mixture", self.name, self.seed, first))
        full, blocks = self.sequence_length, 0
        while not ids or (self.pack and self.sequence_length - len(ids) >= self.min_length):
            length = self._length(rng, first, self.sequence_length - len(ids))
            full = length if self.same_length_rows else full
            more = self._make(length, derive_seed(self.seed, index, len(ids)))
            hints += [(len(ids) + at, block, label) for at, block, label in more.hints]
            blocks = more.hinted_blocks
            ids += more.ids
            labels += more.labels
            documents += [documents[-1] + 1 if documents else 0] * len(more.ids)
        row = {"input_ids": np.array(ids), "labels": np.array(labels)}
        if blocks:
            row["block_targets"] = np.full((len(ids), blocks), IGNORED)
            for at, block, label in hints:
                row["block_targets"][at, block] = label
        if self.pack:
            row["document_ids"] = np.array(documents)
        return {name: torch.from_numpy(values) for name, values in padded(row, full, self.pad).items()}

    def _length(self, rng: random.Random, index: int, room: int) -> int:
        shortest, longest = self.later_min_length, self.sequence_length
        if index < self.curriculum_rows:
            share, shortest = index / self.curriculum_rows, self.min_length
            longest = round(shortest * (longest / shortest) ** share)
        longest = min(longest, room)
        if longest <= shortest:
            return longest
        low, high = math.log(shortest), math.log(longest)
        return min(longest, round(math.exp(low + (high - low) * rng.random())))
