"""What a run says while it goes: metrics.jsonl for machines, a progress line for people."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from titanslab.files import write_whole

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
    """A bar on a terminal, a line per log elsewhere: step, loss, tokens per second and time left."""

    def __init__(self, metrics: MetricsWriter) -> None:
        self.metrics = metrics
        self._bar: Any = None
        self._start = (0.0, 0)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._start = (time.perf_counter(), state.global_step)
        if not state.is_world_process_zero or not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True))
        self._task = self._bar.add_task("training", total=state.max_steps, completed=state.global_step, note="")
        self._bar.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not logs or not ("loss" in logs or "eval_loss" in logs):
            return
        note = _note(self.metrics.last)
        if self._bar is not None:
            self._bar.update(self._task, note=note)
            return
        done = state.global_step - self._start[1]
        left = (time.perf_counter() - self._start[0]) / max(1, done) * (state.max_steps - state.global_step)
        print(
            f"step {state.global_step}/{state.max_steps}  {note}  {_duration(left)} left",
            file=sys.stderr,
            flush=True,
        )

    def close(self) -> None:
        """Take the bar off the screen, also after an error."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

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
    return "  ".join(parts)


def _duration(seconds: float) -> str:
    seconds = int(seconds)
    if seconds >= 3600:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
    return f"{seconds // 60} min {seconds % 60:02d} s" if seconds >= 60 else f"{seconds} s"
