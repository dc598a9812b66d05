"""`TitansCache`: what a model remembers between calls; saved, loaded, forked and reordered as a whole."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from titanslab.models.config import TitansConfig
from titanslab.models.state import MixerState

FORMAT = "titans-cache"
VERSION = "1"

# fields that decide what a state means; the rest (token ids, dtype, backend ...) may differ
# fmt: off
IDENTITY = (
    "variant", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_memory_heads", "memory_depth", "memory_expansion", "memory_residual", "memory_norm",
    "memory_grad_clip", "memory_gates_per_layer", "memory_momentum", "memory_forgetting", "conv_size",
    "chunk_size", "segment_len", "window_size", "num_persistent_tokens", "gate_type", "rope_parameters",
    "rms_norm_eps",
)
# fmt: on


def config_identity(config: TitansConfig) -> dict[str, Any]:
    """The fields of a config that a cache depends on."""
    return {name: getattr(config, name) for name in IDENTITY}


def weights_fingerprint(model: nn.Module) -> str:
    """A short hash of a model's weights: names, shapes and up to 256 evenly spaced values of each."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        flat = parameter.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // 256)][:256].to("cpu", torch.float64)
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:16]


class TitansCache(Cache):
    """States of all blocks after some tokens; a model's `past_key_values`.

    Memory, convolution tails and attention windows take the same bytes after 100 tokens as after 100,000;
    only the full attention of variant "attention" grows. The tensors are never written in place, so `fork()`
    copies nothing.

    Args:
        config: of the model it belongs to.
    """

    is_compileable = False
    is_croppable = False
    is_initialized = False

    def __init__(self, config: TitansConfig) -> None:
        super().__init__(layers=[])
        self.config = config
        self.reset()

    def reset(self) -> None:
        """Forget everything: the next token starts a document, from the learned M_0."""
        self.states: list[MixerState | None] = [None] * self.config.num_hidden_layers
        self.position: Tensor | None = None  # int64 [B], tokens of the running document
        self.document: Tensor | None = None  # int64 [B], its id where ids were given
        self.columns = 0  # tokens fed, padding included

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
            "a memory cannot unlearn tokens, so a TitansCache cannot be cropped; fork() it before tokens you "
            "may drop"
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
        out.columns = self.columns
        out.position = None if self.position is None else fn(self.position)
        out.document = None if self.document is None else fn(self.document)
        out.states = [None if s is None else s.map(fn) for s in self.states]
        return out

    def fork(self) -> "TitansCache":
        """An independent cache of the same content; no tensor is copied."""
        return self.map(lambda t: t)

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

    def save(self, path: str | os.PathLike[str], model: nn.Module | None = None) -> None:
        """Write the cache to a safetensors file, whole or not at all.

        Args:
            path: file to write; replaced if it exists.
            model: its weights' fingerprint is stored too, and `load(path, model)` then refuses other weights.
        """
        from safetensors.torch import save_file

        if self.position is None:
            raise ValueError("the cache is empty: run the model on some tokens before save()")
        metadata = {
            "format": FORMAT,
            "version": VERSION,
            "columns": str(self.columns),
            "config": json.dumps(config_identity(self.config), sort_keys=True),
            "weights": "" if model is None else weights_fingerprint(model),
        }
        tensors = {
            k: t.detach().to("cpu").clone(memory_format=torch.contiguous_format)
            for k, t in self.tensors().items()
        }
        path = Path(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            save_file(tensors, temporary, metadata)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: Any) -> "TitansCache":
        """Read a cache written by `save`, for `model` (a Titans model, or its config).

        Raises:
            FileNotFoundError: no such file. ValueError: not a cache, cut short, or of another model.
        """
        from safetensors import SafetensorError, safe_open

        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no cache file at {path}")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            raise ValueError(
                f"{path} is not a readable cache file (cut short or of another kind): {error}"
            ) from None
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{path} is a safetensors file but not a cache written by TitansCache.save")
        if metadata.get("version") != VERSION:
            raise ValueError(
                f"{path} has cache format version {metadata.get('version')!r}, this release reads "
                f"{VERSION!r}; load it with the release that wrote it"
            )
        config = model if isinstance(model, TitansConfig) else model.config
        _check_identity(path, json.loads(metadata["config"]), config)
        if isinstance(model, nn.Module):
            if metadata["weights"] and metadata["weights"] != weights_fingerprint(model):
                raise ValueError(f"{path} was written by a model of the same shape with other weights")
            device = next(model.parameters()).device
            tensors = {name: t.to(device) for name, t in tensors.items()}
        cache = cls(config)
        cache.columns = int(metadata["columns"])
        cache.position = tensors.get("position")
        cache.document = tensors.get("document")
        for i in range(len(cache)):
            prefix = f"layers.{i}."
            cache.states[i] = MixerState.from_tensors(
                {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            )
        return cache


def _check_identity(path: Path, stored: dict[str, Any], config: TitansConfig) -> None:
    mine = json.loads(json.dumps(config_identity(config)))
    different = [name for name in IDENTITY if stored.get(name) != mine[name]]
    if different:
        facts = ", ".join(f"{n} {stored.get(n)!r} there and {mine[n]!r} here" for n in different[:3])
        more = f" and {len(different) - 3} more" if len(different) > 3 else ""
        raise ValueError(f"{path} is the cache of another model: {facts}{more}")
