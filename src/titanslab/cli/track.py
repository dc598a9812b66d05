"""`titans track`: loss and surprise of a model along a genome, as files for a genome browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from titanslab.cli.options import Device


def track(
    genome: Annotated[Path, typer.Argument(help="A FASTA file, also .gz.", show_default=False)],
    model: Annotated[str, typer.Option("--model", "-m", help="A run or a saved language model.", show_default=False)],
    region: Annotated[
        str | None,
        typer.Option(help="A part, as samtools writes it: chr1, chr1:1-100000 (first base 1); default: all."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="New folder for the tracks; default: GENOME-MODEL-track.")
    ] = None,
    bin_size: Annotated[int, typer.Option("--bin", min=1, help="Bases of a line, which has their mean.")] = 1,
    warm_up: Annotated[int, typer.Option(min=0, help="Bases before the region that are read without a line.")] = 0,
    genes: Annotated[
        Path | None,
        typer.Option(help="A BED file of genes or other regions with names: in the picture, means in genes.tsv."),
    ] = None,
    bigwig: Annotated[bool, typer.Option("--bigwig", help="Write .bw files too, by pyBigWig.")] = False,
    track_line: Annotated[
        bool, typer.Option("--track-line", help="Begin each bedGraph with the track line of the UCSC browser.")
    ] = False,
    learn: Annotated[
        bool, typer.Option("--learn/--no-learn", help="Whether the memories write; off shows their share.")
    ] = True,
    piece: Annotated[int, typer.Option(min=1, help="Bases read at once.")] = 4096,
    device: Device = "auto",
) -> None:
    """Read a genome through a model's memory, and write how well every base is predicted and how surprising it is.

    Example: [bold]titans track genome.fa --model runs/ecoli --region chr1:1-100000 --bin 10[/bold]

    Writes loss.bedgraph (bits per base), surprise.bedgraph (the memory's inner loss before it writes) and
    write.bedgraph (its write gate, 0 to 1), which IGV and other browsers open; track.png; and summary.json, with bits
    per base over all and by position. With --genes the means over each gene are in genes.tsv. A genome of any length
    takes the memory of one piece.
    """
    from importlib.util import find_spec

    from titanslab.data.dna.fasta import SUFFIXES
    from titanslab.data.dna.genome import Genome, parse_region
    from titanslab.data.text import text_kind
    from titanslab.evaluation.dna.genes import read_genes
    from titanslab.files import check_new_folder
    from titanslab.runs.loading import find_model_folder, open_model

    if not genome.is_file():
        raise FileNotFoundError(f"genome {str(genome)!r} does not exist (looked for {genome.absolute()})")
    if text_kind(genome) not in ("FASTA", None):
        raise ValueError(f"genome {str(genome)!r} is not FASTA by its name; give {', '.join(SUFFIXES)}, also .gz")
    folder = find_model_folder(model)
    source = Genome(genome, f"genome {str(genome)!r}", parse_region(region) if region is not None else None, warm_up)
    if genes is not None and not genes.is_file():
        raise FileNotFoundError(f"--genes {str(genes)!r} does not exist (looked for {genes.absolute()})")
    if warm_up and region is None:
        raise ValueError("--warm-up reads bases before a region; give --region too")
    if bigwig and find_spec("pyBigWig") is None:
        raise ImportError("--bigwig needs a package: pip install pyBigWig")
    place = output or Path(f"{genome.name.split('.')[0]}-{Path(model).name}-track")
    check_new_folder(place, "--output")
    total = source.bases
    regions = read_genes(genes, source.sizes, f"--genes {str(genes)!r}") if genes is not None else []
    network, tokenizer = open_model(model, device)
    from titanslab.evaluation.dna.along import track_names, values_along
    from titanslab.evaluation.dna.track import TrackSettings, write_tracks
    from titanslab.progress import bar

    first = 0 if source.region is None else source.region.start
    settings = TrackSettings(bin_size, source.sizes, first, total, track_line, bigwig, regions)
    about: dict[str, Any] = {
        "title": f"{Path(model).name} along {genome.name}{f', {region}' if region else ''}",
        "genome": str(genome),
        "region": region,
        "model": str(folder.resolve()),
        "learn": learn,
        "warm_up": warm_up,
        "genes": None if genes is None else str(genes),
    }
    stream = values_along(network, tokenizer, source.pieces(), piece_size=piece, learn=learn)
    names = track_names(network)
    with bar("reading", "bases") as progress:
        summary = write_tracks(place, stream, names, settings, about=about, progress=progress)
    typer.echo(f"{summary['bits_per_base']:.4f} bits per base over {summary['scored']:,} bases")
    files = [f"{name}.{kind}" for name in names for kind in (["bedgraph", "bw"] if bigwig else ["bedgraph"])]
    more = ["genes.tsv"] if regions else []
    typer.echo(f"written: {place}/{', '.join([*files, *more, 'track.png', 'summary.json'])}")
