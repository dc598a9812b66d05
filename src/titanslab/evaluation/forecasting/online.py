"""Online: a model that goes on learning over a stream of windows, which it scores first and learns from later."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from titanslab.data.series import SeriesWindows
from titanslab.evaluation.forecasting.predict import Forecasts, batch_of, forecast
from titanslab.evaluation.forecasting.refit import LinearRegression, arrays
from titanslab.tasks.forecasting import Scores

WEIGHTS = ("none", "memory", "all")


@dataclass(frozen=True)
class Online:
    """How a model learns on a stream.

    Windows are forecast in blocks. Everything learned for a block comes from rows before the history's end of its
    first window, so that nothing is scored after it was seen, and no target is used before its time.

    Args:
        carry: the memory is carried over the stream: it reads every row once, in windows that do not overlap, and a
            window's forecast starts from the memory after the last of them that ends before its history begins.
        weights: gradient steps on finished windows, those whose targets all lie before the block: "none", on the
            memory's start M_0 alone ("memory"), or on "all" parameters. Every finished window is learned from once.
        every: windows in a block, and from one step to the next; None = the history's length with `carry`, else the
            prediction length.
        rate: learning rate of the steps, by Adam.
        batch_size: finished windows of one step.
    """

    carry: bool = False
    weights: str = "none"
    every: int | None = None
    rate: float = 1e-4
    batch_size: int = 32

    def __post_init__(self) -> None:
        if self.weights not in WEIGHTS:
            raise ValueError(f"weights must be one of {', '.join(WEIGHTS)}, got {self.weights!r}")


@dataclass
class Stream:
    """Scores of a stream: of all windows, and of each block.

    Args:
        scores: over all windows.
        blocks: first window and MSE of each block.
    """

    scores: Scores
    blocks: list[tuple[int, float]] = field(default_factory=list)

    def add(self, start: int, found: Forecasts) -> None:
        """Add the forecasts of the block that begins with window `start`."""
        self.scores.add(found.point, found.target, found.observed, found.quantiles)
        error = (found.point.astype(np.float64) - found.target)[found.observed]
        self.blocks.append((start, float((error**2).mean()) if len(error) else float("nan")))


def score_stream(
    model: Any,
    windows: SeriesWindows,
    online: Online,
    device: Any,
    progress: Callable[[int, int], object] | None = None,
) -> Stream:
    """Score the windows of one series in their order, with learning as `online` says.

    The model itself does not change: weights are learned in a copy.

    Raises:
        ValueError: windows of several series, or a model that has no memory for what is asked.
    """
    check_stream(model, windows, online)
    stream, learner = Stream(Scores(model.config.quantiles)), None
    if online.weights != "none":
        model = copy.deepcopy(model)
        learner = Learner(model, windows, online, device)
    state = None
    for block in blocks(windows, online):
        if learner is not None:
            learner.learn_before(block.start)
        options = {"state": None if state is None else _rows(state, len(block))} if online.carry else {}
        batch = batch_of(windows, block, device)
        stream.add(block.start, forecast(model, batch, **options)[0])
        if online.carry:  # the first window's history is the next stretch of rows that the memory reads
            first = {name: tensor[:1] for name, tensor in batch.items()}
            state = forecast(model, first, state=state, return_state=True)[1]
        if progress is not None:
            progress(block.stop, len(windows))
    return stream


def check_stream(model: Any, windows: SeriesWindows, online: Online) -> None:
    """ValueError unless the windows are a stream, and the model has what is to learn."""
    check_one_series(windows)
    memories = [name for name, _ in model.named_parameters() if "memory_weights" in name]
    if (online.carry or online.weights == "memory") and not memories:
        raise ValueError(
            "the model has no memory that could be carried or learn; train one with sequence_module lmm, mac, mag or "
            "mal"
        )
    history = model.config.history_length
    if online.carry and online.every not in (None, history):
        raise ValueError(
            f"every must be {history}, the rows of a history, for a memory that is carried; got {online.every}"
        )


def check_one_series(windows: SeriesWindows) -> None:
    """ValueError for windows of several series, which are no stream."""
    if len(windows.values) != 1:
        raise ValueError(f"learning on a stream needs one series with its columns, got {len(windows.values)} series")


def blocks(windows: SeriesWindows, online: Online) -> Iterator[range]:
    """The blocks of windows in which a stream is scored."""
    every = online.every or (windows.context_length if online.carry else windows.prediction_length)
    for start in range(0, len(windows), every):
        yield range(start, min(start + every, len(windows)))


def finished(windows: SeriesWindows, start: int) -> int:
    """The number of windows whose targets are all known when window `start` is forecast.

    Window s has its targets in rows s + L .. s + L + H - 1, and the history of window `start` ends with row
    start + L - 1, so that s may be start - H at most.
    """
    return max(0, start - windows.prediction_length + 1)


class Learner:
    """Gradient steps of a model on the finished windows of a stream, each window once."""

    def __init__(self, model: Any, windows: SeriesWindows, online: Online, device: Any) -> None:
        self.model, self.windows, self.online, self.device = model, windows, online, device
        named = model.named_parameters()
        wanted = {n: p for n, p in named if online.weights == "all" or "memory_weights" in n}
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in wanted)
        self.optimizer = torch.optim.Adam(wanted.values(), lr=online.rate)
        self.done = 0

    def learn_before(self, start: int) -> None:
        """Learn from the windows that are finished when window `start` is forecast and were not learned from before."""
        end, size = finished(self.windows, start), self.online.batch_size
        for first in range(self.done, end, size):
            batch = batch_of(self.windows, range(first, min(first + size, end)), self.device)
            self.optimizer.zero_grad()
            self.model(**batch).loss.backward()
            self.optimizer.step()
        self.done = max(self.done, end)


def score_refitted(windows: SeriesWindows, linear: LinearRegression, every: int | None, refit: bool) -> Stream:
    """A linear regression on the same stream, with `refit` fitted anew before each block to all finished windows too.

    Args:
        windows: of the stream.
        linear: fitted to the training windows; with `refit` it learns in a copy.
        every: windows in a block; None = the prediction length.
        refit: False scores it as it is.
    """
    linear, stream, done = copy.deepcopy(linear), Stream(Scores()), 0
    for block in blocks(windows, Online(every=every)):
        end = finished(windows, block.start)
        if refit and end > done:
            linear.add(*arrays(windows, range(done, end)))
            linear.solve()
            done = end
        batch = batch_of(windows, block, "cpu")
        past, observed, target, there = (
            batch[name].numpy()
            for name in ("past_values", "past_observed_mask", "future_values", "future_observed_mask")
        )
        stream.add(block.start, Forecasts(linear.predict(past, observed), target, there, None))
    return stream


def _rows(state: Any, count: int) -> Any:
    """The state of one window's columns for `count` windows with the same columns."""
    return tuple(
        None if block is None else block.map(lambda t: t.repeat(count, *[1] * (t.dim() - 1))) for block in state
    )
