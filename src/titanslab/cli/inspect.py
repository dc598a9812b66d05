"""`titans inspect`: a page with the trace of a model's memory on a text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from titanslab.cli.options import Device, MemoryModel, TextFile


def inspect(
    text: TextFile,
    model: MemoryModel = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the page; default: the text's name and -memory.")
    ] = None,
    memory: Annotated[Path | None, typer.Option("--memory", help="Begin with the memory in this file.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of the text to look at.")] = 8192,
    device: Device = "auto",
) -> None:
    """Show surprise, theta, eta and alpha of every token and block, and how far the memory's weights move.

    Example: [bold]titans inspect chapter.txt --model runs/tiny --output chapter-memory[/bold]

    Writes inspect.html, one file with everything in it, inspect.png and inspect.json.
    """
    from titanslab.data.text import TextSource
    from titanslab.files import check_writable
    from titanslab.reading.files import load_reader

    source = TextSource(text)
    if model is None and memory is None:
        raise ValueError("--model is missing: titans inspect TEXT --model RUN")
    folder = output or Path(f"{text.name.lstrip('.').split('.')[0] or 'text'}-memory")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output {str(folder)!r} is a file; give a folder")
    check_writable(folder, "--output")
    network, tokenizer, cache, name = load_reader(model, memory, device)
    import torch

    from titanslab.evaluation.trace import memories_of, token_texts, trace_memory, write_report
    from titanslab.progress import bar
    from titanslab.reading.text import first_tokens

    memories_of(network)
    ids, whole = first_tokens(source, tokenizer, max_tokens, with_start=cache is None)
    with bar("reading", "tokens") as progress:
        trace = trace_memory(network, torch.tensor([ids]), cache, progress=progress)
    subtitle = f"{'' if whole else 'the first '}{len(ids):,} tokens, {network.config.variant} model {name}"
    about = {"text": str(text), "model": name, "tokens": len(ids)}
    title = f"Surprise, gates and weights of the memory on {text.name}"
    written = write_report(trace, token_texts(tokenizer, ids), folder, title=title, subtitle=subtitle, about=about)
    if not trace.finite:
        typer.echo("warning: the memory holds values that are not finite; they are grey on the page", err=True)
    typer.echo("\n".join(map(str, written)))
