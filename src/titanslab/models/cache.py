"""`TitansCache`: the state of a whole model between calls, and the two names that transformers has for a cache."""

import os
import weakref
from collections.abc import Callable
from dataclasses import fields
from typing import Any, NoReturn

from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from titanslab.memory.state import named_tensors, tree_map
from titanslab.models.cache_checks import fault
from titanslab.models.cache_file import (
    WAY_OUT,
    CacheHeader,
    config_identity,
    differences,
    read_file,
    weights_fingerprint,
    write_file,
)
from titanslab.models.config import TitansConfig
from titanslab.models.state import MixerState
from titanslab.tensor_files import not_finite

# transformers 5.24 renamed `past_key_values` to `cache`. The models here take either name with any release. Calls to
# transformers, and its outputs, have the name `CACHE`, which this release uses.
OLD, NEW = "past_key_values", "cache"
CACHE = NEW if NEW in {field.name for field in fields(CausalLMOutputWithPast)} else OLD


def either(past_key_values: Any, cache: Any) -> Any:
    """The cache given under one of its names; ValueError for two different ones."""
    if past_key_values is not None and cache is not None and past_key_values is not cache:
        raise ValueError("past_key_values and cache are two names of one argument, got two different caches; give one")
    return cache if past_key_values is None else past_key_values


def renamed(arguments: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments with the cache under the name `CACHE`."""
    cache = either(arguments.get(OLD), arguments.get(NEW))
    others = {name: value for name, value in arguments.items() if name not in (OLD, NEW)}
    return others if cache is None else {**others, CACHE: cache}


def cache_of(output: Any) -> Any:
    """The cache in a model's output."""
    return getattr(output, CACHE)


class TitansCache(Cache):
    """States of all blocks after some tokens; a model's `past_key_values`.

    Memory, convolution tails and attention windows take the same bytes after 100 tokens as after 100,000. Only the
    full attention of variant "attention" grows. No call writes the tensors in place, so `fork()` copies nothing.

    `learn` and `write_scale` may be set at any time. They hold for every token that the model reads or generates from
    then on: `cache.learn = False` freezes the memories, `cache.write_scale = 0.5` halves each theta.

    Args:
        config: config of the model that fills the cache.
    """

    is_compileable = False
    is_croppable = False
    is_initialized = False

    def __init__(self, config: TitansConfig) -> None:
        super().__init__(layers=[])
        self.config = config
        self.learn = True
        self.write_scale = 1.0
        self._writer: weakref.ref[nn.Module] | None = None  # the model that filled the cache
        self._fingerprint = ""  # fingerprint of that model as a file names it, until it is compared with a model's
        self.reset()

    def reset(self) -> None:
        """Empty the cache: the next token starts a document, from the learned M_0."""
        self.states: list[MixerState | None] = [None] * self.config.num_hidden_layers
        self.position: Tensor | None = None  # int64 [B], tokens of the running document
        self.document: Tensor | None = None  # int64 [B], id of the running document, if ids were given
        self.columns = 0  # tokens read, padding included

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_writer": None, "_fingerprint": self._written_by(None)}

    def __repr__(self) -> str:
        return f"TitansCache({self.config.variant}, batch_size={self.batch_size}, seq_length={self.columns})"

    def __len__(self) -> int:
        return len(self.states)

    @property
    def batch_size(self) -> int:
        """Number of rows, -1 while the cache is empty."""
        return -1 if self.position is None else self.position.shape[0]

    @property
    def is_sliding(self) -> list[bool]:
        """False for every block."""
        return [False] * len(self)

    is_linear = is_dummy = is_sliding

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens read so far, padding included."""
        return self.columns

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """-1: no limit."""
        return -1

    get_max_cache_shape = get_max_length

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
        """Bytes of all states as they are stored."""
        return sum(t.numel() * t.element_size() for t in self.tensors().values())

    def not_finite(self) -> str:
        """The name of the first tensor with a NaN or an infinite number, "" if there is none."""
        return not_finite(self.tensors())

    def tensors(self) -> dict[str, Tensor]:
        """Flat names to tensors."""
        return named_tensors(self._tree())

    def _tree(self) -> dict[str, Any]:
        return {"position": self.position, "document": self.document, "layers": self.states}

    def map(self, fn: Callable[[Tensor], Tensor]) -> "TitansCache":
        """A cache with `fn` applied to every tensor."""
        out = TitansCache(self.config)
        position, document, states = tree_map(fn, self._tree()).values()
        out.__dict__.update(self.__dict__, position=position, document=document, states=states)
        return out

    def fork(self) -> "TitansCache":
        """An independent cache of the same content; no tensor is copied."""
        return self.map(lambda t: t)

    def continued(self) -> "TitansCache":
        """A fork for `generate()` with a prompt of new tokens alone.

        Hugging Face expects the whole text as a prompt, cached tokens included, and cuts off as many tokens as the
        cache has counted. The fork counts from here on, so nothing is cut off. Its states are those of this cache.
        """
        out = self.fork()
        out.columns = 0
        return out

    __copy__ = fork

    def detach(self) -> "TitansCache":
        """The same content without its graph, for truncated backpropagation."""
        return self.map(Tensor.detach)

    def to(self, *target: Any) -> "TitansCache":
        """The same content on a device or in a dtype, as `Tensor.to` takes them; positions stay whole numbers."""
        return self.map(lambda t: t.to(*target))

    def _replace(self, fn: Callable[[Tensor], Tensor]) -> None:
        self.__dict__.update(self.map(fn).__dict__)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Row i becomes a copy of the former row `indices[i]`."""
        self._replace(lambda t: t[indices.to(t.device)])

    reorder_cache = batch_select_indices  # type: ignore[assignment]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row `repeats` times."""
        self._replace(lambda t: t.repeat_interleave(repeats, dim=0))

    def bind(self, model: nn.Module) -> None:
        """Tie the cache to the model that goes on from it; ValueError if another model filled it."""
        model = getattr(model, "base_model", model)
        if self._writer is not None and self._writer() is model:
            return
        theirs: Any = model.config
        if theirs is not self.config and (different := differences(config_identity(self.config), theirs)):
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

        The header holds the model's identity: the config fields that a cache depends on and a fingerprint of the
        weights; and a checksum of the tensors and of the header.

        Args:
            path: file to write; replaced if it exists.
            model: the model that filled the cache; needed only if it no longer exists.
            notes: JSON values to keep in the header; `TitansCache.header(path).notes` returns them.

        Raises:
            ValueError: an empty cache, a path that is no file, notes that are no JSON values, or a model that no longer
                exists and is not given.
            FloatingPointError: the cache holds numbers that are not finite; nothing is written.
        """
        if self.position is None:
            raise ValueError("the cache is empty: run the model on some tokens before save()")
        written_by = self._written_by(model)
        if not written_by:
            raise ValueError(
                "the model that filled the cache is gone, and its file has to say whose it is: give save(path, model)"
            )
        tensors = self.tensors()
        if name := not_finite(tensors):
            raise FloatingPointError(f"{path} was not written: the cache has numbers that are not finite in {name!r}")
        identity = config_identity(self.config)
        header = CacheHeader(identity, written_by, self.columns, self.learn, self.write_scale, notes or {})
        write_file(path, tensors, header)

    @staticmethod
    def header(path: str | os.PathLike[str]) -> CacheHeader:
        """The header of a cache file, without its tensors; errors as in `load`."""
        return read_file(path, tensors=False)[0]

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: Any = None) -> "TitansCache":
        """Read a cache written by `save`.

        Args:
            path: the file.
            model: the Titans model that will go on from the cache, or its config. Tensors move to the device of the
                model. None = the model is compared when it first uses the cache.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a cache, cut short, or the cache of another model; its contents do not agree with its
                checksum; or a tensor is missing, has another shape or dtype than the model's, is not finite, or counts
                what cannot be. A file without a checksum, of an earlier release, gives a warning.
        """
        header, tensors = read_file(path)
        if model is None:
            config = _stored_config(path, header)
        else:
            config = model if isinstance(model, TitansConfig) else model.config
            if different := differences(header.config, config):
                raise ValueError(f"{path} is the cache of another model: {different}")
        if isinstance(model, nn.Module) and header.weights and header.weights != weights_fingerprint(model):
            raise ValueError(f"{path} was written by a model of the same shape with other weights")
        if problem := fault(tensors, config):
            raise ValueError(f"{path} {problem}; {WAY_OUT}")
        if isinstance(model, nn.Module):
            device = next(model.parameters()).device
            tensors = {name: t.to(device) for name, t in tensors.items()}
        cache = cls(config)
        cache.columns = header.columns
        cache.learn, cache.write_scale = header.learn, header.write_scale
        cache._fingerprint = header.weights
        cache.position, cache.document = tensors["position"], tensors.get("document")
        for i in range(len(cache)):
            prefix = f"layers.{i}."
            mine = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
            cache.states[i] = MixerState.from_tensors(mine)
        return cache


def _stored_config(path: str | os.PathLike[str], header: CacheHeader) -> TitansConfig:
    """The config that a file's header describes."""
    try:
        config = TitansConfig(**header.config)
        different = differences(header.config, config)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{path} has a damaged header ({error}); {WAY_OUT}") from None
    if different:
        raise ValueError(f"{path} has a damaged header: {different}; {WAY_OUT}")
    return config
