"""`titans read`: a text of any length into a memory file."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from titanslab.models.cache import CacheHeader

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


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
    learn: Annotated[bool, typer.Option("--learn/--no-learn", help="Whether the memories write.")] = True,
    write_scale: Annotated[float, typer.Option(min=0.0, help="Factor on the size of every write.")] = 1.0,
    piece_size: Annotated[
        int | None, typer.Option(min=1, help="Tokens read at once; default: about 4096, in whole segments.")
    ] = None,
    save_every: Annotated[float, typer.Option(min=0.0, help="Seconds between saves while reading.")] = 60.0,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...; auto takes a GPU where there is one.")] = "auto",
) -> None:
    """Read a text into a model's memory, and keep the memory in a file.

    Example: [bold]titans read book.txt --model runs/tiny --save book.memory[/bold]

    Memory use does not grow with the text. Ctrl-C keeps what was read so far; --resume goes on from there.
    """
    from titanslab.cli.errors import Interrupted
    from titanslab.cli.memory_files import load_reader
    from titanslab.memory.frozen import check_writes
    from titanslab.reading.source import TextSource

    check_writes(learn, write_scale)
    if resume and start is not None:
        raise ValueError("--resume goes on from --save; leave out --from")
    source = TextSource(text)
    if save.is_dir():
        raise ValueError(f"--save {str(save)!r} is a folder; give the name of a file")
    if not save.parent.exists():
        raise ValueError(f"--save {str(save)!r}: the folder {str(save.parent)!r} does not exist")
    about = {"path": str(text.resolve()), "bytes": source.size}
    notes = _unfinished(save, resume, about)
    if model is None and start is None and not resume:
        raise ValueError("--model is missing: titans read TEXT --model RUN --save FILE")
    network, tokenizer, cache, folder = load_reader(model, save if resume else start, device)

    from titanslab.cli.reading_bar import reading_bar
    from titanslab.reading.text import Place, read_text

    place = Place(notes["text"]["start"], notes["text"]["tokens"]) if resume else None
    done, saved = None, time.monotonic()

    def keep(finished: bool) -> Any:
        if done is not None:
            text_notes = about | {"start": done.place.start, "tokens": done.place.tokens, "finished": finished}
            done.cache.save(save, network, {"model": folder, "text": text_notes})
        return done

    try:
        with reading_bar(f"reading {text.name}") as show:
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
                show(done.progress)
                if time.monotonic() - saved >= save_every:
                    keep(False)
                    saved = time.monotonic()
    except KeyboardInterrupt:
        if keep(False) is None:
            raise Interrupted("interrupted before the first piece was read; nothing was written") from None
        words = ["titans", "read", str(text), "--save", str(save), "--model", folder]
        words += [] if learn else ["--no-learn"]
        words += [] if write_scale == 1.0 else ["--write-scale", str(write_scale)]
        raise Interrupted(
            f"interrupted after {done.progress.tokens:,} tokens, kept in {save}; "  # type: ignore[union-attr]
            f"go on with: {shlex.join([*words, '--resume'])}"
        ) from None
    if keep(True) is None:
        raise ValueError(f"nothing of {text} is left to read")
    assert done is not None
    pace = done.progress.tokens / max(done.progress.seconds, 1e-9)
    typer.echo(
        f"{save}: {done.progress.tokens:,} tokens read in {done.progress.seconds:.1f} s ({pace:,.0f} tokens/s), "
        f"{done.cache.columns:,} in all, {done.cache.nbytes() / 2**20:.1f} MiB of memory"
    )


def _unfinished(save: Path, resume: bool, about: dict[str, Any]) -> dict[str, Any]:
    """The notes of the reading to go on with; ValueError where there is none, or one would be lost."""
    if not save.exists():
        if resume:
            raise ValueError(f"--resume: there is no {save}; leave --resume out to begin")
        return {}
    header = _header(save, must=resume)
    notes = header.notes if header is not None else {}
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


def _header(save: Path, must: bool) -> CacheHeader | None:
    from titanslab.cli.quiet import quiet_libraries

    quiet_libraries()
    from titanslab.models.cache import TitansCache

    try:
        return TitansCache.header(save)
    except ValueError:
        if must:
            raise
        raise ValueError(f"--save {str(save)!r} exists and is no memory file; give another name") from None
