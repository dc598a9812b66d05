"""`titans tokenize`: texts into a folder of tokens, which a recipe names as data."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Annotated, Any

import typer


def tokenize(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...", help="Texts: files, folders, patterns, or a dataset on the hub.", show_default=False
        ),
    ],
    tokenizer: Annotated[
        str,
        typer.Option(
            "--tokenizer", "-t", help="byte, a tokenizer's file or folder, or a hub name.", show_default=False
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder for the tokens.", show_default=False)],
    processes: Annotated[
        int | None, typer.Option(min=1, help="Processes that encode; default: one for each core.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on after the whole shards of an interrupted run.")
    ] = False,
    shard_tokens: Annotated[
        int, typer.Option(min=1, help="A shard ends with the document that reaches this number.")
    ] = 1 << 25,
    text_column: Annotated[str, typer.Option(help="The column of JSONL, parquet or hub data.")] = "text",
    text_documents: Annotated[
        str, typer.Option(help="The part of a plain text that is one document: file, line or paragraph.")
    ] = "file",
    subset: Annotated[str | None, typer.Option(help="Subset of a hub dataset.")] = None,
    split: Annotated[str, typer.Option(help="Split of a hub dataset.")] = "train",
) -> None:
    """Make tokens of texts, in a folder that a recipe names as data.

    Example: [bold]titans tokenize books --tokenizer tok --output tokens[/bold]

    The folder holds the ids in shards, which training maps into memory, where each document begins, the tokenizer, and
    a manifest with checksums. The same texts give the same files with any number of processes. What was interrupted or
    killed goes on with the same command and --resume. In a recipe: data.train = "tokens", data.tokenizer = "tokens".
    """
    from titanslab.cli.errors import Interrupted
    from titanslab.data.corpus import open_corpus
    from titanslab.data.shards import MANIFEST
    from titanslab.data.write_shards import check_output, tokenize_folder

    check_output(output, resume)
    options: dict[str, Any] = {"column": text_column, "text_documents": text_documents}
    options |= {"subset": subset, "split": split, "streaming": True}
    corpus = open_corpus(sources[0] if len(sources) == 1 else sources, "texts", **options)
    from titanslab.data.pool import cores, sensible_processes
    from titanslab.data.tokenizer import load_tokenizer
    from titanslab.progress import bar_from_first_report, duration
    from titanslab.runs.loading import quiet_libraries

    quiet_libraries()
    loaded = load_tokenizer(tokenizer)
    if processes is None:
        processes = sensible_processes(cores(), corpus.size if corpus.unit == "bytes" else None)
    begun = time.perf_counter()
    options = {"processes": processes, "shard_tokens": shard_tokens, "resume": resume}
    try:
        with bar_from_first_report("tokenizing", corpus.unit) as show:
            made = tokenize_folder(output, corpus, loaded, **options, progress=show)
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted; the whole shards are in {output}, and the same command with --resume goes on"
            if (output / MANIFEST).exists()
            else "interrupted before the first shard was whole; nothing was written"
        ) from None
    seconds = time.perf_counter() - begun
    shards, total = len(made.shards), made.totals
    typer.echo(
        f"{output}: {total.tokens:,} tokens of {total.documents:,} documents in {shards} shard{'s' * (shards > 1)}, "
        f"{total.text_bytes / 1e6:,.1f} MB of text ({total.text_bytes / total.tokens:.2f} bytes a token), in "
        f"{duration(seconds)}"
    )
    folder = shlex.quote(str(output))
    typer.echo(f"Next: titans train RECIPE.toml --set data.train={folder} --set data.tokenizer={folder}")
