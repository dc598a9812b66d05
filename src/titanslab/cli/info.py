"""`titans info`: versions, devices, the memory's backend and the cost of a config."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def info(
    config: Annotated[
        Path | None, typer.Option("--config", help="A config.json, a model folder, a run, or a recipe.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="tiny, 170m, 340m, 400m, 760m or 1.3b.")] = None,
    variant: Annotated[str | None, typer.Option(help="lmm, mal, mag, mac or attention, with --preset.")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Sequence length for FLOPs and state.")] = 4096,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure", help="Compare and time the ways to run the memory here, and keep the fastest for auto."
        ),
    ] = False,
) -> None:
    """Show versions, devices, memory backends and why; parameters, FLOPs and state bytes of a config.

    Example: [bold]titans info --preset 170m --variant mag[/bold]

    Example: [bold]titans info --preset 170m --measure[/bold]
    """
    if config is not None and preset is not None:
        raise ValueError("--config and --preset exclude each other; give one of them")
    if variant is not None and preset is None:
        raise ValueError("--variant needs --preset, such as --preset tiny")
    if config is not None and not config.exists():
        raise FileNotFoundError(f"--config {str(config)!r} does not exist (looked for {config.absolute()})")
    from rich.console import Console

    from titanslab.runs.loading import quiet_libraries

    quiet_libraries()
    chosen = None
    if config is not None:
        chosen = read_config(config)
    elif preset is not None:
        from titanslab.models.config import TitansConfig

        chosen = TitansConfig.preset(preset, variant=variant or "mac")
    console = Console(highlight=False, soft_wrap=True)
    _versions(console)
    _backends(console, chosen, measure)
    if chosen is not None:
        _cost(console, chosen, tokens)


def read_config(path: Path) -> Any:
    """The config at `path`: a config.json, a model or run folder, or a recipe; else ValueError."""
    from titanslab.runs.loading import find_model_folder, read_config

    if path.suffix == ".toml":
        from titanslab.training.model import model_config
        from titanslab.training.recipe import load_recipe
        from titanslab.training.sources import open_tokenizer

        recipe = load_recipe(path)
        return model_config(recipe, open_tokenizer(recipe.data))
    try:
        return read_config(path if path.is_file() else find_model_folder(path) / "config.json")
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"--config {str(path)!r} is not a model's config: {error}") from error


def _versions(console: Any) -> None:
    from titanslab.runs.versions import versions

    found = versions()
    names = ("titanslab", "python", "torch", "transformers", "accelerate", "datasets", "triton")
    console.print("versions   " + "  ".join(f"{name} {found[name]}" for name in names if found[name]))
    console.print(f"machine    {found['processor']}, {found['cpus']} CPUs, {found['torch_threads']} torch threads")
    devices = ", ".join(found["devices"]) or "no GPU that torch can use"
    console.print(f"devices    cpu, {devices}" + (f" (CUDA {found['cuda']})" if found["devices"] else ""))
    if found["commit"]:
        console.print(f"commit     {found['commit']}")


def _backends(console: Any, config: Any, measure: bool) -> None:
    import torch

    from titanslab.memory import choose_backend
    from titanslab.models.config import TitansConfig

    if not isinstance(config, TitansConfig):
        config = TitansConfig.preset("tiny")
    if config.variant == "attention":
        if measure:
            raise ValueError("--measure times a memory, and variant 'attention' has none; choose lmm, mal, mag or mac")
        return
    width = config.memory_head_dim
    network = config.memory.network(width)
    places = [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]
    for place in places:
        dtype = torch.bfloat16 if place.type == "cuda" else torch.float32
        for what, tokens in (("reading", 1024), ("decoding", 1)):
            if measure and what == "reading":
                _measure(console, place, config)
            with torch.no_grad():
                choice = choose_backend(place, dtype, tokens, network, width, config.memory.chunk_size)
            console.print(f"memory     {place.type}, {what}: {choice.name} ({choice.reason})")


def _measure(console: Any, device: Any, config: Any) -> None:
    """Time the memory of `config` on one device, print each way, and keep the fastest."""
    import torch

    from titanslab.memory import measured
    from titanslab.memory.measure import measure

    dtype, width = torch.bfloat16 if device.type == "cuda" else torch.float32, config.memory_head_dim
    with console.status(f"comparing and timing on {device.type}; torch.compile takes a minute"):
        found = measure(device, dtype, config.memory.network(width), width, config.memory.chunk_size)
    for what, ways in (("reading", found.reading), ("decoding", found.decoding)):
        for way in ways:
            taken = "not taken" if way.seconds is None else f"{1e3 * way.seconds:.3g} ms"
            console.print(
                f"measured   {device.type}, {what}, {way.name}: {taken}" + (f" ({way.reason})" if way.reason else "")
            )
    console.print(f"measured   kept in {measured.path()}")


def _cost(console: Any, config: Any, tokens: int) -> None:
    from titanslab.models.config import TitansConfig
    from titanslab.models.cost import cache_bytes, cost, num_parameters

    if not isinstance(config, TitansConfig):
        console.print(f"model      {config.model_type}, {num_parameters(config):,} parameters")
        return
    found, later = cost(config, tokens), cache_bytes(config, 1, 2 * tokens)
    console.print(
        f"model      titans {config.variant}, {found.parameters:,} parameters "
        f"({found.embedding_parameters:,} of them embedding)"
    )
    console.print(f"compute    {_short(found.flops_per_token)}FLOPs per token, forward, over {tokens:,} tokens")
    grows = "constant" if later == found.cache_bytes else f"{_bytes(later)} at twice that"
    console.print(f"state      {_bytes(found.cache_bytes)} per sequence after {tokens:,} tokens, fp32; {grows}")
    if found.memory_weights:
        console.print(f"memory     {found.memory_weights:,} fast weights per sequence")


def _short(number: float, kilo: int = 1000) -> str:
    """A number with the largest unit of T, G, M and k (the powers of `kilo`) that it reaches, such as `1.50 G`."""
    power = next((n for n in (4, 3, 2, 1) if number >= kilo**n), 0)
    return f"{number / kilo**power:.2f} {' kMGT'[power]}" if power else f"{number:.0f} "


def _bytes(count: int) -> str:
    return f"{count} bytes" if count < 1024 else f"{_short(count, 1024).upper()}iB ({count:,} bytes)"
