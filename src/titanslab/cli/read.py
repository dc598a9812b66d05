"""`titans read`: a text of any length into a memory file."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(add_completion=False, rich_markup_mode="rich")
SAVE_EVERY = 60.0


@app.command()
def read(
    text: Annotated[Path, typer.Argument(help="A text file in UTF-8, also .gz, .xz, .bz2, .zst.", show_default=False)],
    save: Annotated[Path, typer.Option("--save", "-s", help="The memory file to write.", show_default=False)],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="A run folder or a saved model; default: the memory's own.")
    ] = None,
    start: Annotated[
        Path | None, typer.Option("--from", help="Read on from this memory file, which is left as it is.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a reading that was interrupted.")] = False,
    learn: Annotated[
        bool | None,
        typer.Option("--learn/--no-learn", help="Whether the memories write; default: as with --from or before."),
    ] = None,
    write_scale: Annotated[
        float | None, typer.Option(min=0.0, help="Factor on the size of every write; default likewise.")
    ] = None,
    piece_size: Annotated[
        int | None, typer.Option(min=1, help="Tokens read at once; default: about 4096, in whole segments.")
    ] = None,
    save_every: Annotated[float, typer.Option(min=0.0, help="Seconds between saves while reading.")] = SAVE_EVERY,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...; auto takes a GPU where there is one.")] = "auto",
) -> None:
    """Read a text into a model's memory, and keep the memory in a file.

    Example: [bold]titans read book.txt --model runs/tiny --save book.memory[/bold]

    Memory use does not grow with the text. Ctrl-C keeps what was read so far; --resume goes on from there.
    """
    from titanslab.cli.errors import Interrupted
    from titanslab.memory.frozen import check_writes
    from titanslab.reading.files import check_save, load_reader
    from titanslab.reading.source import TextSource

    check_writes(learn, write_scale)
    if resume and start is not None:
        raise ValueError("--resume goes on from --save; leave out --from")
    source = TextSource(text)
    check_save(save)
    about = {"path": str(text.resolve()), "bytes": source.size}
    notes = _unfinished(save, resume, about)
    if model is None and start is None and not resume:
        raise ValueError("--model is missing: titans read TEXT --model RUN --save FILE")
    network, tokenizer, cache, folder = load_reader(model, save if resume else start, device)

    from titanslab.progress import bar
    from titanslab.reading.text import Place, read_text

    place, done, saved = None, None, time.monotonic()
    if resume:
        before = notes["text"]
        place = Place(before["start"], before["tokens"])
        learn = before.get("learn") if learn is None else learn
        write_scale = before.get("write_scale") if write_scale is None else write_scale
        check_writes(learn, write_scale)
    about |= {"learn": learn, "write_scale": write_scale}

    def keep(finished: bool) -> bool:
        if done is not None:
            text_notes = about | {"start": done.place.start, "tokens": done.place.tokens, "finished": finished}
            done.cache.save(save, network, {"model": folder, "text": text_notes})
        return done is not None

    try:
        with bar(f"reading {text.name}", "bytes", start=None) as show:
            for done in read_text(
                network,
                text,
                tokenizer,
                cache,
                place=place,
                piece_size=piece_size,
                learn=learn,
                write_scale=write_scale,
            ):
                now = done.progress
                show(now.bytes, now.total_bytes, f"{now.tokens:,} tokens, {now.tokens_per_second:,.0f} tokens/s")
                if time.monotonic() - saved >= save_every:
                    keep(False)
                    saved = time.monotonic()
        keep(True)
    except KeyboardInterrupt:
        if not keep(False):
            raise Interrupted("interrupted before the first piece was read; nothing was written") from None
        words = ["titans", "read", str(text), "--save", str(save), "--model", folder]
        words += [] if piece_size is None else ["--piece-size", str(piece_size)]
        words += [] if save_every == SAVE_EVERY else ["--save-every", f"{save_every:g}"]
        words += [] if device == "auto" else ["--device", device]
        raise Interrupted(
            f"interrupted after {done.progress.tokens:,} tokens, kept in {save}; "  # type: ignore[union-attr]
            f"go on with: {shlex.join([*words, '--resume'])}"
        ) from None
    if done is None:  # it was stopped after its last token
        assert cache is not None
        cache.save(save, network, {"model": folder, "text": notes["text"] | {"finished": True}})
        typer.echo(f"{save}: nothing of {text} was left to read, {cache.columns:,} tokens in all")
        return
    pace = done.progress.tokens / max(done.progress.seconds, 1e-9)
    typer.echo(
        f"{save}: {done.progress.tokens:,} tokens read in {done.progress.seconds:.1f} s ({pace:,.0f} tokens/s), "
        f"{done.cache.columns:,} in all, {done.cache.nbytes() / 2**20:.1f} MiB of memory"
    )


def _unfinished(save: Path, resume: bool, about: dict[str, Any]) -> dict[str, Any]:
    """The notes of the reading to go on with; ValueError where there is none, or one would be lost."""
    from titanslab.reading.files import read_notes

    if not save.exists():
        if resume:
            raise ValueError(f"--resume: there is no {save}; leave --resume out to begin")
        return {}
    notes = read_notes(save, given_as="" if resume else "--save")
    text = notes.get("text", {})
    finished = text.get("finished", True)
    if not resume:
        if not finished:
            raise ValueError(
                f"{save} holds an unfinished reading of {text['path']}; go on with --resume, or delete the file"
            )
        return {}
    if finished:
        raise ValueError(f"{save} holds no unfinished reading; to read on with another text use --from {save}")
    if (text["path"], text["bytes"]) != (about["path"], about["bytes"]):
        raise ValueError(
            f"{save} was reading {text['path']} ({text['bytes']:,} bytes), not {about['path']} "
            f"({about['bytes']:,} bytes); --resume needs the same text"
        )
    return notes
