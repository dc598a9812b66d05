"""Asks a model, named by its folder, the samples of a task: loaded, identified, answered, resumed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from titanslab.data.encode import TokenCounter
    from titanslab.evaluation.run_task import Cell


@dataclass(frozen=True)
class TaskRun:
    """What is asked of which model, and how.

    Args:
        model: folder of a run or of a Hugging Face model.
        output: folder of `results.jsonl` and `settings.json`.
        samples: per task and length.
        seed: of the samples.
        max_new_tokens: of an answer.
        batch_size, batch_tokens: most prompts, and most prompt tokens, at once.
        piece: tokens read at once.
        device: where the model runs.
        tokenizer_for_length: what counts lengths; None = the model's own.
        sample_cache: folder that keeps samples for the next time; None = in `output`.
        learn: False freezes the memories.
        forget: False sets their alpha to 0, `memory_forgetting = False` in the config.
    """

    model: str
    output: Path
    samples: int
    seed: int
    max_new_tokens: int
    batch_size: int
    batch_tokens: int
    piece: int
    device: torch.device
    tokenizer_for_length: str | None
    sample_cache: Path | None
    learn: bool = True
    forget: bool = True


def end_tokens(tokenizer: Any, model: Any) -> list[int]:
    """The tokens that end an answer: the tokenizer's, and those of the model's `generation_config`."""
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found = [tokenizer.eos_token_id, *(named if isinstance(named, list | tuple) else [named])]
    return sorted({int(token) for token in found if token is not None})


def run_model(
    run: TaskRun,
    make_cells: Callable[[TokenCounter, str], Sequence[Cell]],
    settings: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Answer what is left to answer, with a progress bar; the records of `run_cells`.

    Args:
        run: the model and how it is asked.
        make_cells: from what counts tokens, and its name, to what is asked.
        settings: what else decides an answer; a folder made under others is refused.
    """
    from titanslab.data import padding_id
    from titanslab.data.encode import TokenCounter, load_counter, tokenizer_identity
    from titanslab.evaluation.decode import GreedyAnswerer
    from titanslab.evaluation.run_task import run_cells
    from titanslab.files import file_identity, fingerprint
    from titanslab.progress import bar
    from titanslab.runs.loading import find_model_folder, load_config, load_model, load_model_tokenizer

    folder = find_model_folder(run.model)
    tokenizer = load_model_tokenizer(run.model)
    own = run.tokenizer_for_length is None
    counter = TokenCounter(tokenizer) if own else load_counter(run.tokenizer_for_length or "")
    # the same tokenizer in another folder makes the same samples, another one at the same place does not
    name = tokenizer_identity(counter.tokenizer)
    cells = make_cells(counter, name)
    if not run.forget and getattr(load_config(run.model), "variant", "attention") == "attention":
        raise ValueError("forget=False keeps a memory from fading, and this model has none")
    network: Any = load_model(run.model, **({} if run.forget else {"memory_forgetting": False}))
    answer = GreedyAnswerer(
        network.to(run.device),
        max_new_tokens=run.max_new_tokens,
        piece=run.piece,
        pad_token_id=padding_id(tokenizer),
        eos_token_ids=end_tokens(tokenizer, network),
        learn=run.learn,
    )
    identified = {
        "weights": fingerprint({"files": [file_identity(f) for f in sorted(folder.glob("*.safetensors"))]}),
        "config": fingerprint({"file": file_identity(folder / "config.json")}),
        "tokenizer": name if own else tokenizer_identity(tokenizer),
        "seed": run.seed,
        "max_new_tokens": run.max_new_tokens,
        "tokenizer_for_length": name,
        **({} if run.learn else {"learn": False}),
        **({} if run.forget else {"forget": False}),
        **settings,
    }
    with bar("asking", "tokens") as progress:
        return run_cells(
            cells,
            answer,
            tokenizer,
            run.output,
            num_samples=run.samples,
            settings=identified,
            batch_size=run.batch_size,
            batch_tokens=run.batch_tokens,
            sample_folder=run.sample_cache or run.output / "samples",
            progress=progress,
        )
