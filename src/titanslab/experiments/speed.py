"""Training steps of a row's model, timed at several lengths in a process of its own, with nothing beside it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from titanslab.documents import reason
from titanslab.experiments.record import read_record, write_record

if TYPE_CHECKING:
    from titanslab.experiments.sections import Speed
    from titanslab.training.recipe import Recipe

RESULT = "speed.json"


def time_steps(recipe: Recipe, tokenizer: Any, settings: Speed, lengths: Sequence[int], device: Any) -> list[dict]:
    """The tokens a second of a step, forward and backward with the optimiser, at each length.

    Args:
        recipe: of a first stage; its model is new, and its batch size is not used.
        tokenizer: its size is the vocabulary.
        settings: tokens of a step, and the number of timed steps after one that is not timed.
        lengths: tokens of a row.
        device: of the model.

    Returns:
        For each length the batch, the seconds of each step and the tokens a second of the median; or `error` in the
        place of these, where the step does not fit into memory.
    """
    import torch

    from titanslab.training.model import build_model

    torch.manual_seed(recipe.training.seed)
    model = build_model(recipe, tokenizer).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    found: list[dict] = []
    for length in lengths:
        batch = max(1, settings.tokens // length)
        ids = torch.randint(0, len(tokenizer), (batch, length), device=device)
        seconds = []
        try:
            for _ in range(1 + settings.repeats):
                start = _now(device)
                model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                seconds.append(_now(device) - start)
        except (RuntimeError, MemoryError) as error:
            found.append({"length": length, "batch": batch, "error": reason(error)})
            break
        rate = batch * length / statistics.median(seconds[1:])
        timed = [round(value, 4) for value in seconds[1:]]
        found.append({"length": length, "batch": batch, "seconds": timed, "tokens_per_second": round(rate, 1)})
    return found


def time_once(
    recipe: Recipe, tokenizer: Any, settings: Speed, lengths: Sequence[int], folder: Path, device: Any
) -> None:
    """`time_steps`, written to speed.json in `folder`; a file with the same settings is kept."""
    import torch

    from titanslab.runs.versions import machine

    wanted = wanted_settings(settings, lengths)
    if read(folder).get("settings") == wanted:
        return
    results = time_steps(recipe, tokenizer, settings, lengths, device)
    content = {"settings": wanted, "threads": torch.get_num_threads(), "machine": machine(device), "results": results}
    write_record(folder / RESULT, content)


def wanted_settings(settings: Speed, lengths: Sequence[int]) -> dict[str, Any]:
    """The settings on which the file speed.json depends."""
    return {"lengths": list(lengths), "tokens": settings.tokens, "repeats": settings.repeats}


def read(folder: Path) -> dict[str, Any]:
    """The content of speed.json; empty without that file."""
    return read_record(folder / RESULT)


def _now(device: Any) -> float:
    import torch

    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter()
