"""`titans evaluate dna`: a classifier of sequences against labelled ones, and the mean of several seeds."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from titanslab.cli.options import Device, output_folder

ABOUT = "A classifier of DNA on labelled sequences: accuracy, MCC, ROC AUC."


def dna(
    *,
    model: Annotated[
        list[str],
        typer.Option("--model", "-m", help="A run of a classifier of sequences; repeatable, for the mean of seeds.",
                     show_default=False),
    ],
    data: Annotated[
        str,
        typer.Option("--data", "-d", help="Labelled sequences: .tsv, .csv, .fa, .bed (also .gz), a folder with a class "
                     "each, or a set of GenomicBenchmarks by name, of which the test part is taken.",
                     show_default=False),
    ],
    rc: Annotated[
        bool | None,
        typer.Option("--rc/--no-rc", help="Average over a sequence and its reverse complement; default: as the run."),
    ] = None,
    sequence_column: Annotated[str | None, typer.Option(help="Column of the sequences; default: found.")] = None,
    label_column: Annotated[
        str | None, typer.Option(help="Column of the labels; default: found; a number for .bed, the name's is 4.")
    ] = None,
    reference: Annotated[str | None, typer.Option(help="FASTA of the genome whose regions the data names.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the results; default: MODEL/evaluation/dna.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences at a time.")] = 64,
    device: Device = "auto",
) -> None:  # fmt: skip
    """Score a classifier of DNA on labelled sequences that it has not seen, and write its predictions.

    Example: [bold]titans evaluate dna --model runs/promoters --data test.tsv --rc[/bold]

    Writes predictions.tsv, with the probability of each class of each sequence, and summary.json, with accuracy,
    Matthews correlation, area under the ROC curve and the confusion of the classes. With several models, each folder
    gets its own results, and --output the mean and the spread.
    """
    from titanslab.data.dna.labelled import Columns, read_labelled
    from titanslab.runs.loading import find_model_folder
    from titanslab.runs.sequences import read_facts
    from titanslab.tasks.dna.sets import is_set, read_set

    for name in model:
        read_facts(find_model_folder(name))
    columns = Columns(sequence_column, label_column, reference)
    asked = read_set(data, columns)[1] if is_set(data) else read_labelled(data, columns, "--data")
    several = len(model) > 1
    folders = [Path(name) / "evaluation" / "dna" for name in model]
    if output is not None and not several:
        folders = [output]
    for folder in [*folders, *([output] if output is not None and several else [])]:
        output_folder(folder)
    from titanslab.evaluation.dna.classify import SUMMARY, predict, summarise_runs, write_results
    from titanslab.files import write_whole
    from titanslab.progress import bar
    from titanslab.runs.classifier import open_classifier

    summaries: list[dict[str, Any]] = []
    for name, folder in zip(model, folders, strict=True):
        network, tokenizer, facts = open_classifier(name, device)
        averages = facts.rc if rc is None else rc
        with bar("classifying", "sequences") as progress:
            found = predict(network, tokenizer, asked, facts, rc=averages, batch_size=batch_size, progress=progress)
        about = {"model": str(find_model_folder(name).resolve()), "data": data, "rc": averages}
        summaries.append(write_results(folder, asked, found, facts, about))
    for name, summary, folder in zip(model, summaries, folders, strict=True):
        typer.echo(f"{name}: {scores_line(summary)}, {summary['sequences']:,} sequences")
        typer.echo(f"written: {folder}/predictions.tsv, summary.json")
    if several:
        whole = summarise_runs(folders)
        parts = [f"{k} {v['mean']:.4f} ± {v['spread']:.4f}" for k, v in whole.items() if k != "runs"]
        typer.echo(f"mean of {len(model)} runs: {', '.join(parts)}")
        if output is not None:
            output.mkdir(parents=True, exist_ok=True)
            write_whole(output / SUMMARY, json.dumps(whole, indent=1) + "\n")
            typer.echo(f"written: {output}/summary.json")
    sys.stdout.flush()


def scores_line(summary: dict[str, Any]) -> str:
    """The scores of a summary in words; a score that is not defined for the data is left out."""
    names = ("accuracy", "mcc", "roc_auc")
    return ", ".join(f"{name} {summary[name]:.4f}" for name in names if summary[name] is not None)
