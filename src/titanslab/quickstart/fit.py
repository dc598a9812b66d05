"""The training loop of the quickstart.

It is not the Hugging Face Trainer, because two models read the same batches, a time limit may end a run, and the
learning rate must have reached its last value by then.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from titanslab.progress import Progress
from titanslab.quickstart.corpus import Facts
from titanslab.tasks.recall.samples import RecallBatch

LAST_RATE = 0.05  # last learning rate as a share of the highest
SMOOTHING = 0.95  # weight of the running mean in the losses that are shown


@dataclass
class Fit:
    """The record of a training run: at each step the loss and the share of the training that was done.

    Another run can repeat its steps and learning rates.
    """

    shares: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0


def fit(model: Any, facts: Facts, seed: int, *, follow: Fit | None = None, show: Progress | None = None) -> Fit:
    """Train `model` in place.

    Args:
        model: a model of the quickstart.
        facts: the rows.
        seed: of the rows.
        follow: the record of a run whose steps and learning rates are repeated; None = the settings' own limits.
        show: called with the share of the training that is done, 1, and the losses.

    Raises:
        RuntimeError: a loss is not finite.
    """
    s, result, start = facts.settings, Fit(), time.perf_counter()
    decayed = set(model.decay_parameter_names())
    groups: list[dict[str, Any]] = [{"params": [], "weight_decay": decay} for decay in (0.0, 0.1)]
    for name, parameter in model.named_parameters():
        groups[name in decayed]["params"].append(parameter)
    optimizer = torch.optim.AdamW(groups, lr=s.learning_rate, betas=(0.9, 0.95))
    smooth: Tensor | None = None
    model.train()

    def done(step: int, steps: int) -> float:
        """The share of the training before a step; the time limit counts only where no other run is repeated."""
        return max(step / steps, 0.0 if follow else (time.perf_counter() - start) / s.train_seconds)

    steps = len(follow.shares) if follow else s.steps
    for step in range(steps):
        share = follow.shares[step] if follow else done(step, steps)
        if share >= 1:
            break
        batch = facts.training_batch(seed, step, share)
        warm = min(1.0, (step + 1) / s.warmup)
        rate = warm * (LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * share)))
        for group in optimizer.param_groups:
            group["lr"] = s.learning_rate * rate
        losses = token_losses(model(input_ids=batch.input_ids, use_cache=False).logits, batch)
        scored, answers = batch.labels[:, 1:] != -100, batch.answer[:, 1:] > 0
        weights = scored + (s.answer_weight - 1) * answers
        loss = (losses * weights).sum() / weights.sum()
        if not torch.isfinite(loss):
            raise RuntimeError(f"the loss of step {step + 1} is {loss.item()}; nothing was written")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        plain = losses.detach()  # the means over all scored bytes and over those of answers, without weights
        now = torch.stack((plain.sum() / scored.sum(), plain[answers].sum() / answers.sum().clamp(min=1)))
        result.shares.append(share)
        result.losses.append(now[0].item())
        smooth = now if smooth is None else now.lerp(smooth, SMOOTHING)
        if show is not None:
            note = f"step {step + 1}, loss {smooth[0]:.2f}, of answers {smooth[1]:.2f}"
            show(min(done(step + 1, steps), 1.0), 1.0, note)
    result.seconds = time.perf_counter() - start
    model.eval()
    return result


def fastest_threads(make_model: Callable[[], Any], facts: Facts, seed: int) -> int:
    """The faster of one thread and all threads of torch, measured by short training; torch's setting is restored.

    If other programs keep the cores busy, many threads that wait for one another can be many times slower.
    """
    before = torch.get_num_threads()
    if before == 1:
        return 1
    trial = Facts(replace(facts.settings, steps=1, train_seconds=math.inf))
    seconds = {}
    try:
        for threads in (1, before):
            torch.set_num_threads(threads)
            model = make_model()
            fit(model, trial, seed)  # the first step compiles kernels and fills caches
            seconds[threads] = fit(model, trial, seed).seconds
    finally:
        torch.set_num_threads(before)
    return min(seconds, key=seconds.__getitem__)


def token_losses(logits: Tensor, batch: RecallBatch) -> Tensor:
    """Cross-entropy in nats `[B, T-1]` of each next token; 0 for tokens that are not scored."""
    logits, labels = logits[:, :-1], batch.labels[:, 1:]
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="none")
    return losses.view(labels.shape)
