"""What a run says while it goes: metrics.jsonl for machines, a progress line for people."""

from __future__ import annotations

import json
import math
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from titanslab.files import write_whole
from titanslab.progress import Progress, bar

METRICS = "metrics.jsonl"


class MetricsWriter(TrainerCallback):
    """Appends a line of JSON per log to metrics.jsonl: step, loss, grad_norm, learning_rate, speed, eval_*.

    Tokens are those of all devices; `bytes_per_token` turns a validation loss into bits per byte.
    """

    def __init__(self, path: Path, bytes_per_token: float | None = None) -> None:
        self.path, self.bytes_per_token = path, bytes_per_token
        self.last: dict[str, Any] = {}
        self.last_loss: float | None = None
        self._since: tuple[float, int] | None = None
        self._pause = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._since = (time.perf_counter(), state.num_input_tokens_seen)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not logs or "train_runtime" in logs:
            return
        line: dict[str, Any] = {"step": state.global_step}
        now = time.perf_counter()
        if "loss" in logs:
            line |= {name: logs[name] for name in ("loss", "grad_norm", "learning_rate") if name in logs}
            self.last_loss = logs["loss"]
            if self._since is not None and state.num_input_tokens_seen > self._since[1]:
                seconds = now - self._since[0]
                line["tokens_per_second"] = round((state.num_input_tokens_seen - self._since[1]) / seconds, 1)
        if "eval_loss" in logs:
            line["eval_loss"] = logs["eval_loss"]
            if self.bytes_per_token:
                line["eval_bits_per_byte"] = logs["eval_loss"] / math.log(2) / self.bytes_per_token
        line["tokens"] = state.num_input_tokens_seen
        self._since = (now, state.num_input_tokens_seen)
        self.last = line
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._since = (time.perf_counter(), state.num_input_tokens_seen)  # saving is not training


class SaveAtLogs(TrainerCallback):
    """Logs whenever a checkpoint is written, so that a resumed run averages losses over the same steps."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if control.should_save:
            control.should_log = True
        return control


class ProgressLine(TrainerCallback):
    """Shows step, loss, tokens per second and time left: a bar on a terminal, elsewhere a line per log."""

    def __init__(self, metrics: MetricsWriter) -> None:
        self.metrics = metrics
        self._open = ExitStack()
        self._show: Progress | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            opened = bar("training", "steps", start=state.global_step, every=None, keep=True)
            self._show = self._open.enter_context(opened)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._show is not None:
            self._show(state.global_step, state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if self._show is not None and logs and ("loss" in logs or "eval_loss" in logs):
            self._show(state.global_step, state.max_steps, _note(self.metrics.last))

    def close(self) -> None:
        """Take the bar off the screen, also after an error."""
        self._open.close()
        self._show = None

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.close()


def truncate_metrics(path: Path, step: int) -> None:
    """Drop what was logged after `step`, and a line cut off by a kill: the resumed run logs it again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
    write_whole(path, "".join(line + "\n" for line in kept))


def _note(line: dict[str, Any]) -> str:
    parts = []
    for name, label in (
        ("loss", "loss"),
        ("eval_loss", "validation loss"),
        ("eval_bits_per_byte", "bits/byte"),
    ):
        if name in line:
            parts.append(f"{label} {line[name]:.4f}")
    if "tokens_per_second" in line:
        parts.append(f"{line['tokens_per_second']:,.0f} tokens/s")
    return ", ".join(parts)
