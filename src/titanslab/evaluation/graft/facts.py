"""Facts in running text, asked some tokens after they stood there, with the memories of a graft on and off."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from titanslab.evaluation.graft.controls import OFF, ON
from titanslab.graft import graft_of
from titanslab.graft.pieces import read_pieces
from titanslab.tasks.recall.samples import RecallBatch, RecallTask, answers_right

ROWS_AT_ONCE = 8


def facts_recalled(
    model: Any,
    task: RecallTask,
    distances: Sequence[int],
    *,
    samples: int = 20,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, dict[int, float]]:
    """The share of facts whose value is right in every token, by condition ("memory on", "memory off") and distance.

    Each row is running text with facts; the question is that for the first one. The value counts as right if each of
    its tokens has the highest score given the tokens before, as greedy generation would find it.

    Args:
        model: a grafted model; it is in evaluation mode afterwards.
        task: makes the questions, of the model's tokenizer.
        distances: tokens from a fact's value to its question's.
        samples: questions at each distance.
        seed: of the questions.
        progress: called with the tokens read and all tokens.
    """
    graft = graft_of(model.eval())
    conditions = (ON, OFF) if graft.memories else (ON,)
    total, done = len(conditions) * samples * sum(distances), 0
    found: dict[str, dict[int, float]] = {name: {} for name in conditions}
    for distance in distances:
        batch = task.questions(distance, samples, seed)
        for name in conditions:
            right = []
            for start in range(0, samples, ROWS_AT_ONCE):
                rows = RecallBatch(*(tensor[start : start + ROWS_AT_ONCE] for tensor in batch))
                if name == ON:
                    predicted = _predictions(model, rows)
                else:
                    with graft.window_alone():
                        predicted = _predictions(model, rows)
                right.append(answers_right(predicted, rows))
                done += len(rows.input_ids) * distance
                if progress is not None:
                    progress(done, total)
            found[name][distance] = float(torch.cat(right).float().mean())
    return found


@torch.no_grad()
def _predictions(model: Any, rows: RecallBatch) -> torch.Tensor:
    """The likeliest token at each position given the tokens before, int64 `[B, T]`; -1 where it is not asked for."""
    decoder = graft_of(model).decoder
    body: Any = decoder.body
    ids = rows.input_ids.to(next(body.parameters()).device)
    first = int((rows.answer > 0).nonzero()[:, 1].min()) - 1  # the last token before an answer
    cache = graft_of(model).cache()
    for after in read_pieces(model, ids[:, :first]):
        cache = after
    logits = model(input_ids=ids[:, first:], use_cache=True, **{decoder.cache_name: cache}).logits
    predicted = torch.full_like(rows.input_ids, -1)
    predicted[:, first + 1 :] = logits[:, :-1].argmax(-1).cpu()
    return predicted
