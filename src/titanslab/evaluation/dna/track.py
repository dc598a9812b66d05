"""Tracks along a genome: bedGraph files, a bigWig file on request, a picture and a summary, in one folder."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from titanslab.data.dna.regions import Region
from titanslab.evaluation.dna.along import BaseValues
from titanslab.evaluation.dna.bins import Binner, Overview, Positions
from titanslab.evaluation.dna.genes import Genes
from titanslab.files import write_whole
from titanslab.progress import Progress

LINES_AT_ONCE = 100_000  # of a bedGraph file that become entries of a bigWig file together
HEADINGS = {
    "loss": ("bits per base", "#0072B2"),
    "surprise": ("surprise |f(k) - v|² before the write", "#D55E00"),
    "write": ("write gate (1: the stability limit)", "#009E73"),
}


@dataclass(frozen=True)
class TrackSettings:
    """How tracks are written.

    Args:
        bin_size: bases of a line, whose value is the mean of theirs.
        sizes: bases of each chromosome, for bigWig.
        first: values of bases before this one, read to warm up, are left out. total: bases to read, for the progress.
        track_line: begin each bedGraph file with the line by which the UCSC browser knows it.
        bigwig: write a bigWig file beside each bedGraph file, by pyBigWig.
        genes: regions, shown in the picture, and with their means in genes.tsv.
    """

    bin_size: int
    sizes: Mapping[str, int]
    first: int = 0
    total: int | None = None
    track_line: bool = False
    bigwig: bool = False
    genes: Sequence[Region] = ()

    def __post_init__(self) -> None:
        if self.bin_size < 1:
            raise ValueError(f"bin must be 1 or more bases, got {self.bin_size}")
        if self.bigwig:
            _pybigwig()


def write_tracks(
    folder: Path,
    stream: Iterable[BaseValues],
    names: tuple[str, ...],
    settings: TrackSettings,
    *,
    about: Mapping[str, Any],
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write NAME.bedgraph for each of `names`, track.png and summary.json into the new folder `folder`.

    A line is `chromosome start end mean`, separated by tabs; start is counted from 0 and end is the base after the last
    one. Bases without a value, as at N, have no line. The folder appears when all of it is written.

    Args:
        stream: values in the order of the genome. names: of the values.
        about: facts of the model and the genome for the summary; "title" is that of the picture.
        progress: called with the bases done.

    Returns:
        The contents of the summary: bases, bits per base, mean of each track, bits by position.
    """
    summary: dict[str, Any] = {}

    def fill(made: Path) -> None:
        made.mkdir()
        genes = Genes(settings.genes, names) if settings.genes else None
        overview, found = _write_lines(made, stream, names, settings, genes, progress)
        summary.update({**about, **found})
        if settings.bigwig:
            for name in names:
                write_bigwig(made / f"{name}.bedgraph", made / f"{name}.bw", settings.sizes)
        if genes is not None:
            genes.write(made / "genes.tsv")
        title = str(about.get("title", ""))
        plot_tracks(overview, names, made / "track.png", title, settings.bin_size, genes)
        (made / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")

    folder.parent.mkdir(parents=True, exist_ok=True)
    write_whole(folder, fill)
    return summary


def _write_lines(
    folder: Path,
    stream: Iterable[BaseValues],
    names: tuple[str, ...],
    settings: TrackSettings,
    genes: Genes | None,
    progress: Progress | None,
) -> tuple[Overview, dict[str, Any]]:
    binner, overview, positions = Binner(settings.bin_size, len(names)), Overview(len(names)), Positions()
    sums, counts, done, begun = np.zeros(len(names)), np.zeros(len(names), np.int64), 0, time.perf_counter()
    origin: tuple[str, int] = ("", 0)
    with ExitStack() as held:
        files = [held.enter_context(open(folder / f"{name}.bedgraph", "w", encoding="utf-8")) for name in names]
        if settings.track_line:
            for name, file in zip(names, files, strict=True):
                file.write(f'track type=bedGraph name="{name}" description="{HEADINGS[name][0]}"\n')

        def write(bins: Iterable[Any]) -> None:
            for one in bins:
                for file, mean in zip(files, one.means, strict=True):
                    if math.isfinite(mean):
                        file.write(f"{one.name}\t{one.start}\t{one.end}\t{mean:.6g}\n")

        for part in stream:
            if part.name != origin[0]:
                origin = (part.name, part.start)
            values = np.stack([part.values[name] for name in names])
            skipped = min(max(0, settings.first - part.start), values.shape[1])
            positions.add(part.start - origin[1] + skipped, values[0, skipped:])
            done += values.shape[1]
            if progress is not None:
                progress(done, settings.total)
            if skipped == values.shape[1]:
                continue
            values = values[:, skipped:]
            write(binner.add(part.name, part.start + skipped, values))
            overview.add(part.name, part.start + skipped, values)
            if genes is not None:
                genes.add(part.name, part.start + skipped, values)
            known = np.isfinite(values)
            sums += np.where(known, values, 0.0).sum(1)
            counts += known.sum(1)
        write(binner.rest())
    if not counts[0]:
        raise ValueError("there is no base to score; the sequence holds N alone")
    seconds = time.perf_counter() - begun
    means = dict(zip(names, (sums / np.maximum(counts, 1)).tolist(), strict=True))
    return overview, {
        "bases": int(overview.bases),
        "scored": int(counts[0]),
        "bits_per_base": means["loss"],
        "means": means,
        "bin": settings.bin_size,
        "seconds": round(seconds, 3),
        "bases_per_second": round(done / max(seconds, 1e-9), 1),
        "bits_by_position": positions.rows(),
    }


def write_bigwig(bedgraph: Path, path: Path, sizes: Mapping[str, int]) -> None:
    """Write the lines of a bedGraph file of ours as a bigWig file; ImportError without pyBigWig."""
    written = _pybigwig().open(str(path), "w")
    written.addHeader(list(sizes.items()))
    with open(bedgraph, encoding="utf-8") as lines:
        rows = (line.split("\t") for line in lines if not line.startswith("track"))
        group: list[list[str]] = []

        def add() -> None:
            names, starts, ends, values = zip(*group, strict=True)
            written.addEntries(
                list(names), [int(s) for s in starts], ends=[int(e) for e in ends], values=[float(v) for v in values]
            )
            group.clear()

        for row in rows:
            group.append(row)
            if len(group) == LINES_AT_ONCE:
                add()
        if group:
            add()
    written.close()


def plot_tracks(
    overview: Overview, names: tuple[str, ...], path: Path, title: str, bin_size: int = 1, genes: Genes | None = None
) -> None:
    """Draw each value along the genome, one panel each, and the genes below; lines separate chromosomes.

    A point is the mean of `bin_size` bases, or of more where the genome is long.
    """
    places, means, each = overview.means(bin_size)
    unit, divisor = next((u, d) for u, d in (("Mb", 1e6), ("kb", 1e3), ("bases", 1.0)) if overview.bases >= 2 * d)
    (name, _, first), *others = overview.records
    origin = 0 if others else first  # places of one record are its own coordinates
    heights = [1.8] * len(names) + [0.8] * (genes is not None)
    figure = Figure(figsize=(9, 0.7 + sum(heights)), layout="constrained")
    panels = figure.subplots(len(heights), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    for axes, value, row in zip(panels, names, means, strict=False):
        heading, colour = HEADINGS[value]
        axes.plot((origin + places) / divisor, row, color=colour, linewidth=0.9)
        axes.set_title(heading, loc="left", fontsize=10)
        axes.grid(axis="y", color="#ddd", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        for _, before, _ in others:
            axes.axvline(before / divisor, color="#999", linewidth=0.6)
    if genes is not None:
        genes.draw(panels[-1], overview, divisor)
    where = f"{unit} of all sequences" if others else f"{unit} of {name}"
    panels[-1].set_xlabel(f"{where}, each point the mean of {each:,} base{'s' * (each > 1)}", parse_math=False)
    panels[-1].set_xlim(origin / divisor, (origin + overview.bases) / divisor)
    figure.suptitle(title, fontsize=11, parse_math=False)
    figure.savefig(path, format="png", dpi=120)


def _pybigwig() -> Any:
    try:
        import pyBigWig
    except ImportError:
        raise ImportError("bigWig files need a package: pip install pyBigWig") from None
    return pyBigWig
