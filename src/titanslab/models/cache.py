"""`TitansCache`: what a model remembers between calls; saved, loaded, forked and reordered as a whole."""

import os
import weakref
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from titanslab.models.cache_file import (
    CacheHeader,
    config_identity,
    differences,
    read_file,
    read_header,
    weights_fingerprint,
    write_file,
)
from titanslab.models.config import TitansConfig
from titanslab.models.state import MixerState


class TitansCache(Cache):
    """States of all blocks after some tokens; a model's `past_key_values`.

    Memory, convolution tails and attention windows take the same bytes after 100 tokens as after 100,000;
    only the full attention of variant "attention" grows. The tensors are never written in place, so `fork()`
    copies nothing.

    `learn` and `write_scale` may be set at any time and hold for every token the model then reads or generates:
    `cache.learn = False` freezes the memories, `cache.write_scale = 0.5` halves each theta.

    Args:
        config: of the model it belongs to.
    """

    is_compileable = False
    is_croppable = False
    is_initialized = False

    def __init__(self, config: TitansConfig) -> None:
        super().__init__(layers=[])
        self.config = config
        self.learn = True
        self.write_scale = 1.0
        self._writer: weakref.ref[nn.Module] | None = None  # the model that filled it
        self._fingerprint = ""  # of the model that filled it, as read from a file and not compared yet
        self.reset()

    def reset(self) -> None:
        """Forget everything: the next token starts a document, from the learned M_0."""
        self.states: list[MixerState | None] = [None] * self.config.num_hidden_layers
        self.position: Tensor | None = None  # int64 [B], tokens of the running document
        self.document: Tensor | None = None  # int64 [B], its id where ids were given
        self.columns = 0  # tokens fed, padding included

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_writer": None, "_fingerprint": self._written_by(None)}

    def __repr__(self) -> str:
        return f"TitansCache({self.config.variant}, batch_size={self.batch_size}, seq_length={self.columns})"

    def __len__(self) -> int:
        return len(self.states)

    @property
    def batch_size(self) -> int:
        """Rows held, -1 while empty."""
        return -1 if self.position is None else self.position.shape[0]

    @property
    def is_sliding(self) -> list[bool]:
        return [False] * len(self)

    @property
    def is_linear(self) -> list[bool]:
        return [False] * len(self)

    @property
    def is_dummy(self) -> list[bool]:
        return [False] * len(self)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens fed so far, padding included."""
        return self.columns

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """-1: no limit."""
        return -1

    def get_max_cache_shape(self, layer_idx: int | None = None) -> int:
        """-1: no limit."""
        return -1

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        """Whether any token was read."""
        return self.position is not None

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Length and offset of a mask over all tokens."""
        return self.columns + query_length, 0

    def update(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError("a TitansCache is filled by a Titans model, not key by key")

    def crop(self, tokens_to_remove: int) -> NoReturn:
        raise NotImplementedError(
            "a memory cannot unlearn tokens, so a TitansCache cannot be cropped; fork() it before tokens you may drop"
        )

    def nbytes(self) -> int:
        """Bytes of all states."""
        return sum(t.numel() * t.element_size() for t in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """Flat names to tensors."""
        out = {name: t for name in ("position", "document") if (t := getattr(self, name)) is not None}
        for i, state in enumerate(self.states):
            if state is not None:
                out |= {f"layers.{i}.{name}": t for name, t in state.tensors().items()}
        return out

    def map(self, fn: Any) -> "TitansCache":
        """A cache with `fn` applied to every tensor."""
        out = TitansCache(self.config)
        out.learn, out.write_scale = self.learn, self.write_scale
        out._writer, out._fingerprint = self._writer, self._fingerprint
        out.columns = self.columns
        out.position = None if self.position is None else fn(self.position)
        out.document = None if self.document is None else fn(self.document)
        out.states = [None if s is None else s.map(fn) for s in self.states]
        return out

    def fork(self) -> "TitansCache":
        """An independent cache of the same content; no tensor is copied."""
        return self.map(lambda t: t)

    def continued(self) -> "TitansCache":
        """A fork for `generate()` with new tokens alone.

        Hugging Face takes a prompt given with a cache for the whole text, cached tokens included, and cuts off
        as many as the cache has counted; this fork counts from here on. Nothing that was read is lost.
        """
        out = self.fork()
        out.columns = 0
        return out

    __copy__ = fork

    def detach(self) -> "TitansCache":
        """The same content cut off from the graph, for truncated backpropagation."""
        return self.map(Tensor.detach)

    def to(self, device: torch.device | str) -> "TitansCache":
        """The same content on another device."""
        return self.map(lambda t: t.to(device))

    def _replace(self, fn: Any) -> None:
        self.__dict__.update(self.map(fn).__dict__)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i becomes what row `beam_idx[i]` was."""
        self._replace(lambda t: t.index_select(0, beam_idx.to(t.device)))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the given rows."""
        self._replace(lambda t: t[indices.to(t.device)])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row `repeats` times."""
        self._replace(lambda t: t.repeat_interleave(repeats, dim=0))

    def bind(self, model: nn.Module) -> None:
        """Called by a model that goes on from this cache; ValueError where another model filled it."""
        model = getattr(model, "base_model", model)
        if self._writer is not None and self._writer() is model:
            return
        same = model.config is self.config
        different = "" if same else differences(config_identity(self.config), model.config)  # type: ignore[arg-type]
        if different:
            raise ValueError(f"past_key_values is the cache of another model: {different}")
        filled_by = self._written_by(None)
        if filled_by and self.position is not None and filled_by != weights_fingerprint(model):
            raise ValueError("past_key_values was filled by a model of the same shape with other weights")
        self._writer, self._fingerprint = weakref.ref(model), ""

    def _written_by(self, model: nn.Module | None) -> str:
        model = model if model is not None else None if self._writer is None else self._writer()
        return self._fingerprint if model is None else weights_fingerprint(model)

    def save(
        self, path: str | os.PathLike[str], model: nn.Module | None = None, notes: dict[str, Any] | None = None
    ) -> None:
        """Write the cache to a safetensors file, whole or not at all.

        The header holds the model's identity: the config fields a cache depends on and a fingerprint of the
        weights, of `model` or else of the model that filled the cache.

        Args:
            path: file to write; replaced if it exists.
            model: see above.
            notes: plain values to keep in the header; `TitansCache.header(path).notes` gives them back.

        Raises:
            ValueError: an empty cache, a path that is no file, or a model that is gone and is not given.
        """
        if self.position is None:
            raise ValueError("the cache is empty: run the model on some tokens before save()")
        written_by = self._written_by(model)
        if not written_by:
            raise ValueError(
                "the model that filled the cache is gone, and its file has to say whose it is: give save(path, model)"
            )
        header = CacheHeader(
            config_identity(self.config),
            written_by,
            self.columns,
            self.learn,
            self.write_scale,
            notes or {},
        )
        write_file(path, self.tensors(), header)

    @staticmethod
    def header(path: str | os.PathLike[str]) -> CacheHeader:
        """What a cache file says of itself, without its tensors; errors as in `load`."""
        return read_header(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: Any = None) -> "TitansCache":
        """Read a cache written by `save`.

        Args:
            path: the file.
            model: the Titans model that shall go on from it, to whose device it is brought, or a config. None:
                the model is compared when it first uses the cache.

        Raises:
            FileNotFoundError: no such file. ValueError: not a cache, cut short, or of another model.
        """
        header, tensors = read_file(path)
        if model is None:
            config = TitansConfig(**header.config)
        else:
            config = model if isinstance(model, TitansConfig) else model.config
            different = differences(header.config, config)
            if different:
                raise ValueError(f"{path} is the cache of another model: {different}")
        if isinstance(model, nn.Module):
            if header.weights and header.weights != weights_fingerprint(model):
                raise ValueError(f"{path} was written by a model of the same shape with other weights")
            device = next(model.parameters()).device
            tensors = {name: t.to(device) for name, t in tensors.items()}
        cache = cls(config)
        cache.columns = header.columns
        cache.learn, cache.write_scale = header.learn, header.write_scale
        cache._fingerprint = header.weights
        try:
            cache.position, cache.document = tensors.pop("position"), tensors.pop("document", None)
            for i in range(len(cache)):
                prefix = f"layers.{i}."
                mine = {n.removeprefix(prefix): tensors.pop(n) for n in list(tensors) if n.startswith(prefix)}
                cache.states[i] = MixerState.from_tensors(mine)
            complete = not tensors and all(t.shape[0] == cache.batch_size for t in cache.tensors().values())
            for state in cache.states:
                complete &= config.variant == "attention" or state.memory is not None  # type: ignore[union-attr]
                complete &= config.variant == "lmm" or state.attention is not None  # type: ignore[union-attr]
                complete &= (config.attention_conv_size > 1) == bool(state.conv)  # type: ignore[union-attr]
        except (KeyError, IndexError):
            complete = False
        if not complete:
            raise ValueError(f"{path} lacks tensors of the cache that its header describes; it cannot be read")
        return cache
