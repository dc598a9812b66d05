"""`titans info`: versions, devices, the memory's backend and the cost of a config."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from titanslab.cli.sizes import as_bytes, short

if TYPE_CHECKING:
    from titanslab.training.recipe import Recipe


def info(
    config: Annotated[
        Path | None, typer.Option("--config", help="A config.json, a model folder, a run, or a recipe.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="tiny, 170m, 340m, 400m, 760m or 1.3b.")] = None,
    variant: Annotated[str | None, typer.Option(help="lmm, mal, mag, mac or attention, with --preset.")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Sequence length for FLOPs and state.")] = 4096,
    recipe: Annotated[
        Path | None, typer.Option("--recipe", help="A recipe: also the run's tokens, GPU memory and hours.")
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="With --recipe: change a value, such as model.variant=mag."),
    ] = None,
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="With --recipe: number of GPUs.")] = 1,
    mfu: Annotated[
        float, typer.Option("--mfu", help="With --recipe: the share of the GPUs' FLOPs that training reaches, 0 to 1.")
    ] = 0.4,
    sharding: Annotated[
        str | None, typer.Option("--sharding", help="With --recipe: ddp or fsdp; default: the recipe's.")
    ] = None,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure", help="Compare and time the ways to run the memory here, and keep the fastest for auto."
        ),
    ] = False,
) -> None:
    """Show versions, devices, memory backends and why; parameters, FLOPs and state bytes of a config.

    With a recipe also what its training takes: no weights are made and no data is read.

    Example: [bold]titans info --preset 170m --variant mag[/bold]

    Example: [bold]titans info --recipe recipes/paper/340m.toml --gpus 8 --sharding fsdp[/bold]

    Example: [bold]titans info --preset 170m --measure[/bold]
    """
    given = [f"--{name}" for name, value in (("config", config), ("preset", preset), ("recipe", recipe)) if value]
    if len(given) > 1:
        raise ValueError(f"{given[0]} and {given[1]} exclude each other; give one of them")
    if recipe is None and (assignments or gpus != 1 or sharding is not None or mfu != 0.4):
        raise ValueError("--set, --gpus, --sharding and --mfu need --recipe, such as --recipe recipes/tiny.toml")
    if not 0 < mfu <= 1:
        raise ValueError(f"--mfu must be above 0 and at most 1, got {mfu}")
    if variant is not None and preset is None:
        raise ValueError("--variant needs --preset, such as --preset tiny")
    if config is not None and not config.exists():
        raise FileNotFoundError(f"--config {str(config)!r} does not exist (looked for {config.absolute()})")
    from rich.console import Console

    from titanslab.runs.loading import quiet_libraries

    plan = None
    if recipe is not None:
        plan = _recipe(recipe, assignments or [], sharding)
    quiet_libraries()
    chosen = None
    if config is not None:
        chosen = read_config(config)
    elif preset is not None:
        from titanslab.models.config import TitansConfig

        chosen = TitansConfig.preset(preset, variant=variant or "mac")
    elif plan is not None:
        from titanslab.training.plan import recipe_config

        chosen, tokens = recipe_config(plan), plan.data.sequence_length
    console = Console(highlight=False, soft_wrap=True)
    _versions(console)
    _backends(console, chosen, measure)
    if chosen is not None:
        _cost(console, chosen, tokens)
    if plan is not None:
        from titanslab.cli.plan import plan_lines

        for line in plan_lines(plan, gpus, mfu):
            console.print(line)


def _recipe(path: Path, assignments: list[str], sharding: str | None) -> Recipe:
    """The recipe with the assignments, of which --sharding is one."""
    from titanslab.training.recipe import SHARDINGS, load_recipe

    if sharding is not None and sharding not in SHARDINGS:
        raise ValueError(f"--sharding is {sharding!r}; allowed: {', '.join(SHARDINGS)}")
    return load_recipe(path, assignments + ([f"training.sharding={sharding}"] if sharding else []))


def read_config(path: Path) -> Any:
    """The config at `path`: a config.json, a model or run folder, or a recipe; else ValueError."""
    from titanslab.runs.loading import find_model_folder, read_config

    if path.suffix == ".toml":
        from titanslab.training.plan import recipe_config
        from titanslab.training.recipe import load_recipe

        return recipe_config(load_recipe(path))
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
                chunk, forget_to = config.memory.chunk_size, config.memory.forget_to
                choice = choose_backend(place, dtype, tokens, network, width, chunk, forget_to=forget_to)
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
    console.print(f"compute    {short(found.flops_per_token)}FLOPs per token, forward, over {tokens:,} tokens")
    grows = "constant" if later == found.cache_bytes else f"{_bytes(later)} at twice that"
    console.print(f"state      {_bytes(found.cache_bytes)} per sequence after {tokens:,} tokens, fp32; {grows}")
    if found.memory_weights:
        console.print(f"memory     {found.memory_weights:,} fast weights per sequence")


def _bytes(count: int) -> str:
    return f"{count} bytes" if count < 1024 else f"{as_bytes(count)} ({count:,} bytes)"
