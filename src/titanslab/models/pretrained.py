"""`TitansPreTrainedModel`: initial values of a model's weights, and the class attributes that Hugging Face reads."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init

from titanslab.layers import RMSNorm
from titanslab.memory import NeuralMemory
from titanslab.models.baseline import AttentionMixer
from titanslab.models.cache import NEW, OLD
from titanslab.models.config import TitansConfig
from titanslab.models.mixer import Mixer
from titanslab.models.plain_trainer import spare_in_weight_decay

GATES = ("theta_proj", "theta_key_proj", "eta_proj", "alpha_proj")


class TitansPreTrainedModel(PreTrainedModel):
    """Base of the models: the initial values of their weights, and the class attributes that Hugging Face reads."""

    config: TitansConfig
    config_class = TitansConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _is_stateful = True  # turns assisted decoding off: a memory cannot take tokens back
    _no_split_modules = ["TitansBlock"]  # noqa: RUF012
    _skip_keys_device_placement = [OLD, NEW]  # noqa: RUF012
    _supports_sdpa = True
    # A gate is applied over thousands of tokens, and its rounding error would accumulate.
    _keep_in_fp32_modules_strict = [*GATES, "memory_weights", "memory_norm_weight", "memory_norm_bias"]  # noqa: RUF012

    @property
    def accepts_loss_kwargs(self) -> bool:
        """True: the loss takes `num_items_in_batch`. Every Trainer asks its model this, hence the call here."""
        spare_in_weight_decay()
        return True

    def initialize_weights(self) -> None:
        """Draw the initial values of all weights that were not loaded."""
        # A NeuralMemory draws the values of its submodules itself. Hugging Face skips modules with this mark.
        for memory in self.modules():
            if isinstance(memory, NeuralMemory):
                for inner in set(memory.modules()) - {memory}:
                    inner._is_hf_initialized = True  # type: ignore[assignment]
        super().initialize_weights()

    def _initialize_weights(self, module: nn.Module, *args: Any, **kwargs: Any) -> None:
        # `is_custom_code` is not passed on: it skips a module whose own parameters were loaded, even if parameters of
        # the modules inside it are missing.
        super()._initialize_weights(module)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, NeuralMemory):
            self._init_memory(module)
        elif isinstance(module, nn.Linear):
            init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)
        elif isinstance(module, nn.Embedding):
            # OURS: embeddings have the size of the first blocks' outputs, in narrow models too (docs/log/).
            init.normal_(module.weight, mean=0.0, std=module.embedding_dim**-0.5)
        elif isinstance(module, RMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, Mixer):
            if module.persistent is not None:
                init.normal_(module.persistent)
            if isinstance(module, AttentionMixer) and module.convs is not None:
                reset_unless_loaded(module, module.reset_projections)

    def _init_memory(self, memory: NeuralMemory) -> None:
        """Draw the initial values of a memory, which differ from those of other layers; loaded weights are kept."""

        def reset() -> None:
            for name, child in memory.named_modules():
                if name and name not in GATES and hasattr(child, "reset_parameters"):
                    child.reset_parameters()
            memory.reset_parameters()

        reset_unless_loaded(memory, reset)

    def decay_parameter_names(self) -> list[str]:
        """Parameters that weight decay may act on: matrices and embeddings.

        It does not act on gates, norms, convolutions, biases, persistent tokens and M_0, because it would pull
        half-lives, write sizes and M_0 towards arbitrary values.
        """
        modules = [(name, module) for name, module in self.named_modules() if not {*GATES} & {*name.split(".")}]
        names = [f"{name}.weight" for name, module in modules if isinstance(module, nn.Linear | nn.Embedding)]
        known = dict(self.named_parameters())  # tied weights once
        return [name for name in names if name in known]


def reset_unless_loaded(module: nn.Module, reset: Callable[[], None]) -> None:
    """Draw the initial values of a module as a whole, then restore the parameters that were loaded."""
    loaded = [(p, p.clone()) for p in module.parameters() if getattr(p, "_is_hf_initialized", False)]
    if len(loaded) == len(list(module.parameters())):
        return
    reset()
    for parameter, value in loaded:
        parameter.copy_(value)
