"""The cache under both of its names: transformers 5.24 renamed `past_key_values` to `cache`.

Models here take either name with any release; what goes to transformers, or comes from it, has the name that
release knows.
"""

from dataclasses import fields
from typing import Any

from transformers.modeling_outputs import CausalLMOutputWithPast

OLD, NEW = "past_key_values", "cache"
CACHE = NEW if NEW in {field.name for field in fields(CausalLMOutputWithPast)} else OLD


def either(past_key_values: Any, cache: Any) -> Any:
    """The cache given under one of its names; ValueError for two different ones."""
    if past_key_values is not None and cache is not None and past_key_values is not cache:
        raise ValueError("past_key_values and cache are two names of one argument, got two different caches; give one")
    return cache if past_key_values is None else past_key_values


def renamed(arguments: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments with the cache under the name this release of transformers knows."""
    cache = either(arguments.get(OLD), arguments.get(NEW))
    others = {name: value for name, value in arguments.items() if name not in (OLD, NEW)}
    return others if cache is None else {**others, CACHE: cache}


def cache_of(output: Any) -> Any:
    """The cache in a model's output."""
    return getattr(output, CACHE)
