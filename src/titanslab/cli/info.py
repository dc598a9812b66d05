"""`titans info`: versions, devices, the memory's backend and the cost of a config."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command()
def info(
    config: Annotated[
        Path | None, typer.Option("--config", help="A config.json, a model folder, a run, or a recipe.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="tiny, 170m, 340m, 400m, 760m or 1.3b.")] = None,
    variant: Annotated[str | None, typer.Option(help="lmm, mal, mag, mac or attention, with --preset.")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Sequence length for FLOPs and state.")] = 4096,
) -> None:
    """Show versions, devices, memory backends and why; parameters, FLOPs and state bytes of a config.

    Example: [bold]titans info --preset 170m --variant mag[/bold]
    """
    if config is not None and preset is not None:
        raise ValueError("--config and --preset exclude each other; give one of them")
    if variant is not None and preset is None:
        raise ValueError("--variant needs --preset, such as --preset tiny")
    from rich.console import Console

    from titanslab.runs.quiet import quiet_libraries

    quiet_libraries()
    chosen = None
    if config is not None:
        chosen = read_config(config)
    elif preset is not None:
        from titanslab.models.config import TitansConfig

        chosen = TitansConfig.preset(preset, variant=variant or "mac")
    console = Console(highlight=False, soft_wrap=True)
    _versions(console)
    _backends(console, chosen)
    if chosen is not None:
        _cost(console, chosen, tokens)


def read_config(path: Path) -> Any:
    """The config at `path`: a config.json, a model or run folder, or a recipe; else ValueError."""
    from transformers import AutoConfig

    from titanslab.runs.loading import find_model_folder

    if path.suffix == ".toml":
        from titanslab.data import load_tokenizer
        from titanslab.training.model import model_config
        from titanslab.training.recipe import load_recipe

        recipe = load_recipe(path)
        return model_config(recipe, load_tokenizer(recipe.data.tokenizer))
    if not path.exists():
        raise FileNotFoundError(f"--config {str(path)!r} does not exist (looked for {path.absolute()})")
    try:
        return AutoConfig.from_pretrained(
            path if path.is_file() else find_model_folder(path), trust_remote_code=False, local_files_only=True
        )
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


def _backends(console: Any, config: Any) -> None:
    import torch

    from titanslab.memory import choose_backend
    from titanslab.models.config import TitansConfig

    if not isinstance(config, TitansConfig):
        config = TitansConfig.preset("tiny")
    if config.variant == "attention":
        return
    width = config.memory_head_dim
    network = config.memory.network(width)
    places = [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]
    for place in places:
        for what, tokens in (("reading", 1024), ("decoding", 1)):
            dtype = torch.bfloat16 if place.type == "cuda" else torch.float32
            with torch.no_grad():
                choice = choose_backend(place, dtype, tokens, network, width, config.memory.chunk_size)
            console.print(f"memory     {place.type}, {what}: {choice.name} ({choice.reason})")


def _cost(console: Any, config: Any, tokens: int) -> None:
    from titanslab.models.config import TitansConfig

    if not isinstance(config, TitansConfig):
        console.print(f"model      {config.model_type}, {_count_parameters(config):,} parameters")
        return
    from titanslab.models.cost import cost

    found, longer = cost(config, tokens), cost(config, 2 * tokens)
    console.print(
        f"model      titans {config.variant}, {found.parameters:,} parameters "
        f"({found.embedding_parameters:,} of them embedding)"
    )
    console.print(f"compute    {_short(found.flops_per_token)}FLOPs per token, forward, over {tokens:,} tokens")
    grows = "constant" if longer.cache_bytes == found.cache_bytes else f"{_bytes(longer.cache_bytes)} at twice that"
    console.print(f"state      {_bytes(found.cache_bytes)} per sequence after {tokens:,} tokens, fp32; {grows}")
    if found.memory_weights:
        console.print(f"memory     {found.memory_weights:,} fast weights per sequence")


def _count_parameters(config: Any) -> int:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):  # On this device a model has shapes alone and takes no memory.
        return sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())


def _short(number: float) -> str:
    for power, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= power:
            return f"{number / power:.2f} {letter}"
    return f"{number:.0f} "


def _bytes(count: int) -> str:
    for power, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= power:
            return f"{count / power:.2f} {unit} ({count:,} bytes)"
    return f"{count} bytes"
