"""A model's answer to a text, with a cache as its memory."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from titanslab.data import TextEncoder, padding_id
from titanslab.reading.models import after_generate, is_empty, new_cache, read, to_generate

LEAST_TEMPERATURE = 1e-6  # below, logits divided by it would not be finite


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn, as in `generate()`; temperature 0 always takes the likeliest one, as does one near it."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def generate(self, model: Any, tokenizer: Any, ids: Tensor, streamer: Any = None, **more: Any) -> Tensor:
        """The new tokens `[1, n]` that a model draws after `ids [1, T]`; `more` are arguments of its `generate()`."""
        draws = self.temperature > LEAST_TEMPERATURE
        drawn = {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=self.max_new_tokens,
            do_sample=draws,
            pad_token_id=padding_id(tokenizer),
            eos_token_id=tokenizer.eos_token_id,
            streamer=streamer,
            **(drawn if draws else {}),
            **more,
        )
        return out[:, ids.shape[1] :]


@dataclass(frozen=True)
class Manner:
    """How questions are put to a model and answered; a value that is None is left to the model's folder.

    Args:
        template: a plain template, see `question_prompt`.
        max_new_tokens: length of the longest answer.
        temperature, top_p: as in `Sampling`.
    """

    template: str | None = None
    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None

    def given(self) -> dict[str, Any]:
        """The values that are not None, for the notes of a session."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def over(self, earlier: dict[str, Any]) -> Manner:
        """This manner, with values of `earlier`, as `given` wrote them, where it has None."""
        known = {name: value for name, value in earlier.items() if name in asdict(self)}
        return replace(self, **(known | self.given()))

    def sampling(self, model: Any, otherwise: Sampling) -> Sampling:
        """How tokens are drawn: by this manner, else by the model's `generation_config`, else by `otherwise`.

        A `generation_config` decides on the temperature only if it sets `do_sample`: False is temperature 0.
        """
        config = model.generation_config
        found: dict[str, Any] = {"max_new_tokens": config.max_new_tokens}
        if config.do_sample is not None:
            draws = bool(config.do_sample)
            found |= {"temperature": _first(config.temperature, 1.0) if draws else 0.0}
            found |= {"top_p": _first(config.top_p, 1.0), "top_k": _first(config.top_k, 0)} if draws else {}
        found |= {name: value for name, value in self.given().items() if name != "template"}
        return replace(otherwise, **{name: value for name, value in found.items() if value is not None})


def _first(value: Any, otherwise: Any) -> Any:
    return otherwise if value is None else value


def answer(
    model: Any, tokenizer: Any, cache: Any, text: str, sampling: Sampling, streamer: Any = None
) -> tuple[str, Any]:
    """The text that the model generates after `text`, and a new cache after both; `cache` is not changed.

    The memories are updated if the cache's `learn` is set. An end token is not read into the new cache.

    Args:
        model, tokenizer: a Titans model, or one with a graft, and its tokenizer.
        cache: the state after the text before; None = the model's initial memory.
        text, sampling: the prompt, and how tokens are drawn.
        streamer: receives tokens as they come, see `generate()`.

    Raises:
        ValueError: the text has no token and the tokenizer no start token.
    """
    cache = new_cache(model) if cache is None else cache
    encoder, empty = TextEncoder(tokenizer), is_empty(cache)
    start = encoder.start if empty else []
    ids = torch.tensor([[*start, *encoder.chunk(text, empty).tolist()]], dtype=torch.int64)
    if ids.shape[1] == 0:
        raise ValueError("the text is empty; give some text to go on from")
    before = read(model, ids[:, :-1], cache)
    given = to_generate(model, before)
    (view,) = given.values()
    new = sampling.generate(model, tokenizer, ids[:, -1:].to(model.device), streamer, **given)
    after_generate(view, before)
    ended = new[0, -1].item() == tokenizer.eos_token_id
    after = view if ended else read(model, new[:, -1:], view)
    written = tokenizer.decode(new[0].tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return written, after
