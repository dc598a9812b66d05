"""The states of a Titans model that go from one step of a run to the next."""

from pathlib import Path
from typing import Any, Protocol

import torch

from titanslab.data.documents import ALONE, ANEW, BEGINS
from titanslab.models.cache import CACHE, TitansCache
from titanslab.models.config import TitansConfig


class Carry(Protocol):
    """What the model has read goes on from batch to batch, without its graph: truncated backpropagation through time.

    A row that begins a document starts from M_0, and a batch of a task leaves the documents' states alone.
    """

    def enter(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The arguments of the model for a batch of `collate_documents`."""

    def leave(self) -> None:
        """The model has read the batch."""

    def save(self, path: Path) -> None:
        """Write the states, if there are any, for a resumed run; `path` ends in .safetensors."""

    def load(self, path: Path) -> None:
        """Read a file of `save`; where there is none, the next batch begins anew.

        Raises:
            ValueError: the file is damaged, or of another model.
        """


def check_carries(config: Any) -> None:
    """Raise ValueError unless the model of a config has a state of constant size that can go on."""
    if not isinstance(config, TitansConfig):
        raise ValueError(
            f"data.carry = true carries the states of a Titans model, and this is one of {config.model_type!r}; "
            "set data.carry = false"
        )
    if config.variant == "attention" and config.window_size is None:
        raise ValueError(
            'data.carry = true, and model.window_size = "all" would keep every token of a document; set '
            "model.window_size to a number of tokens, or data.carry = false"
        )


class TitansCarry:
    """`Carry` of a Titans model: memories, convolutions and windows go on."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.cache: TitansCache | None = None
        self._given: TitansCache | None = None

    def enter(self, batch: dict[str, Any]) -> dict[str, Any]:
        inputs = {name: value for name, value in batch.items() if name != BEGINS}
        begins = batch[BEGINS]
        self._given = None
        if bool((begins == ALONE).any()):
            return inputs | {"use_cache": False}
        anew = begins == ANEW
        cache = self.cache
        if cache is None or cache.document is None or bool(anew.all()):
            cache = TitansCache(self.model.config)
            cache.document = torch.zeros_like(begins)
        elif bool(anew.any()):  # another id is another document
            ids = cache.document + anew.to(cache.document)
            inputs["document_ids"] = ids[:, None].expand_as(inputs["input_ids"])
        self._given = cache
        return inputs | {CACHE: cache}

    def leave(self) -> None:
        if self._given is not None:
            self.cache, self._given = self._given.detach(), None

    def save(self, path: Path) -> None:
        if self.cache is not None:
            self.cache.save(path, self.model)

    def load(self, path: Path) -> None:
        self.cache = TitansCache.load(path, self.model) if path.exists() else None
