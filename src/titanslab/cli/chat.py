"""`titans chat`: a conversation whose memory is kept in a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from titanslab.cli.options import TEMPLATE, Device, Learn, MaxNewTokens, MemoryModel, Temperature, Template


def chat(
    session: Annotated[
        Path, typer.Option("--session", "-s", help="The session's file; a new one is made.", show_default=False)
    ],
    model: MemoryModel = None,
    start: Annotated[Path | None, typer.Option("--from", help="Begin a new session with this memory file.")] = None,
    learn: Learn = None,
    template: Template = TEMPLATE,
    max_new_tokens: MaxNewTokens = 128,
    temperature: Temperature = 0.8,
    top_p: Annotated[float, typer.Option(min=0.01, max=1.0, help="Draw from the likeliest up to this mass.")] = 0.95,
    seed: Annotated[int | None, typer.Option(min=0, help="The same seed gives the same answers.")] = None,
    device: Device = "auto",
) -> None:
    """Talk with a model, line by line; the conversation stays in its memory, also after a restart.

    Example: [bold]titans chat --model runs/tiny --session talk.session[/bold]

    The session is saved after every answer. An empty line is skipped. Ctrl-D or Ctrl-C ends the session, and an
    interrupted answer is not kept.
    """
    from titanslab.cli.ask import fill_template, set_freeze
    from titanslab.cli.errors import Interrupted
    from titanslab.cli.generate import TextWriter
    from titanslab.reading.files import check_save, load_reader, read_notes

    fill_template(template, "")
    there = session.exists()
    if there and start is not None:
        raise ValueError(f"session {str(session)!r} exists already; leave out --from, or name another session")
    check_save(session, given_as="--session")
    turns = read_notes(session).get("turns") if there else 0
    if turns is None:
        raise ValueError(f"{str(session)!r} is a memory, no session; begin one: --session FILE --from {str(session)!r}")
    if model is None and not there and start is None:
        raise ValueError(f"session {str(session)!r} is new: give --model RUN")
    network, tokenizer, cache, folder = load_reader(model, session if there else start, device)
    from accelerate.utils import set_seed

    from titanslab.models.cache import TitansCache
    from titanslab.reading.answer import Sampling, answer

    cache = TitansCache(network.config) if cache is None else cache
    set_freeze(cache, learn)
    if seed is not None:
        set_seed(seed + turns)
    if sys.stderr.isatty():
        known = f"{turns} turns, {cache.columns:,} tokens" if there else "new"
        print(f"session {session} ({known}); Ctrl-D ends", file=sys.stderr)
    sampling = Sampling(max_new_tokens, temperature, top_p=top_p)
    try:
        while (line := _next_line()) is not None:
            if not line.strip():
                continue
            prompt = fill_template(template, line)
            _, cache = answer(network, tokenizer, cache, prompt, sampling, TextWriter(tokenizer, max_new_tokens))
            turns += 1
            cache.save(session, network, {"model": folder, "turns": turns})
    except KeyboardInterrupt:
        kept = f"{turns} turns are kept in {session}" if session.exists() else "nothing was said yet"
        raise Interrupted(f"ended; {kept}") from None


def _next_line() -> str | None:
    """The next line of stdin, with editing if it is a terminal; None at the end."""
    try:
        return input("> " if sys.stdin.isatty() else "")
    except EOFError:
        return None
