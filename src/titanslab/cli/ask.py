"""`titans ask`: a question to a model that has read a text."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from titanslab.cli.errors import in_utf8

app = typer.Typer(add_completion=False, rich_markup_mode="rich")
TEMPLATE = r"\n\n{question}\n"


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="The question; - reads it from stdin.", show_default=False)],
    memory: Annotated[Path, typer.Option("--memory", help="A file of titans read.", show_default=False)],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="A run folder or a saved model; default: the memory's own.")
    ] = None,
    learn: Annotated[
        bool | None,
        typer.Option("--learn/--no-learn", help="Whether the memories write while asked; default: as the memory does."),
    ] = None,
    save: Annotated[Path | None, typer.Option("--save", help="Also keep the memory after the answer.")] = None,
    template: Annotated[
        str, typer.Option(help=r"What is read for a question; \n is a new line.", show_default=True)
    ] = TEMPLATE,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 always takes the likeliest token.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same answer.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...; auto takes a GPU where there is one.")] = "auto",
) -> None:
    """Ask a model about what it has read; the memory file stays as it is.

    Example: [bold]titans ask --memory book.memory "Who came to the door?"[/bold]
    """
    text = sys.stdin.read() if question == "-" else question
    prompt = fill_template(template, text)
    from titanslab.cli.generate import TextWriter
    from titanslab.reading.files import check_save, load_reader, read_notes

    if save is not None:
        check_save(save)
        if save.exists():
            read_notes(save, given_as="--save")
    network, tokenizer, cache, folder = load_reader(model, memory, device)
    from accelerate.utils import set_seed

    from titanslab.reading.answer import Sampling, answer

    assert cache is not None
    before = cache.learn
    set_freeze(cache, learn)
    set_seed(seed)
    sampling = Sampling(max_new_tokens, temperature)
    _, cache = answer(network, tokenizer, cache, prompt, sampling, TextWriter(tokenizer, max_new_tokens))
    if save is not None:
        cache.learn = before
        cache.save(save, network, {"model": folder})


def fill_template(template: str, text: str) -> str:
    """The text put into the template, whose `\\n` are new lines."""
    if "{question}" not in template:
        raise ValueError(f"--template must hold {{question}}, got {template!r}")
    return in_utf8(template.replace("\\n", "\n").replace("{question}", text), "the question")


def set_freeze(cache: object, learn: bool | None) -> None:
    """Freeze the memories of a cache or let them learn, None = leave it; ValueError for a model that has none."""
    from titanslab.models.cache import TitansCache

    assert isinstance(cache, TitansCache)
    if learn is None:
        return
    if not learn and cache.config.variant == "attention":
        raise ValueError("--no-learn freezes a memory, and a model of variant 'attention' has none")
    cache.learn = learn
