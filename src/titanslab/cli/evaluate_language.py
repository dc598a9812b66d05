"""`titans evaluate language`: language modelling and common sense, the paper's first table, through lm-eval."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from titanslab.cli.errors import Interrupted
from titanslab.cli.options import Device, output_folder

ABOUT = "Language modelling and common sense in the paper's columns, by lm-eval."


def language(
    *,
    model: Annotated[str, typer.Option("--model", "-m", help="A run folder or a saved model.", show_default=False)],
    tasks: Annotated[
        str | None,
        typer.Option(
            help="wikitext, lambada_openai, piqa, hellaswag, winogrande, arc_easy, arc_challenge, social_iqa, boolq: "
            "several with commas; default: all."
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", "-d", help="Folder of local files; default: the hub's data sets.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Most samples of a task; default: all.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder for results; default: MODEL/evaluation/language; run again to go on."
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts at once.")] = 8,
    context_length: Annotated[
        int | None,
        typer.Option("--context-length", "-c", min=2, help="Most tokens at once; default: the model's limit, or 2048."),
    ] = None,
    device: Device = "auto",
) -> None:
    """Run lm-eval's WikiText, LAMBADA and common-sense tasks, and print the row of the paper's first table.

    Example: [bold]titans evaluate language --model runs/tiny --tasks piqa,arc_easy --data lm_eval/[/bold]

    Prompts, scores and standard errors are lm-eval's own, without examples in the prompt. Accuracy is normalised by
    length (acc_n) for HellaSwag and ARC-c, as in the paper. A finished task is kept: the same command goes on. Any
    causal language model saved by Hugging Face can be evaluated.
    """
    from titanslab.evaluation.language.local import find_local_files
    from titanslab.evaluation.language.tasks import TASKS
    from titanslab.files import write_whole
    from titanslab.runs.loading import find_model_folder, pick_device, prepare_process
    from titanslab.tasks.sample import split_names

    folder = find_model_folder(model)
    chosen = [TASKS[name] for name in split_names(tasks or ",".join(TASKS), list(TASKS), "--tasks")]
    for task in chosen:
        if data is not None:
            find_local_files(task, data)
    place = output_folder(output or Path(model) / "evaluation" / "language")
    from titanslab.evaluation.language.run import LanguageRun, quiet, run_language

    quiet()
    prepare_process()
    from rich.console import Console

    from titanslab.evaluation.language.table import markdown, screen_table, summary
    from titanslab.runs.versions import package_versions, versions

    run = LanguageRun(
        model=model, tasks=chosen, output=place, device=pick_device(device), data=data, limit=limit,
        batch_size=batch_size, context_length=context_length,
    )  # fmt: skip
    try:
        found = run_language(run, {"model": str(folder.resolve())})
    except KeyboardInterrupt:
        raise Interrupted(f"stopped; finished tasks are in {place}, the same command goes on") from None
    facts: dict[str, Any] = {
        "data": "hub" if data is None else str(data),
        "context_length": context_length,
        "num_fewshot": 0,
        "versions": versions() | package_versions(("lm_eval",)),
    }
    everything, asked = list(found.values()), [found[task.name] for task in chosen]
    source = "the hub's data sets" if data is None else f"local files of {data}"
    note = f"lm-eval {facts['versions']['lm_eval']}, zero shots, {source}; value ± standard error."
    write_whole(place / "summary.json", json.dumps(summary(model, everything, facts), indent=1) + "\n")
    write_whole(place / "table.md", markdown(model, everything, note))
    console = Console()
    console.print(screen_table(model, asked))
    console.print(f"{note}\nwritten: {place}/results.jsonl, summary.json, table.md", highlight=False, soft_wrap=True)
