"""`Graft`: the memories of a grafted model and what is done with them; the model has it as `model.graft`."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from titanslab.graft.adapter import save_graft
from titanslab.graft.cache import GraftCache
from titanslab.graft.call import Call, last_columns
from titanslab.graft.config import GraftConfig
from titanslab.graft.identity import base_hash
from titanslab.graft.memory import GraftedMemory
from titanslab.graft.read import read
from titanslab.graft.structure import CACHE_NAMES, Decoder, named, parameter_names
from titanslab.graft.window import Step, Window, is_ready, masks, number, refuse_ready_masks

CALL = "titans_call"  # the argument with which a call goes to attention modules that backward computes again


class Graft:
    """The memories of a model, switched on and off for all of them together.

    Attributes:
        model: the model that was given to `graft()`.
        config: the `GraftConfig`.
        memories: the `GraftedMemory` of each grafted layer, in order.
        layers: the numbers of those layers.
        window: how far the attention of the base reaches.
        base: the hash of the base's weights.
        enabled: False turns the model into its base: no memory, no window.
        reads: False keeps the window and leaves the memories out, the control "window alone".
        learn: False freezes the memories: tokens read and do not write. A cache's own `learn` holds too.
        stats: set to a dict, it receives the stats of each memory of the next calls, by the memory's place.
    """

    def __init__(
        self, model: nn.Module, decoder: Decoder, config: GraftConfig, layers: tuple[int, ...], window: Window
    ) -> None:
        self.model: Any = model
        self.decoder, self.config, self.layers, self.window = decoder, config, layers, window
        self.base = base_hash(decoder.body)
        self.memories: list[GraftedMemory] = []
        self.enabled = self.reads = self.learn = True
        self.stats: dict[int, dict[str, Tensor]] | None = None
        self.call: Call | None = None
        self.noted: dict[str, Any] = {}  # the attention mask that the whole model was given
        self.handles: list[Any] = []

    def attach(self) -> None:
        """Hook the decoder and its attention modules."""
        body, whole = self.decoder.body, getattr(self.model, "get_base_model", lambda: self.model)()
        self.handles = [] if whole is body else [whole.register_forward_pre_hook(self.note, with_kwargs=True)]
        self.handles += [
            body.register_forward_pre_hook(self.before, with_kwargs=True),
            body.register_forward_hook(self.after, with_kwargs=True, always_call=True),
        ]
        for attention in self.decoder.attentions:
            if attention is not None:
                self.handles.append(attention.register_forward_pre_hook(self.enter, with_kwargs=True))
        for memory, layer in zip(self.memories, self.layers, strict=True):
            memory.attach(self.attention(layer), self.config.placement)

    def detach(self) -> None:
        """The inverse of `attach`."""
        for handle in self.handles:
            handle.remove()
        for memory, layer in zip(self.memories, self.layers, strict=True):
            memory.detach(self.attention(layer))

    def attention(self, layer: int) -> nn.Module:
        """The attention module of a grafted layer."""
        attention = self.decoder.attentions[layer]
        assert attention is not None
        return attention

    def cache(self) -> GraftCache:
        """A new cache: it holds the keys and values of the base and the states of the memories."""
        return GraftCache(self)

    def read(
        self,
        input_ids: Tensor,
        cache: GraftCache | None = None,
        *,
        attention_mask: Tensor | None = None,
        piece_size: int | None = None,
        learn: bool | None = None,
    ) -> GraftCache:
        """Read tokens and return the cache after them; no logits are formed and no gradient is kept.

        Args:
            input_ids: int64 `[B, T]`, of any length, on any device.
            cache: the cache to go on from; it is not changed.
            attention_mask: `[B, T]`, 0 = padding.
            piece_size: tokens of a row read at once; default 1,024, or fewer where the base has few positions.
            learn: False freezes the memories while these tokens are read. None = the value of the cache.

        Returns:
            A new cache. `model.generate(new_ids, past_key_values=cache.continued())` goes on from it.
        """
        return read(self, input_ids, cache, attention_mask, piece_size, learn)

    def save_pretrained(self, save_directory: str | os.PathLike[str], **options: Any) -> None:
        """Write `adapter_config.json` and `adapter_model.safetensors`; the model has this method as its own.

        No weight of the base is written. Adapters of PEFT around the base go to the subfolder `lora`.

        Args:
            save_directory: a folder, made if need be.
            options: those with which the Trainer calls `save_pretrained` (`state_dict`, `is_main_process`, ...); all
                but `is_main_process` and `push_to_hub` change nothing here.

        Raises:
            ValueError: the weights of the base have changed since `graft()`, or `push_to_hub` is asked for.
        """
        if options.get("push_to_hub"):
            raise ValueError("push_to_hub is not done here; upload the folder with `hf upload` after saving it")
        if options.get("is_main_process", True):
            save_graft(self, save_directory)

    def parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of the memories."""
        for memory in self.memories:
            yield from memory.parameters()

    def enable(self) -> None:
        """Switch memories and window on."""
        self.enabled = True

    def disable(self) -> None:
        """Switch memories and window off: the model is its base."""
        self.enabled = False

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Memories and window are off inside the `with` block, in which the model is its base."""
        before, self.enabled = self.enabled, False
        try:
            yield
        finally:
            self.enabled = before

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """PEFT's verb: as `disabled`, and adapters of PEFT around the base are off too."""
        theirs = getattr(type(self.model), "disable_adapter", None)
        with self.disabled(), nullcontext() if theirs is None else theirs(self.model):
            yield

    @contextmanager
    def window_alone(self) -> Iterator[None]:
        """The memories are off inside the `with` block, and the window stays."""
        before, self.reads = self.reads, False
        try:
            yield
        finally:
            self.reads = before

    def current(self) -> Call:
        """The call at work; an attention module that is called by itself has a memory that starts anew."""
        return self.call or Call()

    def note(self, whole: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note which tokens are padding; a model that reads pictures too gives its decoder other masks."""
        self.noted = {"mask": named(parameter_names(whole), args, kwargs).get("attention_mask")}

    def before(self, body: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Read mask and cache of a call, and give the body a cache that holds the memories too."""
        self.call = None
        given = named(self.decoder.names, args, kwargs)
        if not self.enabled:
            if any(isinstance(given.get(name), GraftCache) for name in CACHE_NAMES):
                raise ValueError("the graft is off, and the cache holds its memories; give no cache, or enable() first")
            return None
        cache = self._cache(body, given)
        tokens = given.get("input_ids")
        if tokens is None:
            tokens = given["inputs_embeds"]
        batch, count = tokens.shape[:2]
        if cache is not None:
            cache.check(self, batch)
            if cache.columns and self.recomputes(body):
                raise ValueError(
                    "gradient checkpointing keeps no keys and values, and the cache holds some; carry "
                    "cache.memories_alone() from piece to piece"
                )
        past, start = (0, 0) if cache is None else (cache.columns, cache.start)
        padding = given.get("attention_mask")
        if is_ready(padding):
            padding = self.noted.get("mask", padding)
        self.noted = {}
        mask = last_columns(padding, batch, count, (count, past - start + count, past + count))
        learn = self.learn and (cache is None or cache.learn)
        self.call = Call(mask, cache, learn, 1.0 if cache is None else cache.write_scale, self.stats)
        if self.recomputes(body) and self.decoder.passes_on:
            given[CALL] = self.call
        dtype = next(self.decoder.body.parameters()).dtype if tokens.dim() == 2 else tokens.dtype
        if cache is not None:
            given = {name: value for name, value in given.items() if name not in CACHE_NAMES}
            given[self.decoder.cache_name] = cache
            return (), cache.begin(given, mask, tokens, dtype)
        return (), self._uncached(given, mask, tokens, dtype)

    def _uncached(
        self, given: dict[str, Any], mask: Tensor | None, tokens: Tensor, dtype: torch.dtype
    ) -> dict[str, Any]:
        """The arguments of a call without a cache: with a window, its mask where a token does not see all before."""
        (batch, count), window = tokens.shape[:2], self.window
        if window.size is None or count <= window.kept + 1:
            return given
        refuse_ready_masks(given)
        own = number(mask, count, torch.zeros(1, dtype=torch.int64, device=tokens.device))
        step = Step(own, own, own, None, False)
        position = given.get("position_ids")
        if position is None:
            position = torch.arange(count, device=tokens.device)[None]
        made = masks(window, step, batch, self.decoder.body.config, dtype)
        return {**given, "position_ids": position, "attention_mask": made}

    def enter(self, attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Take up the call to which an attention module's call belongs, in backward any earlier one."""
        if CALL not in kwargs:
            return None
        self.call = kwargs[CALL]
        return args, {name: value for name, value in kwargs.items() if name != CALL}

    def after(self, body: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """End the call; where backward computes layers again, it stays for a body that does not hand it to them."""
        call = self.call
        if call is None or call.ended:
            return
        call.ended = True
        if call.cache is not None:
            call.cache.end(call.mask, failed=output is None)
        if not self.recomputes(body):
            self.call = None

    @staticmethod
    def recomputes(body: nn.Module) -> bool:
        """Whether backward computes the layers again."""
        return bool(getattr(body, "gradient_checkpointing", False)) and body.training

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"call": None, "noted": {}}

    def _cache(self, body: nn.Module, given: dict[str, Any]) -> GraftCache | None:
        """The cache of a call, made where the body would make one."""
        cache = next((given[name] for name in CACHE_NAMES if given.get(name) is not None), None)
        if isinstance(cache, GraftCache):
            return cache
        if cache is not None:
            raise ValueError(
                f"{self.decoder.cache_name} is a {type(cache).__name__}, which holds no memories; "
                "give model.graft.cache()"
            )
        use_cache = given.get("use_cache")
        if use_cache is None:
            config: Any = body.config
            use_cache = bool(getattr(config, "use_cache", False))
        if self.recomputes(body):
            use_cache = False
        return self.cache() if use_cache else None


def graft_of(model: Any) -> Graft:
    """The `Graft` of a model, whatever wraps it; ValueError for a model without one."""
    found = getattr(model, "graft", None)
    if not isinstance(found, Graft):
        raise ValueError(f"{type(model).__name__} has no graft; titanslab.graft(model, GraftConfig(...)) adds one")
    return found
