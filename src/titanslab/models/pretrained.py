"""`TitansPreTrainedModel`: initial values of a model's weights, and what Hugging Face asks to know."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init

from titanslab.layers import RMSNorm
from titanslab.memory import NeuralMemory
from titanslab.models.baseline import AttentionMixer
from titanslab.models.cache_name import NEW, OLD
from titanslab.models.config import TitansConfig
from titanslab.models.mixer import Mixer
from titanslab.models.read import Reads

GATES = ("theta_proj", "theta_key_proj", "eta_proj", "alpha_proj")


class TitansPreTrainedModel(Reads, PreTrainedModel):
    """Weights, their initial values, and what Hugging Face asks to know."""

    config: TitansConfig
    config_class = TitansConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _is_stateful = True  # tokens cannot be taken back: no assisted decoding
    _no_split_modules = ["TitansBlock"]  # noqa: RUF012
    _skip_keys_device_placement = [OLD, NEW]  # noqa: RUF012
    _supports_sdpa = True
    # gates act over thousands of tokens; their rounding would too
    _keep_in_fp32_modules_strict = [*GATES, "memory_weights", "memory_norm_weight", "memory_norm_bias"]  # noqa: RUF012

    def _initialize_weights(self, module: nn.Module, *args: Any, **kwargs: Any) -> None:
        # a NeuralMemory initialises itself as a whole; what is inside it is passed over
        if getattr(module, "_inside_memory", False):
            module._is_hf_initialized = True  # type: ignore[assignment]
        elif isinstance(module, NeuralMemory | AttentionMixer):  # what is missing may be inside, not its own
            if not getattr(module, "_is_hf_initialized", False):
                self._init_weights(module)
                module._is_hf_initialized = True  # type: ignore[assignment]
        else:
            super()._initialize_weights(module, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, NeuralMemory):
            self._init_memory(module)
        elif isinstance(module, nn.Linear):
            init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)
        elif isinstance(module, nn.Embedding):
            # OURS: tokens as large as what the first blocks add to them, in narrow models too (docs/log.md)
            init.normal_(module.weight, mean=0.0, std=module.embedding_dim**-0.5)
        elif isinstance(module, RMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, Mixer):
            if module.persistent is not None:
                init.normal_(module.persistent)
            if isinstance(module, AttentionMixer) and module.convs is not None:
                _reset_unless_loaded(module, module.reset_projections)

    def _init_memory(self, memory: NeuralMemory) -> None:
        """The memory's own initial values, whatever the trunk's; weights that were loaded stay."""

        def reset() -> None:
            for name, child in memory.named_modules():
                if name and name not in GATES and hasattr(child, "reset_parameters"):
                    child.reset_parameters()
            memory.reset_parameters()

        _reset_unless_loaded(memory, reset)

    def decay_parameter_names(self) -> list[str]:
        """Parameters that weight decay may act on: matrices and embeddings.

        Gates, norms, convolutions, biases, persistent tokens and the memory's start M_0 are left out: decay
        would pull half-lives, learning rates and what a memory knows at birth towards a value nobody chose.
        """
        names = []
        for module_name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding) and module_name.rpartition(".")[2] not in GATES:
                names.append(f"{module_name}.weight")
        known = dict(self.named_parameters())
        return [name for name in names if name in known]


def _reset_unless_loaded(module: nn.Module, reset: Callable[[], None]) -> None:
    """Draw the initial values of a module as a whole; parameters that were loaded keep theirs."""
    loaded = [(p, p.clone()) for p in module.parameters() if getattr(p, "_is_hf_initialized", False)]
    if len(loaded) == len(list(module.parameters())):
        return
    reset()
    for parameter, value in loaded:
        parameter.copy_(value)
