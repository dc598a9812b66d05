"""The states of a grafted model that go from one step of a run to the next."""

from pathlib import Path
from typing import Any

from titanslab.data.documents import ALONE, ANEW, BEGINS
from titanslab.graft import GraftCache, graft_of
from titanslab.graft.restart import restart
from titanslab.tensor_files import agrees, read_tensors, write_tensors

FORMAT, NOUN = "titans-carried-memories", "memory"
WAY_OUT = "delete that checkpoint to resume from the one before"


class GraftCarry:
    """Gives each batch the cache after the batch before, without its graph: truncated backpropagation through time.

    A row that begins a document starts from M_0, and a batch of a task leaves the documents' cache alone. Where the
    window of the base can move, its keys and values go on too; else attention begins anew with each piece.

    Args:
        model: with a graft.
        carries: False = every row begins anew.
    """

    def __init__(self, model: Any, carries: bool = True) -> None:
        self.graft, self.carries = graft_of(model), carries
        window = self.graft.window
        self.whole = window.size is not None and window.rotary is not None
        self.cache: GraftCache | None = None
        self._given: GraftCache | None = None

    def enter(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The arguments of the model for a batch of `collate_documents`."""
        inputs = {name: value for name, value in batch.items() if name != BEGINS}
        begins = batch[BEGINS]
        if not self.carries:
            return inputs | {"use_cache": False}
        alone = bool((begins == ALONE).any())
        fresh = alone or self.cache is None or bool((begins == ANEW).all())
        cache = self.graft.cache() if fresh or self.cache is None else restart(self.cache, begins == ANEW)
        self._given = None if alone else cache
        return inputs | {self.graft.decoder.cache_name: cache}

    def leave(self) -> None:
        """The model has read the batch."""
        if self._given is not None:
            cache = self._given if self.whole else self._given.memories_alone()
            self.cache, self._given = cache.detach(), None

    def save(self, path: Path) -> None:
        """Write the cache, if there is one, for a resumed run; `path` ends in .safetensors."""
        if self.cache is None:
            return
        if self.whole:
            self.cache.save(path)
        else:
            states = enumerate(self.cache.memories)
            tensors = {f"{i}.{name}": t for i, s in states if s is not None for name, t in s.tensors().items()}
            write_tensors(path, tensors, {"format": FORMAT}, NOUN)

    def load(self, path: Path) -> None:
        """Read a file of `save`; where there is none, the next batch begins anew.

        Raises:
            ValueError: the file is damaged, or of another model.
        """
        self.cache = None
        if not path.exists():
            return
        if self.whole:
            self.cache = GraftCache.load(path, self.graft.model)
            return
        metadata, tensors = read_tensors(path, NOUN, WAY_OUT)
        if metadata.get("format") != FORMAT or not agrees(metadata, tensors):
            raise ValueError(f"{path} holds no whole memories of a run; {WAY_OUT}")
        self.cache = self.graft.cache()
        device = next(self.graft.parameters()).device
        for i in range(len(self.cache.memories)):
            prefix = f"{i}."
            own = {n.removeprefix(prefix): t.to(device) for n, t in tensors.items() if n.startswith(prefix)}
            self.cache.memories[i] = self.graft.memories[i].state_of(own)
            self.cache.rows = next(iter(own.values())).shape[0]
