"""`titans read`: read a text of any length into a memory file."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from titanslab.cli.options import Device, Learn, MemoryModel, Overwrite, TextFile

SAVE_EVERY = 60.0


def read(
    text: TextFile,
    save: Annotated[Path, typer.Option("--save", "-s", help="The memory file to write.", show_default=False)],
    model: MemoryModel = None,
    start: Annotated[
        Path | None, typer.Option("--from", help="Continue from this memory file, which is not changed.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted reading.")] = False,
    overwrite: Overwrite = False,
    learn: Learn = None,
    write_scale: Annotated[
        float | None, typer.Option(min=0.0, help="Factor on the size of every write; default: as in the memory file.")
    ] = None,
    piece_size: Annotated[
        int | None, typer.Option(min=1, help="Tokens read at once; default: about 4096, in whole segments.")
    ] = None,
    save_every: Annotated[float, typer.Option(min=0.0, help="Seconds between saves while reading.")] = SAVE_EVERY,
    device: Device = "auto",
) -> None:
    """Read a text into a model's memory, and keep the memory in a file.

    Example: [bold]titans read book.txt --model runs/tiny --save book.memory[/bold]

    Memory use does not grow with the text. Ctrl-C saves the memory of the part that was read, from which --resume
    continues.
    """
    from titanslab.cli.errors import Interrupted
    from titanslab.data.text import TextSource
    from titanslab.locks import only_writer
    from titanslab.reading.files import check_memory_file, check_place, load_reader, unfinished_reading
    from titanslab.runs.loading import find_model_folder

    if write_scale is not None:
        from titanslab.memory.layer import check_writes

        check_writes(learn, write_scale)
    if resume and start is not None:
        raise ValueError("--resume goes on from --save; leave out --from")
    source = TextSource(text)
    check_place(save, "--save")
    if model is None and start is None and not resume:
        raise ValueError("--model is missing: titans read TEXT --model RUN --save FILE")
    if start is not None:
        check_memory_file(start, "--from")
    if model is not None:
        find_model_folder(model)
    with only_writer(save, "--save"):
        about = {"path": str(text.resolve()), "bytes": source.size}
        before = unfinished_reading(save, resume, about, overwrite)
        network, tokenizer, cache, folder = load_reader(model, save if resume else start, device)

        from titanslab.progress import bar
        from titanslab.reading.text import Place, read_text

        place, done, saved = None, None, time.monotonic()
        if before is not None:
            place = Place(before.start, before.tokens)
            learn = before.learn if learn is None else learn
            write_scale = before.write_scale if write_scale is None else write_scale
            from titanslab.memory.layer import check_writes

            check_writes(learn, write_scale)
        writes: Any = {"learn": learn, "write_scale": write_scale}
        about |= writes

        def keep(finished: bool) -> bool:
            if done is not None:
                text_notes = about | {"start": done.place.start, "tokens": done.place.tokens, "finished": finished}
                done.cache.save(save, network, {"model": folder, "text": text_notes})
            return done is not None

        try:
            with bar(f"reading {text.name}", "bytes", start=None) as show:
                for done in read_text(network, text, tokenizer, cache, place=place, piece_size=piece_size, **writes):
                    now = done.progress
                    show(now.bytes, now.total_bytes, f"{now.tokens:,} tokens, {now.tokens_per_second:,.0f} tokens/s")
                    if time.monotonic() - saved >= save_every:
                        keep(False)
                        saved = time.monotonic()
            keep(True)
        except FloatingPointError as error:
            kept = f"the memory before them is kept in {save}" if keep(False) else "nothing was written"
            raise FloatingPointError(f"{error}; {kept}; read with a smaller --write-scale, or --no-learn") from None
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
        if done is None:  # the reading before was stopped after its last token
            assert cache is not None and place is not None  # noqa: PT018
            text_notes = about | {"start": place.start, "tokens": place.tokens, "finished": True}
            cache.save(save, network, {"model": folder, "text": text_notes})
            typer.echo(f"{save}: nothing of {text} was left to read, {cache.columns:,} tokens in all")
            return
    pace = done.progress.tokens / max(done.progress.seconds, 1e-9)
    typer.echo(
        f"{save}: {done.progress.tokens:,} tokens read in {done.progress.seconds:.1f} s ({pace:,.0f} tokens/s), "
        f"{done.cache.columns:,} in all, {done.cache.nbytes() / 2**20:.1f} MiB of memory"
    )
