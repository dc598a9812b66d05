"""The settings of the quickstart: models, length of the training, and questions."""

from __future__ import annotations

from dataclasses import dataclass, replace

from titanslab.memory import MemoryConfig
from titanslab.models.config import TitansConfig

TEMPLATE = " ({key}={value})"


@dataclass(frozen=True)
class Settings:
    """Sizes of a run.

    Args:
        steps: the most training steps; `train_seconds` may end the training before. The learning rate reaches its
            last value in both cases.
        train_seconds: the time limit for the Titans; the window-only model then reads exactly as many bytes.
        batch_size, length: the rows of a step and their length in bytes.
        longer: factors on `length` that steps take in turn after `short_share` of the training, with fewer rows.
        answer_weight: the weight of a byte of an answer in the loss of both models; other bytes have weight 1.
        training_facts: numbers of facts in a row, taken in turn. Rows with few facts teach the form of a fact, long
            before rows with many can teach which value belongs to which name.
        num_facts: the number of facts in a row of validation and questions.
        gap: the mean number of bytes between two facts, which stand at the ends of clauses.
        distances: numbers of bytes from a value to the question for it.
        questions: the number of questions per distance.
        window, conv_size: bytes that attention sees, and taps of the short convolutions of both models.
    """

    steps: int = 450
    train_seconds: float = 110.0
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
    conv_size: int = 4
    layers: int = 2
    hidden_size: int = 128

    def shape(self, step: int, share: float) -> tuple[int, int]:
        """The rows of a training step and the bytes of a row; their product is constant."""
        times = 1 if share < self.short_share else self.longer[step % len(self.longer)]
        return self.batch_size // times, self.length * times

    @property
    def reach(self) -> int:
        """The number of bytes from which information can pass through the windows and convolutions of all blocks."""
        return self.layers * (self.window - 1 + self.conv_size - 1) + 1

    def config(self, variant: str) -> TitansConfig:
        """The config of the Titans ("lmm") or of a model of equal size with a window alone ("attention").

        The queries, keys and values of both have short convolutions and start in the same way, so that both can learn
        the task from this little text within their reach.
        """
        return TitansConfig(
            variant=variant,
            vocab_size=260,
            hidden_size=self.hidden_size,
            intermediate_size=256 if variant == "lmm" else 352,
            num_hidden_layers=self.layers,
            num_attention_heads=4,
            memory=MemoryConfig(
                num_heads=2,
                expansion=1,
                conv_size=self.conv_size,
                half_lives=(256.0, 16384.0),
                chunk_coherence=0.0,  # facts are seen once: full writes recall 75 % beyond the window, others 63 %
            ),
            attention_conv_size=self.conv_size if variant == "attention" else 1,
            window_size=self.window,
            num_persistent_tokens=0,
            bos_token_id=256,
            eos_token_id=257,
            pad_token_id=258,
        )


def settings(minutes: float | None = None, smoke: bool = False) -> Settings:
    """The default settings; `minutes` limits the Titans' training, `smoke` gives a run of seconds without learning."""
    chosen = Settings()
    if smoke:
        chosen = Settings(
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
