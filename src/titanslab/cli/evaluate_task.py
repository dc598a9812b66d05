"""What `titans evaluate niah` and `titans evaluate babilong` share: load, run, show, keep."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from titanslab.cli.errors import Interrupted

if TYPE_CHECKING:
    from titanslab.evaluation.run_task import Cell
    from titanslab.tasks.tokens import TokenCounter


@dataclass(frozen=True)
class TaskRun:
    """The options that both verbs have."""

    model: str
    output: Path
    samples: int
    seed: int
    max_new_tokens: int
    batch_size: int
    batch_tokens: int
    piece: int
    device: str
    tokenizer_for_length: str | None
    sample_cache: Path | None
    learn: bool = True


def default_output(model: str, task: str) -> Path:
    """Where results go when nobody says."""
    return Path(model) / "evaluation" / task


def run_task_verb(
    run: TaskRun,
    make_cells: Callable[[TokenCounter, str], list[Cell]],
    settings: dict[str, Any],
    *,
    kilo: int,
    title: str,
    heat_map: Callable[[Sequence[dict[str, Any]], Path], None],
) -> None:
    """Answer what is left to answer, print the table, write summary.json and heat_map.png."""
    from titanslab.cli.devices import pick_device
    from titanslab.cli.quiet import quiet_libraries
    from titanslab.training.loading import find_model_folder

    folder = find_model_folder(run.model)
    place = pick_device(run.device)
    quiet_libraries()
    from rich.console import Console

    from titanslab.data import padding_id
    from titanslab.evaluation.decode import GreedyAnswerer
    from titanslab.evaluation.results import write_whole
    from titanslab.evaluation.run_task import run_cells
    from titanslab.evaluation.sample_cache import file_identity, fingerprint
    from titanslab.evaluation.task_progress import TaskProgress
    from titanslab.evaluation.task_summary import summarise, table
    from titanslab.tasks.tokens import TokenCounter, load_counter
    from titanslab.training.loading import load_model, load_model_tokenizer

    tokenizer = load_model_tokenizer(run.model)
    if run.tokenizer_for_length is None:
        # The same tokenizer in another folder makes the same samples.
        counter, name = TokenCounter(tokenizer), f"model {_vocabulary(tokenizer)}"
    else:
        counter, name = load_counter(run.tokenizer_for_length), run.tokenizer_for_length
    cells = make_cells(counter, name)
    network: Any = load_model(run.model).to(place)
    ends = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    pad = padding_id(tokenizer)
    answer = GreedyAnswerer(
        network,
        max_new_tokens=run.max_new_tokens,
        piece=run.piece,
        pad_token_id=pad,
        eos_token_ids=ends,
        learn=run.learn,
    )
    weights = fingerprint({"files": [file_identity(f) for f in sorted(folder.glob("*.safetensors"))]})
    settings = {
        "model": str(folder.resolve()),
        "weights": weights,
        "seed": run.seed,
        "max_new_tokens": run.max_new_tokens,
        "tokenizer_for_length": name,
        **({} if run.learn else {"learn": False}),
        **settings,
    }
    try:
        with TaskProgress() as progress:
            records = run_cells(
                cells,
                answer,
                tokenizer,
                run.output,
                num_samples=run.samples,
                settings=settings,
                batch_size=run.batch_size,
                batch_tokens=run.batch_tokens,
                sample_folder=run.sample_cache or run.output / "samples",
                progress=progress,
            )
    except KeyboardInterrupt:
        raise Interrupted(f"stopped; finished answers are in {run.output}, the same command goes on") from None
    summary = summarise(records)
    write_whole(run.output / "summary.json", json.dumps(summary, indent=1) + "\n")
    heat_map(records, run.output / "heat_map.png")
    console = Console()
    for score in summary[0]["scores"]:
        console.print(table(summary, f"{title}: {score}, {run.samples} samples", kilo, score))
    console.print(f"written: {run.output}/results.jsonl, summary.json, heat_map.png", soft_wrap=True)


def _vocabulary(tokenizer: Any) -> str:
    from titanslab.evaluation.sample_cache import fingerprint

    return fingerprint({"vocabulary": tokenizer.get_vocab(), "kind": type(tokenizer).__name__})
