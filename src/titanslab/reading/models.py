"""The two kinds of models that keep a memory in a file: Titans models, and models with a graft."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from titanslab.models.cache import CACHE, TitansCache
from titanslab.tensor_files import not_finite

if TYPE_CHECKING:
    from torch import Tensor

    from titanslab.graft import GraftCache
    from titanslab.graft.cache_file import GraftCacheHeader
    from titanslab.models.cache_file import CacheHeader

    MemoryCache = TitansCache | GraftCache


def keeps_memory(model: Any) -> bool:
    """Whether a model keeps what it has read in a file."""
    return hasattr(model, "graft") or model.config.model_type == "titans"


def is_empty(cache: Any) -> bool:
    """Whether no token was read into a cache."""
    return cache.position is None if isinstance(cache, TitansCache) else cache.columns == 0


def can_freeze(cache: MemoryCache) -> bool:
    """Whether there is a memory that may stay as it is while tokens are read."""
    return not isinstance(cache, TitansCache) or cache.config.variant != "attention"


def new_cache(model: Any) -> MemoryCache:
    """The cache before the first token."""
    return model.graft.cache() if hasattr(model, "graft") else TitansCache(model.config)


def read_pieces(
    model: Any,
    input_ids: Tensor | Iterable[Tensor],
    cache: Any,
    *,
    piece_size: int | None = None,
    learn: bool | None = None,
    write_scale: float | None = None,
) -> Iterator[Any]:
    """As `TitansForCausalLM.read_pieces`, for both kinds of models."""
    rules: dict[str, Any] = {"piece_size": piece_size, "learn": learn, "write_scale": write_scale}
    if not hasattr(model, "graft"):
        return model.read_pieces(input_ids, cache, **rules)
    from titanslab.graft import pieces

    return pieces.read_pieces(model, input_ids, cache, **rules)


def read(model: Any, input_ids: Tensor, cache: Any) -> Any:
    """The cache after all of `input_ids [1, T]`; `cache` is not changed."""
    return (model.graft if hasattr(model, "graft") else model).read(input_ids, cache)


def to_generate(model: Any, cache: Any) -> dict[str, Any]:
    """The arguments of `generate()` after a cache, with a prompt of new tokens alone; the cache is not changed."""
    name = model.graft.decoder.cache_name if hasattr(model, "graft") else CACHE
    return {name: cache.continued()}


def after_generate(cache: Any, before: Any) -> None:
    """Count the tokens of `before` again in a cache of `to_generate`, which then is one of the whole text."""
    if isinstance(cache, TitansCache):
        cache.columns += before.columns
    else:
        cache.start = 0


def fault_of(cache: MemoryCache) -> str:
    """The name of the first tensor with a NaN or an infinite number, "" if there is none."""
    return not_finite(cache.tensors())


def header_of(file: Path) -> CacheHeader | GraftCacheHeader:
    """The header of a memory file; errors as in `TitansCache.load`."""
    if _is_grafts(file):
        from titanslab.graft import GraftCache

        return GraftCache.header(file)
    return TitansCache.header(file)


def load_cache(file: Path, model: Any) -> Any:
    """The cache in a memory file; ValueError if it is damaged or of another model."""
    if not hasattr(model, "graft"):
        return TitansCache.load(file, model)
    from titanslab.graft import GraftCache

    return GraftCache.load(file, model)


def identity(model: Any) -> str:
    """A hash of the weights of a model."""
    if not hasattr(model, "graft"):
        from titanslab.models.cache_file import weights_fingerprint

        return weights_fingerprint(model)
    from titanslab.graft.identity import adapter_hash

    return adapter_hash(model.graft)


def _is_grafts(file: Path) -> bool:
    """Whether the header of a file says that a `GraftCache` is in it; False for a file that cannot be read."""
    from safetensors import SafetensorError, safe_open

    from titanslab.graft.cache_file import FORMAT

    try:
        with safe_open(file, "pt") as held:
            return (held.metadata() or {}).get("format") == FORMAT
    except (SafetensorError, OSError):
        return False
