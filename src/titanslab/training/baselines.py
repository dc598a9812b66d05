"""Models of transformers as baselines, `architecture = "llama"` in [model], and the start of their recurrent layers."""

import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn

from titanslab.memory.layer import NeuralMemory
from titanslab.memory.start import start_to_recall
from titanslab.models.config import WINDOWED, nearest

STARTS = ("authors", "recall")  # allowed values of model.start for an architecture of transformers
USUAL = "usual"  # and that of a Titans model
STEPS = (1e-3, 1e-1)  # range of the initial steps in the code of the authors of Gated DeltaNet and Mamba2
HALF_LIVES = (2.0**14, 2.0**20)  # shortest and longest half-life of the heads, in tokens, for the start "recall"


def check_architecture(name: str) -> None:
    """Raise ValueError unless `name` is the model_type of a causal language model of transformers, or in `WINDOWED`."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

    if name in WINDOWED:
        import titanslab.models.windowed  # noqa: F401  registers these two
    elif name not in KNOWN:
        raise ValueError(
            f"model.architecture is {name!r}; it must be the model_type of a causal language model of transformers, "
            f"such as llama or qwen3_next, or one of {', '.join(WINDOWED)}; leave it out for a Titans model"
            f"{nearest(name, (*KNOWN, *WINDOWED))}"
        )


def option_names(name: str) -> list[str]:
    """The fields that the config of this architecture has beyond those of every config, sorted."""
    from transformers import CONFIG_MAPPING, PreTrainedConfig

    common = set(inspect.signature(PreTrainedConfig).parameters) - {"tie_word_embeddings"}
    tokens = {"pad_token_id", "bos_token_id", "eos_token_id", "tie_word_embeddings"}
    return sorted(set(inspect.signature(CONFIG_MAPPING[name]).parameters) - common - {"kwargs"} | tokens)


def architecture_config(name: str, options: dict[str, Any]) -> Any:
    """The config of this architecture; ValueError in one line for options that it refuses."""
    from transformers import AutoConfig

    try:
        return AutoConfig.for_model(name, **options)
    except Exception as error:  # each config raises exceptions of its own, and they change with releases
        raise ValueError(f"[model] of architecture {name!r}: {' '.join(str(error).split())[:400]}") from error


def start_layers(model: nn.Module, start: str) -> None:
    """Draw the initial values of a model's Gated DeltaNet or Mamba2 layers anew, with torch's random numbers.

    transformers sets every `dt_bias` of Gated DeltaNet and Bamba to 1, with which most heads forget within a token.

    Args:
        model: a model with such layers; ValueError for one without.
        start: "authors" draws steps in `STEPS`, as flash-linear-attention does; it is also a start of Mamba2 layers,
            whose authors draw the same steps. "recall" gives the heads half-lives in `HALF_LIVES`, and starts q, k, v
            and the output projection as a `NeuralMemory` does, so that a query finds the token that once followed
            the tokens before it.
    """
    layers: list[Any] = [
        module
        for module in model.modules()
        if hasattr(module, "A_log") and hasattr(module, "dt_bias" if start == "authors" else "in_proj_qkvz")
    ]
    if not layers:
        kinds = "Gated DeltaNet or Mamba2 layers" if start == "authors" else "Gated DeltaNet layers"
        raise ValueError(
            f"model.start = {start!r} is for models with {kinds} (architecture qwen3_next), and "
            f"{type(model).__name__} has none; leave it out"
        )
    with torch.no_grad():
        for layer in layers:
            heads = layer.dt_bias.shape[0]
            if start == "authors":
                low, high = (math.log(step) for step in STEPS)
                layer.dt_bias.copy_(_before_softplus(torch.exp(low + (high - low) * torch.rand(heads))))
                continue
            low, high = (math.log2(half_life) for half_life in HALF_LIVES)
            layer.A_log.zero_()
            layer.dt_bias.copy_(_before_softplus(math.log(2) / 2 ** torch.linspace(low, high, heads)))
            _start_projections(layer)


def start_usually(model: Any) -> None:
    """Draw projections and convolutions of a Titans model anew as transformers does, with torch's random numbers.

    Projections q, k, v and o are normal with the config's `initializer_range`, and the taps of convolutions uniform as
    in torch. So no query finds its key at the start. Gates, half-lives and M_0 keep their start. Raises ValueError for
    a model without a memory.
    """
    layers = [module for module in model.modules() if isinstance(module, NeuralMemory)]
    if not layers:
        raise ValueError(f"model.start = {USUAL!r} is for models with a memory, and this one has none; leave it out")
    std = model.config.initializer_range
    for layer in layers:
        for name in "qkvo":
            nn.init.normal_(getattr(layer, f"{name}_proj").weight, std=std)
        if layer.conv_size > 1:
            for name in "qkv":
                bound = layer.conv_size**-0.5
                nn.init.uniform_(getattr(layer, f"{name}_conv1d").weight, -bound, bound)


def _before_softplus(x: Tensor) -> Tensor:
    return x + torch.log(-torch.expm1(-x))


def _start_projections(layer: Any) -> None:
    """Start as `NeuralMemory.reset_projections` does; here a head holds `[q | k | v | z]` and its oldest tap first."""
    hidden = layer.in_proj_qkvz.in_features
    width = layer.head_k_dim
    heads = layer.in_proj_qkvz.weight.view(layer.num_k_heads, -1, hidden)
    values = (heads.shape[1] - 2 * width) // 2
    nn.init.normal_(heads[:, width : 2 * width + values], std=hidden**-0.5)
    heads[:, :width] = heads[:, width : 2 * width]
    nn.init.normal_(layer.out_proj.weight, std=0.1 * hidden**-0.5)
    size = layer.conv1d.weight.shape[2]
    key_width = layer.num_k_heads * width
    widths = (key_width, key_width, layer.conv1d.weight.shape[0] - 2 * key_width)
    taps = [torch.empty(size, n) for n in widths]
    start_to_recall(*taps)
    layer.conv1d.weight[:, 0] = torch.cat(taps, 1).T.flip(1)
