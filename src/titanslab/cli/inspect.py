"""`titans inspect`: a page with the trace of a model's memory on a text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from titanslab.cli.options import Device, MemoryModel, Overwrite, TextFile


def inspect(
    text: TextFile,
    model: MemoryModel = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the page; default: TEXT-MODEL-memory, by name.")
    ] = None,
    overwrite: Overwrite = False,
    memory: Annotated[Path | None, typer.Option("--memory", help="Begin with the memory in this file.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of the text to look at.")] = 8192,
    device: Device = "auto",
) -> None:
    """Show at which tokens a memory is written, how large the writes are, and how far the memory's weights move.

    Example: [bold]titans inspect chapter.txt --model runs/tiny --output chapter-memory[/bold]

    Writes inspect.html, the text with coloured tokens, in one file; inspect.png, the writes over the text and the
    words with the largest ones; and inspect.json, all values: surprise, theta, eta and alpha of every token and block.
    """
    from titanslab.data.text import TextSource
    from titanslab.files import check_writable
    from titanslab.locks import only_writer
    from titanslab.reading.files import check_memory_file, load_reader

    source = TextSource(text)
    if model is None and memory is None:
        raise ValueError("--model is missing: titans inspect TEXT --model RUN")
    if memory is not None:
        check_memory_file(memory, "--memory")
    network, tokenizer, cache, name = load_reader(model, memory, device)
    short = short_name(name)
    folder = output or Path(f"{text.name.lstrip('.').split('.')[0] or 'text'}-{short}-memory")
    check_folder(folder, overwrite)
    check_writable(folder, "--output")
    import torch

    from titanslab.evaluation.trace import memories_of, token_texts, trace_memory, write_report
    from titanslab.progress import bar
    from titanslab.reading.text import first_tokens

    memories_of(network)
    ids, whole = first_tokens(source, tokenizer, max_tokens, with_start=cache is None)
    with bar("reading", "tokens") as progress:
        trace = trace_memory(network, torch.tensor([ids]), cache, progress=progress)
    subtitle = f"{'' if whole else 'the first '}{len(ids):,} tokens, {_kind(network)} model"
    about = {"text": str(text), "model": name, "tokens": len(ids)}
    title = f"The memory of {short} on {text.name}"
    with only_writer(folder, "--output"):
        check_folder(folder, overwrite)  # another process may have written it meanwhile
        written = write_report(trace, token_texts(tokenizer, ids), folder, title=title, subtitle=subtitle, about=about)
    if not trace.finite:
        typer.echo("warning: the memory holds values that are not finite; they are grey on the page", err=True)
    typer.echo("\n".join(map(str, written)))


def _kind(network: Any) -> str:
    """The variant of a Titans model, or the type of a grafted one."""
    return f"grafted {network.config.model_type}" if hasattr(network, "graft") else network.config.variant


def short_name(folder: str) -> str:
    """The name of a model's folder; that of its run for a checkpoint inside one."""
    from titanslab.runs.checkpoints import step_of

    path = Path(folder)
    return path.name if step_of(path) < 0 else path.parent.parent.name


def check_folder(folder: Path, overwrite: bool) -> None:
    """ValueError if `folder` is a file, or holds an earlier page that may not be replaced."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output {str(folder)!r} is a file; give a folder")
    if (folder / "inspect.html").exists() and not overwrite:
        raise ValueError(
            f"folder {str(folder)!r} holds the page of an earlier inspect; name another with --output, or replace it "
            "with --overwrite"
        )
