"""Greedy answers to long prompts. A model that can continue from its cache reads them in pieces."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, GenerationConfig
from transformers.cache_utils import LinearAttentionLayer

from titanslab.graft.pieces import piece_of
from titanslab.models.cache import CACHE, TitansCache

# Without this argument of a release of transformers, the convolution of a piece does not see the tokens before it.
READS_IN_PIECES = "conv_kernel_size" in inspect.signature(LinearAttentionLayer.update_conv_state).parameters

Prompt = Sequence[int] | np.ndarray
# Continues prompts; calls its second argument with the number of tokens of each piece after it is read.
Answerer = Callable[[Sequence[Prompt], Callable[[int], None]], list[list[int]]]


@dataclass(eq=False)
class GreedyAnswerer:
    """Continues prompts greedily with a Hugging Face causal LM.

    A Titans model, and a model whose layers are all linear recurrences, reads `piece` tokens at a time through its
    cache, so that its activations do not grow with the prompt. Other models read the whole prompt with their own
    `generate`.

    Args:
        model: the model, on its device, in eval mode. piece: tokens read at once.
        max_new_tokens: length of the longest answer. eos_token_ids: tokens that end an answer.
        pad_token_id: fills up short prompts.
        learn: False freezes the memories of a Titans model, a control that shows their share in the answers.
    """

    model: Any
    _: KW_ONLY
    max_new_tokens: int
    piece: int = 4096
    pad_token_id: int = 0
    eos_token_ids: Sequence[int] = ()
    learn: bool = True

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.piece < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens} and piece {self.piece}; both must be at least 1")
        self.positions = position_table(self.model)
        if not self.learn and _without_memory(self.model):
            raise ValueError("learn=False freezes a memory, and this model has none")

    @torch.inference_mode()
    def __call__(self, prompts: Sequence[Prompt], advance: Callable[[int], object] = lambda _: None) -> list[list[int]]:
        """The new tokens of each prompt, without the token that ended it."""
        longest = max(len(prompt) for prompt in prompts)
        if self.positions is not None and longest + self.max_new_tokens > self.positions:
            raise ValueError(
                f"a prompt has {longest} tokens and the answer up to {self.max_new_tokens}, but this model's "
                f"position table ends at {self.positions}; ask for shorter lengths"
            )
        if getattr(self.model.config, "model_type", "") == "titans":
            new = self._decode(prompts, advance)
        elif hasattr(self.model, "graft"):
            new = self._grafted(*self._pad(prompts), advance)
        elif is_recurrent(self.model.config):
            new = self._recur(*self._pad(prompts), advance)
        else:
            ids, mask = self._pad(prompts)
            new = self._generate(ids, mask)
            advance(ids.numel())
        return [list(takewhile(lambda token: token not in self.eos_token_ids, row)) for row in new.tolist()]

    def _pad(self, prompts: Sequence[Prompt], left: bool = True) -> tuple[Tensor, Tensor | None]:
        """Ids `[B, T]` and the mask of real tokens, None where all are real."""
        rows = [torch.from_numpy(np.asarray(prompt, dtype=np.int64)) for prompt in prompts]
        padded = partial(pad_sequence, batch_first=True, padding_side="left" if left else "right")
        mask = padded([torch.ones_like(row) for row in rows])
        return padded(rows, padding_value=self.pad_token_id), None if bool(mask.all()) else mask

    def _decode(self, prompts: Sequence[Prompt], advance: Callable[[int], object]) -> Tensor:
        """Continue with a Titans model.

        All but the last token of each prompt are read with padding on the right, because rows that begin together are
        read faster. The last tokens are then one step of all rows.
        """
        read = 0

        def report(done: int, total: int | None) -> None:
            nonlocal read
            advance((done - read) * len(prompts))
            read = done

        cache = TitansCache(self.model.config)
        cache.learn = self.learn
        ids, mask = self._pad([prompt[:-1] for prompt in prompts], left=False)
        if ids.shape[1]:
            cache = self.model.read(ids, cache, attention_mask=mask, piece_size=self.piece, progress=report)
        output = self._step(torch.tensor([[int(prompt[-1])] for prompt in prompts]), None, cache)
        report(ids.shape[1] + 1, None)
        return self._continue(output, lambda last: self._step(last, None, cache))

    def _recur(self, ids: Tensor, mask: Tensor | None, advance: Callable[[int], object]) -> Tensor:
        """Continue with a model of linear recurrences; `mask [B, T]` is 0 at padding, which is on the left."""
        cache = RecurrentCache(config=self.model.config)

        def step(part: Tensor, mask: Tensor | None = None) -> Any:
            output = self._step(part, mask, cache)
            cache.tokens += part.shape[1]
            return output

        piece = self.piece if READS_IN_PIECES else ids.shape[1]
        output = None
        for start in range(0, ids.shape[1], piece):
            part = ids[:, start : start + piece]
            output = step(part, None if mask is None else mask[:, : start + piece])
            advance(part.numel())
        return self._continue(output, step)

    def _grafted(self, ids: Tensor, mask: Tensor | None, advance: Callable[[int], object]) -> Tensor:
        """Continue with a model that has a graft; `mask [B, T]` is 0 at padding, which is on the left."""
        graft = self.model.graft
        cache, size, output = graft.cache(), piece_of(graft, len(ids)), None
        cache.learn = self.learn
        for start in range(0, ids.shape[1], size):
            part = ids[:, start : start + size]
            output = self._step(part, None if mask is None else mask[:, start : start + size], cache)
            advance(part.numel())
        return self._continue(output, lambda last: self._step(last, torch.ones_like(last), cache))

    def _continue(self, output: Any, step: Callable[[Tensor], Any]) -> Tensor:
        """Greedy tokens `[B, n]` that follow the output of the prompt, until every row has ended."""
        new = output.logits[:, -1:].argmax(-1)
        ends = torch.tensor(self.eos_token_ids, dtype=new.dtype, device=new.device)
        while new.shape[1] < self.max_new_tokens and not bool(torch.isin(new, ends).any(1).all()):
            new = torch.cat((new, step(new[:, -1:]).logits[:, -1:].argmax(-1)), 1)
        return new

    def _step(self, ids: Tensor, mask: Tensor | None, cache: Any) -> Any:
        """The output of new tokens; a Titans model needs no mask of the prompt, so nothing grows with its length."""
        device = self.model.device
        return self.model(
            input_ids=ids.to(device),
            attention_mask=None if mask is None else mask.to(device),
            use_cache=True,
            logits_to_keep=1,
            **{CACHE: cache},
        )

    def _generate(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """Continue with the model's own `generate`."""
        config = GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            num_beams=1,
            pad_token_id=self.pad_token_id,
            eos_token_id=list(self.eos_token_ids) or None,
        )
        ids = ids.to(self.model.device)
        mask = torch.ones_like(ids) if mask is None else mask.to(ids.device)
        saved = self.model.generation_config
        self.model.generation_config = config  # otherwise `generate` adds penalties from the model's own config
        try:
            return self.model.generate(ids, attention_mask=mask, generation_config=config)[:, ids.shape[1] :]
        finally:
            self.model.generation_config = saved


def _without_memory(model: Any) -> bool:
    """Whether a model has no memory that could be frozen."""
    return not hasattr(model, "graft") and getattr(model.config, "variant", "attention") == "attention"


class RecurrentCache(DynamicCache):
    """A cache of recurrent states that counts the tokens it has read.

    transformers' own cache counts tokens in attention layers and raises for a model without them.
    """

    tokens = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.tokens

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.tokens + query_length, 0


def is_recurrent(config: Any) -> bool:
    """Whether every layer of a model is a linear recurrence of transformers, so that it needs a `RecurrentCache`."""
    return set(getattr(config, "layer_types", None) or ()) == {"linear_attention"}


def end_tokens(tokenizer: Any, model: Any) -> list[int]:
    """The tokens that end an answer: the tokenizer's, and those of the model's `generation_config`."""
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found = [tokenizer.eos_token_id, *(named if isinstance(named, list | tuple) else [named])]
    return sorted({int(token) for token in found if token is not None})


def position_table(model: Any) -> int | None:
    """Number of positions of the smallest position table of a model or its config; None without a table."""
    names = ("wpe", "embed_positions", "position_embeddings", "position_embedding")
    tables = [
        module.num_embeddings - int(getattr(module, "offset", 0))  # the first two entries of OPT's table are unused
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Embedding) and name.rpartition(".")[2] in names
    ]
    named = getattr(model.config, "n_positions", None)  # also of tables that are computed once, such as GPT-J's
    return min([*tables, named] if isinstance(named, int) else tables, default=None)
