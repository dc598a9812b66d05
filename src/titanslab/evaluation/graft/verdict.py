"""The controls of a graft in numbers and in words: the gain beyond the window, and the cause where there is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from titanslab.evaluation.graft.controls import CONDITIONS, FULL, OFF, ON, OTHER, WINDOW, Controls
from titanslab.evaluation.pictures import plot_controls
from titanslab.files import write_whole

LEAST_GAIN = 0.005  # nats per token; a smaller gain is none
SMALL_CHANGE = 1e-3  # nats per token, on average over tokens: the memory hardly changes an output
CLOSED = 0.01  # of theta's gate
LITTLE_ROOM = 0.01  # nats per token


def gains(controls: Controls) -> dict[str, float | None]:
    """Mean differences beyond the window in nats per token, None where one was not measured.

    "over_off", "over_other": the loss of memory off, or with another document's memory, less that with the memory on.
    "room": window alone less full context. "closed": window alone less memory on, as a share of the room, where both
    were measured.
    """

    def mean(first: str, second: str) -> float | None:
        if first not in controls.losses or second not in controls.losses:
            return None
        values = controls.beyond(first, second)
        return float(values.mean()) if len(values) else None

    room = mean(WINDOW, FULL)
    closed = None
    if room is not None and room > LITTLE_ROOM:
        measured = ~np.isnan(controls.losses[FULL])
        start = controls.window_size or 0
        better = (controls.losses[WINDOW] - controls.losses[ON])[:, start:][measured[:, start:]]
        closed = float(better.mean()) / room
    return {"over_off": mean(OFF, ON), "over_other": mean(OTHER, ON), "room": room, "closed": closed}


def _is_gain(controls: Controls, condition: str) -> bool:
    """Whether the memory lowers the loss of a condition by `LEAST_GAIN`, and by two standard errors."""
    found = controls.beyond(condition, ON)
    error = float(found.std()) / max(1, len(found)) ** 0.5
    return float(found.mean()) >= max(LEAST_GAIN, 2 * error)


def verdict(controls: Controls) -> str:
    """One line: whether the memory is used, and else the likely cause."""
    found, window = gains(controls), controls.window_size
    if not controls.memories:
        return 'This graft has no memory (layers = "none"), only a window.'
    off, other, room = found["over_off"], found["over_other"], found["room"]
    if off is None:
        return (
            f"The documents end within the window of {window:,} tokens, so that a memory has nothing to add; measure "
            "longer documents."
        )
    where = "" if window is None else f" beyond the window of {window:,} tokens"
    helps = _is_gain(controls, OFF)
    if helps and (other is None or _is_gain(controls, OTHER)):
        share = found["closed"]
        closed = "" if share is None else f"; that is {100 * share:.0f} % of the way from window alone to full context"
        closed = "; that is more than full context gives the base" if share is not None and share > 1 else closed
        against = "" if other is None else f", and with another document's by {other:.3f}"
        return f"The memory is used: without it{where} the loss rises by {off:.3f} nats per token{against}{closed}."
    changed = float(np.abs(controls.beyond(OFF, ON)).mean())
    if changed < SMALL_CHANGE:
        cause = (
            f"its outputs are near 0 (root mean square {controls.output:.1e}); train for more steps, with a higher "
            "training.learning_rate, or with graft.gate_ramp"
        )
    elif controls.write < CLOSED:
        cause = f"it hardly writes (theta's gate is {controls.write:.4f} on average); raise graft.theta_bias"
    elif helps:
        cause = (
            f"it lowers the loss by {off:.3f} nats per token, and another document's memory does so too, so that it "
            "serves as further weights; train for more steps, with graft.carry, on longer documents or with rows of "
            "data.task"
        )
    elif room is not None and room < LITTLE_ROOM:
        cause = f"these documents gain little from more context ({room:.3f} nats per token with all of it)"
    else:
        cause = f"it changes the loss by {-off:+.3f} nats per token; train for more steps, or on more documents"
    return f"The memory is not used{where}: {cause}."


def table(controls: Controls) -> Table:
    """The loss in nats per token, a row for each bucket of positions and a column for each condition."""
    shown = Table(title="loss in nats per token, by tokens of context")
    headings = {OTHER: "other's memory"}
    columns = {name: {b.first: b for b in controls.positions(name)} for name in controls.losses}
    for heading in ("context", "tokens", *columns):
        shown.add_column(headings.get(heading, heading), justify="right")
    for first, bucket in columns[ON].items():
        cells = (f"{column[first].loss:.3f}" if first in column else "-" for column in columns.values())
        shown.add_row(f"{bucket.first:,}-{bucket.last:,}", f"{bucket.tokens:,}", *cells)
    return shown


def write_controls(controls: Controls, path: Path, title: str, about: dict[str, Any]) -> list[Path]:
    """Write the controls as JSON to `path`, which ends in .json, and a picture beside it; returns both paths.

    `about`: values that the JSON has besides those of the controls.
    """
    positions = {name: controls.positions(name) for name in CONDITIONS if name in controls.losses}
    content = {
        **about,
        "window_size": controls.window_size,
        "documents": len(controls.losses[ON]),
        "tokens": int((~np.isnan(controls.losses[ON])).sum()),
        "verdict": verdict(controls),
        **gains(controls),
        "output": controls.output,
        "write": controls.write,
        "positions": {name: [vars(bucket) for bucket in found] for name, found in positions.items()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(content, indent=1) + "\n")
    picture = path.with_suffix(".png")
    plot_controls(positions, picture, title, controls.window_size)
    return [path, picture]
