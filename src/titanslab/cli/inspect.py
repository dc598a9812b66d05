"""`titans inspect`: what a model's memory does on a text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command()
def inspect(
    text: Annotated[Path, typer.Argument(help="A text file in UTF-8, also .gz, .xz, .bz2, .zst.", show_default=False)],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="A run folder or a saved model; default: the memory's own.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the page; default: the text's name and -memory.")
    ] = None,
    memory: Annotated[Path | None, typer.Option("--memory", help="Begin with this memory, not with none.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Look at so many tokens of the text at most.")] = 8192,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...; auto takes a GPU where there is one.")] = "auto",
) -> None:
    """Show surprise, theta, eta and alpha of every token and block, and how far the memory moves.

    Example: [bold]titans inspect chapter.txt --model runs/tiny --output chapter-memory[/bold]

    Writes inspect.html, one file with everything in it, inspect.png and inspect.json.
    """
    from titanslab.reading.files import load_reader
    from titanslab.reading.source import TextSource

    source = TextSource(text)
    if model is None and memory is None:
        raise ValueError("--model is missing: titans inspect TEXT --model RUN")
    folder = output or Path(f"{text.name.lstrip('.').split('.')[0] or 'text'}-memory")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output {str(folder)!r} is a file; give a folder")
    network, tokenizer, cache, name = load_reader(model, memory, device)
    import json

    import torch

    from titanslab.data.encode import chunk_encoder
    from titanslab.evaluation.pictures import plot_trace
    from titanslab.evaluation.trace import memories_of, trace_memory
    from titanslab.evaluation.trace_page import token_texts, write_page
    from titanslab.files import write_whole
    from titanslab.progress import bar

    memories_of(network)
    encode = chunk_encoder(tokenizer)
    bos = tokenizer.bos_token_id
    first = [bos] if cache is None and bos is not None else []
    ids: list[int] = []
    for piece in source.pieces():
        ids += encode(piece.text, piece.start == 0).tolist()
        if len(first) + len(ids) > max_tokens:
            break
    if not ids:
        raise ValueError(f"{text} is empty; name a file with text in it")
    ids = first + ids
    whole, ids = len(ids) <= max_tokens, ids[:max_tokens]
    with bar("reading", "tokens") as progress:
        trace = trace_memory(network, torch.tensor([ids]), cache, progress=progress)
    folder.mkdir(parents=True, exist_ok=True)
    title = f"What the memory does on {text.name}"
    subtitle = f"{'' if whole else 'the first '}{len(ids):,} tokens, {network.config.variant} model {name}"
    plot_trace(trace, folder / "inspect.png", f"{title}\n{subtitle}")
    page = folder / "inspect.html"
    texts = token_texts(tokenizer, ids)
    write_page(trace, texts, page, title=title, subtitle=subtitle, picture=folder / "inspect.png")
    about = {"text": str(text), "model": name, "tokens": len(ids)}
    write_whole(folder / "inspect.json", json.dumps(about | trace.to_dict()) + "\n")
    if not trace.finite:
        typer.echo("warning: the memory holds values that are not finite; they are grey on the page", err=True)
    typer.echo(f"{page}\n{folder / 'inspect.png'}\n{folder / 'inspect.json'}")
