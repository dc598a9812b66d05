"""What the quickstart trains, for how long, and what it asks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from titanslab.memory import MemoryConfig
from titanslab.models.config import TitansConfig

TEMPLATE = " ({key}={value})"


@dataclass(frozen=True)
class Settings:
    """Sizes of a run.

    Args:
        steps: at most; `train_seconds` may end it before, and the learning rate falls to its end either way.
        train_seconds: for the Titans; the window-only model then reads exactly as many bytes.
        batch_size, length: rows of a step and their bytes.
        longer: after `short_share` of the way steps take turns with rows so many times as long, and fewer.
        answer_weight: what a byte of an answer counts in the loss, other bytes 1; the same for both models.
        training_facts: names in a row; rows take turns. Rows with few teach what a fact is, long before those
            with many can teach whose it is.
        num_facts: names in a row of validation and questions.
        gap: bytes of text between two facts, on average and to the end of a clause.
        distances: bytes from a value to the question for it.
        questions: asked per distance.
    """

    steps: int
    train_seconds: float
    batch_size: int = 8
    length: int = 256
    longer: tuple[int, ...] = (1, 2, 4)
    learning_rate: float = 3e-3
    warmup: int = 20
    short_share: float = 0.25
    answer_weight: float = 8.0
    training_facts: tuple[int, ...] = (1, 2, 4, 8)
    num_facts: int = 4
    value_digits: int = 2
    gap: int = 1
    distances: tuple[int, ...] = (24, 96, 192, 384, 768, 1536, 3072)
    questions: int = 64
    validation_rows: int = 16
    sample_bytes: int = 160
    window: int = 32
    layers: int = 2
    hidden_size: int = 128

    def shape(self, step: int, share: float) -> tuple[int, int]:
        """Rows and bytes per row of a training step; their product never changes."""
        times = 1 if share < self.short_share else self.longer[step % len(self.longer)]
        return self.batch_size // times, self.length * times

    @property
    def reach(self) -> int:
        """Bytes that any information can come from through the windows of all blocks."""
        return self.layers * (self.window - 1) + 1

    def config(self, variant: str) -> TitansConfig:
        """The Titans ("lmm") or, with "attention", the same trunk of equal size with a window alone."""
        sizes: dict[str, Any] = {"lmm": {"intermediate_size": 256}, "attention": {"intermediate_size": 352}}
        return TitansConfig(
            variant=variant,
            vocab_size=260,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.layers,
            num_attention_heads=4,
            memory=MemoryConfig(num_heads=2, expansion=1, half_lives=(256.0, 16384.0)),
            window_size=self.window,
            num_persistent_tokens=0,
            bos_token_id=256,
            eos_token_id=257,
            pad_token_id=258,
            **sizes[variant],
        )


def settings(minutes: float | None = None, smoke: bool = False) -> Settings:
    """The defaults; `minutes` bounds the Titans' training, `smoke` is a run of seconds that learns nothing."""
    chosen = Settings(steps=450, train_seconds=150.0)
    if smoke:
        chosen = replace(
            chosen,
            steps=2,
            batch_size=2,
            longer=(1, 2),
            length=64,
            distances=(16, 96),
            questions=2,
            validation_rows=1,
            sample_bytes=4,
            hidden_size=64,
        )
    if minutes is not None:
        if minutes <= 0:
            raise ValueError(f"minutes must be above 0, got {minutes}")
        chosen = replace(chosen, steps=100_000, train_seconds=60.0 * minutes)
    return chosen
