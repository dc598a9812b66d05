"""`titans chat`: a conversation whose memory is kept in a file."""

from __future__ import annotations

import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from titanslab.cli.errors import Interrupted, describe, in_utf8
from titanslab.cli.options import MOST_SEED, Device, Learn, MaxNewTokens, MemoryModel, Template

if TYPE_CHECKING:
    from titanslab.reading.session import Session

COMMANDS = {
    "/help": "this list",
    "/memory": "the session's file, its turns and tokens, and how far the memory is from its start",
    "/save FILE": "write the memory to another file, for titans ask or titans chat --from",
    "/forget": "begin again; the turns so far are kept in a file beside the session",
    "/quit": "end; Ctrl-D does the same, and Ctrl-C stops an answer",
}
LEAVE = ("quit", "exit", "bye", "q", ":q", "help")


def chat(
    session: Annotated[
        Path | None,
        typer.Option("--session", "-s", help="The session's file; default: one per model in the user's state folder."),
    ] = None,
    model: MemoryModel = None,
    start: Annotated[Path | None, typer.Option("--from", help="Begin a new session with this memory file.")] = None,
    learn: Learn = None,
    template: Template = None,
    max_new_tokens: MaxNewTokens = None,
    temperature: Annotated[
        float | None,
        typer.Option(min=0.0, help="0 always takes the likeliest token; default: the model's own, else 0.8."),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            min=0.01, max=1.0, help="Draw from the likeliest up to this mass; default: the model's own, else 0.95."
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=MOST_SEED, help="The same seed gives the same answers.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Talk with a model, line by line; the conversation stays in its memory, also after a restart.

    Example: [bold]titans chat --model runs/tiny[/bold]

    The session is saved after every answer, with the options that were given. On a terminal, /help lists the commands,
    Ctrl-C stops an answer, which is then not kept, and Ctrl-D ends the session. An empty line is skipped.
    """
    from titanslab.cli.ask import read_template, set_freeze
    from titanslab.cli.terminal import line_reader
    from titanslab.reading.files import check_memory_file, check_session

    check_session(session, model, start)
    if start is not None:
        check_memory_file(start, "--from")
    from titanslab.reading.answer import Manner
    from titanslab.reading.session import open_session, state_folder

    manner = Manner(read_template(template), max_new_tokens, temperature, top_p)
    with open_session(session, model, start, device, manner) as talk:
        set_freeze(talk.cache, learn)
        if seed is not None:
            from accelerate.utils import set_seed

            set_seed((seed + talk.turns) % 2**32)
        terminal = sys.stdin.isatty()
        if terminal or session is None:
            known = f"{_turns(talk)}, {talk.cache.columns:,} tokens" if talk.turns else "new"
            _note(f"session {talk.file} ({known})" + ("; /help lists the commands, Ctrl-D ends" if terminal else ""))
        next_line = line_reader(state_folder() / "chat.history", [name.split()[0] for name in COMMANDS])
        try:
            _converse(talk, next_line, terminal)
        except KeyboardInterrupt:
            raise Interrupted(f"ended; {_kept(talk)}") from None
        if terminal:
            again = shlex.join(["titans", "chat", "--session", str(talk.file)])
            _note(_kept(talk))
            if talk.file.exists():
                print(f"go on with: {again}", file=sys.stderr, flush=True)  # in one line, to be copied


def _converse(talk: Session, next_line: Callable[[], str | None], terminal: bool) -> None:
    """Answer lines until there is none. On a terminal, lines may be commands and Ctrl-C ends an answer alone."""
    from titanslab.cli.generate import TextWriter

    remarked = False
    while True:
        try:
            line = next_line()
        except KeyboardInterrupt:
            if not terminal:
                raise
            _note("Ctrl-D or /quit ends the session")
            continue
        if line is None:
            return
        if not line.strip():
            continue
        if terminal and (line[0] == "/" or line.rstrip().lower() in LEAVE):
            if _command(talk, line.strip()):
                return
            continue
        writer = TextWriter(talk.tokenizer, talk.sampling.max_new_tokens)
        try:
            said = talk.say(in_utf8(line, "the line"), writer)
        except KeyboardInterrupt:
            if not terminal:
                raise
            writer.end()
            _note("stopped; this turn is not kept")
            continue
        if not said.strip() and not remarked:
            remarked = True
            _note(
                "no answer: the model has read the line and ended at once, as it may after a statement. After "
                "a question, try words of the texts that it was trained on, or their form: --template ' {question}'"
            )


def _command(talk: Session, line: str) -> bool:
    """Carry out a command of `COMMANDS`; returns whether the session ends."""
    name, _, rest = line.partition(" ")
    rest = rest.strip()
    if name == "/quit":
        return True
    if name == "/help":
        width = max(map(len, COMMANDS))
        _note("\n".join(f"{command:{width}}  {text}" for command, text in COMMANDS.items()), indent=width + 2)
        _note("A line that begins with a space is always read as text.")
    elif name == "/memory":
        _show_memory(talk)
    elif name == "/save":
        _save(talk, rest)
    elif name == "/forget":
        turns, kept = _turns(talk), talk.forget()
        _note("nothing was said yet" if kept is None else f"{turns} forgotten; the file is kept as {kept}")
    elif name[0] == "/":
        _note(f"{name} is no command; /help lists them. Begin the line with a space to have it read as text")
    else:
        _note(f"type /quit to end or /help for the commands; begin the line with a space to have {line!r} read as text")
    return False


def _show_memory(talk: Session) -> None:
    """Print the file, the size and the movement of a session's memory."""
    from titanslab.reading.models import can_freeze, is_empty

    if is_empty(talk.cache):
        _note(f"nothing was read yet; the session will be kept in {talk.file}")
        return
    from titanslab.evaluation.trace import memories_of, memory_norms

    size = f"{talk.cache.columns:,} tokens in {talk.cache.nbytes() / 2**20:.1f} MiB"
    _note(f"{talk.file}: {_turns(talk)}, {size}" + ("" if talk.cache.learn else "; the memories are frozen"))
    if can_freeze(talk.cache):
        for number, (moved, _) in enumerate(memory_norms(memories_of(talk.model), talk.cache), 1):
            _note(f"block {number}: the memory has moved by {moved:.3f} of its initial size")


def _save(talk: Session, name: str) -> None:
    """Write the memory to the file `name`; an error is a remark."""
    if not name:
        _note(f"the session is saved after every answer in {talk.file}; /save FILE writes the memory to another file")
        return
    try:
        talk.save_as(Path(name).expanduser())
    except (OSError, ValueError) as error:
        _note(describe(error).replace(", or --overwrite to replace it", ""))
    else:
        _note(f'written: {name}; ask it with:\n{shlex.join(["titans", "ask", "--memory", name])} "QUESTION"')


def _turns(talk: Session) -> str:
    return f"{talk.turns} turn{'s' * (talk.turns != 1)}"


def _kept(talk: Session) -> str:
    verb = "is" if talk.turns == 1 else "are"
    return f"{_turns(talk)} {verb} kept in {talk.file}" if talk.file.exists() else "nothing was said yet"


def _note(text: str, indent: int = 0) -> None:
    """Print a remark; on a terminal its lines are broken between words, and all but the first are indented."""
    lines = text.splitlines()
    if sys.stderr.isatty():
        width, gap = shutil.get_terminal_size().columns, " " * indent
        rules: Any = {"subsequent_indent": gap, "break_long_words": False, "break_on_hyphens": False}
        lines = [part for line in lines for part in textwrap.wrap(line, max(20, width), **rules)]
    print("\n".join(lines), file=sys.stderr, flush=True)
