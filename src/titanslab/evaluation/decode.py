"""Greedy answers to long prompts, read in pieces through the cache where the model can."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from titanslab.evaluation import recurrent_cache
from titanslab.models.cache import TitansCache

Prompt = Sequence[int] | np.ndarray


class Answerer(Protocol):
    """Greedy continuations of prompts; `advance` is told of every token read."""

    def __call__(self, prompts: Sequence[Prompt], advance: Callable[[int], None] | None = None) -> list[list[int]]: ...


class GreedyAnswerer:
    """Continues prompts greedily with a Hugging Face causal LM.

    A Titans model reads `piece` tokens at a time through its cache, so a prompt of any length takes the
    memory of a short one; so does a model of linear recurrences alone. Other models go through their own
    `generate`, whole, as their caches allow different things.

    Args:
        model: the model, on its device, in eval mode.
        max_new_tokens: longest answer.
        piece: tokens read at once.
        pad_token_id: fills short prompts up.
        eos_token_ids: tokens that end an answer.
        learn: False freezes the memories of a Titans model, so that answers show what it knows without them.
    """

    def __init__(
        self,
        model: Any,
        *,
        max_new_tokens: int,
        piece: int = 4096,
        pad_token_id: int = 0,
        eos_token_ids: Sequence[int] = (),
        learn: bool = True,
    ):
        if max_new_tokens < 1 or piece < 1:
            raise ValueError(f"max_new_tokens is {max_new_tokens} and piece {piece}; both must be at least 1")
        self.model = model
        self.max_new_tokens, self.piece = max_new_tokens, piece
        self.pad_token_id, self.eos_token_ids = pad_token_id, tuple(eos_token_ids)
        self.in_pieces = getattr(model.config, "model_type", "") == "titans"
        self.learn = learn
        self.positions = position_table(model)
        if not learn and getattr(model.config, "variant", "attention") == "attention":
            raise ValueError("learn=False freezes a memory, and this model has none")

    @torch.inference_mode()
    def __call__(self, prompts: Sequence[Prompt], advance: Callable[[int], None] | None = None) -> list[list[int]]:
        """The new tokens of each prompt, without the token that ended it."""
        self._check_length(max(len(prompt) for prompt in prompts))
        if self.in_pieces:
            new = self._decode(prompts, advance)
        elif recurrent_cache.is_recurrent(self.model.config):
            new = self._recur(*self._pad(prompts), advance)
        else:
            ids, mask = self._pad(prompts)
            new = self._generate(ids, mask)
            if advance is not None:
                advance(ids.numel())
        return [self._cut(row) for row in new.tolist()]

    def _pad(self, prompts: Sequence[Prompt], left: bool = True) -> tuple[Tensor, Tensor | None]:
        width = max(len(prompt) for prompt in prompts)
        ids = torch.full((len(prompts), width), self.pad_token_id, dtype=torch.int64)
        mask = torch.zeros(ids.shape, dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            start = width - len(prompt) if left else 0
            ids[row, start : start + len(prompt)] = torch.as_tensor(np.asarray(prompt, dtype=np.int64))
            mask[row, start : start + len(prompt)] = 1
        return ids, None if bool(mask.all()) else mask

    def _decode(self, prompts: Sequence[Prompt], advance: Callable[[int], None] | None) -> Tensor:
        """Padded on the right, before each last token: pieces of rows that begin together take the short way."""
        read = 0

        def tell(done: int, total: int | None) -> None:
            nonlocal read
            if advance is not None:
                advance((done - read) * len(prompts))
            read = done

        cache = TitansCache(self.model.config)
        cache.learn = self.learn
        ids, mask = self._pad([prompt[:-1] for prompt in prompts], left=False)
        if ids.shape[1]:
            cache = self.model.read(ids, cache, attention_mask=mask, piece_size=self.piece, progress=tell)
        output = self._step(torch.tensor([[int(prompt[-1])] for prompt in prompts]), None, cache)
        tell(ids.shape[1] + 1, None)
        return self._continue(output, lambda last: self._step(last, None, cache))

    def _recur(self, ids: Tensor, mask: Tensor | None, advance: Callable[[int], None] | None) -> Tensor:
        cache = recurrent_cache.RecurrentCache(config=self.model.config)
        output = recurrent_cache.read(self.model, ids, mask, cache, self.piece, advance)
        return self._continue(output, lambda last: recurrent_cache.read(self.model, last, None, cache, 1))

    def _continue(self, output: Any, step: Callable[[Tensor], Any]) -> Tensor:
        """Greedy tokens `[B, n]` from the output after the prompt on, until every row has ended."""
        new = [output.logits[:, -1].argmax(-1)]
        done = self._is_end(new[-1])
        while len(new) < self.max_new_tokens and not bool(done.all()):
            output = step(new[-1].unsqueeze(1))
            new.append(output.logits[:, -1].argmax(-1))
            done |= self._is_end(new[-1])
        return torch.stack(new, 1)

    def _step(self, ids: Tensor, mask: Tensor | None, cache: Any) -> Any:
        # A Titans model needs the mask of the new tokens alone: nothing on the device grows with the prompt.
        device = self.model.device
        return self.model(
            input_ids=ids.to(device),
            attention_mask=None if mask is None else mask.to(device),
            cache=cache,
            use_cache=True,
            logits_to_keep=1,
        )

    def _generate(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        from transformers import GenerationConfig

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
        self.model.generation_config = config  # else penalties of the model's own would fill what is not said here
        try:
            return self.model.generate(ids, attention_mask=mask, generation_config=config)[:, ids.shape[1] :]
        finally:
            self.model.generation_config = saved

    def _is_end(self, tokens: Tensor) -> Tensor:
        return torch.isin(tokens, torch.tensor(self.eos_token_ids, device=tokens.device, dtype=tokens.dtype))

    def _cut(self, row: list[int]) -> list[int]:
        for place, token in enumerate(row):
            if token in self.eos_token_ids:
                return row[:place]
        return row

    def _check_length(self, longest: int) -> None:
        # Models with a learned position table cannot read beyond it; others can try.
        limit = self.positions
        if limit is not None and longest + self.max_new_tokens > limit:
            raise ValueError(
                f"a prompt has {longest} tokens and the answer up to {self.max_new_tokens}, but this model's "
                f"position table ends at {limit}; ask for shorter lengths"
            )


def position_table(model: Any) -> int | None:
    """Positions of a model's table, learned or named in its config, the smallest of several; None without one."""
    names = ("wpe", "embed_positions", "position_embeddings", "position_embedding")
    tables = [
        module.num_embeddings - int(getattr(module, "offset", 0))  # OPT's begins with two that are never read
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Embedding) and name.rpartition(".")[2] in names
    ]
    named = getattr(model.config, "n_positions", None)  # also of tables that are computed once, as GPT-J's
    return min([*tables, named] if isinstance(named, int) else tables, default=None)
