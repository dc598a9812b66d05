"""Stopping a run on a signal: the running step ends, a checkpoint is saved, and nothing is lost."""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import torch
from transformers import TrainerCallback

SIGNALS = (signal.SIGINT, signal.SIGTERM)
MESSAGE = "\nstopping at the end of this step, with a checkpoint; press Ctrl-C again to stop at once\n"


class StopOnSignal(TrainerCallback):
    """While it is entered, the first SIGINT or SIGTERM saves a checkpoint at the end of the step and ends the training.

    A second signal raises KeyboardInterrupt at once. In a thread other than the main one signals stay as they are.

    Attributes:
        asked: a signal has come.
        stopped: it has ended the training.
    """

    def __init__(self, message: str = MESSAGE) -> None:
        self.message, self.asked, self.stopped = message, False, False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopOnSignal":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        os.write(2, self.message.encode())  # print() may be at work, and cannot be called inside itself

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        asked = self.asked
        if args.world_size > 1:  # all processes stop at the same step
            flag = torch.tensor(float(asked), device=args.device)
            torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
            asked = bool(flag)
        if asked and state.global_step < state.max_steps:
            control.should_log = control.should_save = control.should_training_stop = self.stopped = True
        return control
