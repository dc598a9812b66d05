"""Callbacks of the Trainer: metrics.jsonl, the progress bar, checkpoints, and the rising price of writes."""

import json
import math
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import torch
from msgspec import Meta, Struct
from transformers import TrainerCallback

from titanslab.documents import DocumentError, parse_json
from titanslab.files import naming, write_whole
from titanslab.progress import Progress
from titanslab.runs import checkpoints

METRICS = "metrics.jsonl"


class _Line(Struct):
    step: Annotated[int, Meta(ge=0)]


class MetricsWriter(TrainerCallback):
    """Appends a line of JSON per log to metrics.jsonl: step, loss, grad_norm, learning_rate, speed, eval_*.

    `of` is the number of the run's steps, fewer of which are done where `patience` ends it. Tokens are those of all
    devices. `bytes_per_token` turns a validation loss into bits per byte.
    """

    def __init__(self, path: Path, bytes_per_token: float | None = None) -> None:
        self.path, self.bytes_per_token = path, bytes_per_token
        self.last: dict[str, Any] = {}
        self.last_loss: float | None = None
        self._since = (time.perf_counter(), 0)  # time and tokens of the last log

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not logs or "train_runtime" in logs:
            return
        line: dict[str, Any] = {"step": state.global_step, "of": state.max_steps}
        now, tokens = time.perf_counter(), state.num_input_tokens_seen
        if "loss" in logs:
            line |= {name: logs[name] for name in ("loss", "grad_norm", "learning_rate") if name in logs}
            self.last_loss = logs["loss"]
            if tokens > self._since[1]:
                line["tokens_per_second"] = round((tokens - self._since[1]) / (now - self._since[0]), 1)
        if "eval_loss" in logs:
            line |= {name: logs[name] for name in ("eval_loss", "eval_accuracy") if name in logs}
            if self.bytes_per_token:
                line["eval_bits_per_byte"] = logs["eval_loss"] / math.log(2) / self.bytes_per_token
        line["tokens"] = tokens
        self._since, self.last = (now, tokens), line
        with naming(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._since = (time.perf_counter(), state.num_input_tokens_seen)  # the speed leaves out the time of saving

    on_train_begin = on_save


class ProgressLine(TrainerCallback):
    """Reports each step to a progress bar; losses and tokens per second of each log are its note.

    `counted`: how the note calls tokens.
    """

    def __init__(self, show: Progress, metrics: MetricsWriter, counted: str = "tokens") -> None:
        self.show, self.metrics, self.counted = show, metrics, counted

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.show(state.global_step, state.max_steps)

    on_step_end = on_train_begin

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if logs and ("loss" in logs or "eval_loss" in logs):
            line = self.metrics.last
            labels = {"loss": "loss", "eval_loss": "validation loss", "eval_bits_per_byte": "bits/byte"}
            labels |= {"eval_accuracy": "accuracy"}
            parts = [f"{label} {line[name]:.4f}" for name, label in labels.items() if name in line]
            parts += [f"{line['tokens_per_second']:,.0f} {self.counted}/s"] if "tokens_per_second" in line else []
            self.show(state.global_step, state.max_steps, ", ".join(parts))


class CheckpointCallback(TrainerCallback):
    """Marks a checkpoint as whole once every process has written its part, then drops the oldest ones.

    There is a log at each checkpoint, so that a resumed run averages its losses over the same steps.
    """

    def __init__(self, keep: int) -> None:
        self.keep = keep

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_log |= control.should_save

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()
        if state.is_world_process_zero:
            folder = Path(args.output_dir)
            checkpoints.mark_complete(folder / f"checkpoint-{state.global_step}")
            checkpoints.keep_newest(folder, self.keep)


def truncate_metrics(path: Path, step: int) -> None:
    """Drop the lines logged after `step` and a line that a kill cut off; the resumed run logs them again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(DocumentError):
            if parse_json(line, _Line, origin=str(path), finite=False).step <= step:
                kept.append(line)
    write_whole(path, "".join(line + "\n" for line in kept))
