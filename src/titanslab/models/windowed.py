"""Hybrids of transformers with their attention in a window: `bamba_window` and `qwen3_next_window`.

Samba is Mamba and attention in a window in turn, and the hybrid of Gated DeltaNet is made in the same way. transformers
has both kinds of layers, but its hybrids attend to all tokens. The models here are Bamba (Mamba2 layers) and Qwen3-Next
(Gated DeltaNet layers) with another mask; layers, weights and caches are those of transformers.
"""

from typing import Any, ClassVar

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, DynamicCache
from transformers.masking_utils import create_recurrent_attention_mask, create_sliding_window_causal_mask
from transformers.models.bamba.configuration_bamba import BambaConfig
from transformers.models.bamba.modeling_bamba import BambaForCausalLM, BambaModel
from transformers.models.qwen3_next.configuration_qwen3_next import Qwen3NextConfig
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextForCausalLM, Qwen3NextModel

from titanslab.models.config import WINDOWED


class BambaWindowConfig(BambaConfig):
    """`BambaConfig` with `sliding_window`: the tokens that an attention position sees, itself included."""

    model_type: ClassVar[str] = WINDOWED[0]
    sliding_window: int = 2048


class Qwen3NextWindowConfig(Qwen3NextConfig):
    """`Qwen3NextConfig` with `sliding_window`: the tokens that an attention position sees, itself included."""

    model_type: ClassVar[str] = WINDOWED[1]
    sliding_window: int = 2048


class _Windowed:
    """Replaces the masks of a hybrid's model, and counts positions from the start of the text, not of the call."""

    config: Any
    embed_tokens: Any

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: Any = None,
        position_ids: torch.Tensor | None = None,
        cache: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **more: Any,
    ) -> Any:
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if cache is None and (self.config.use_cache if use_cache is None else use_cache):
            cache = DynamicCache(config=self.config)
        kinds = self.config.layer_types
        layer = kinds.index("full_attention") if "full_attention" in kinds else 0
        if position_ids is None:
            seen = 0 if cache is None or kinds[layer] != "full_attention" else cache.get_seq_length(layer)
            position_ids = torch.arange(seen, seen + x.shape[1], device=x.device)[None]
        if not isinstance(attention_mask, dict):
            given = {"config": self.config, "inputs_embeds": x, "attention_mask": attention_mask}
            given |= {"cache": cache, "position_ids": position_ids}
            attention_mask = {
                "full_attention": create_sliding_window_causal_mask(**given, layer_idx=layer),
                "linear_attention": create_recurrent_attention_mask(**given),
            }
        call: Any = super().forward  # type: ignore[misc]
        return call(
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=x,
            use_cache=use_cache,
            **more,
        )


class BambaWindowModel(_Windowed, BambaModel):
    """Bamba with attention in a window."""

    config_class = BambaWindowConfig


class BambaWindowForCausalLM(BambaForCausalLM):
    """Bamba with attention in a window, and its head."""

    config_class = BambaWindowConfig

    def __init__(self, config: BambaWindowConfig) -> None:
        super().__init__(config)
        self.model = BambaWindowModel(config)
        self.post_init()


class Qwen3NextWindowModel(_Windowed, Qwen3NextModel):
    """Qwen3-Next with attention in a window."""

    config_class = Qwen3NextWindowConfig


class Qwen3NextWindowForCausalLM(Qwen3NextForCausalLM):
    """Qwen3-Next with attention in a window, and its head."""

    config_class = Qwen3NextWindowConfig

    def __init__(self, config: Qwen3NextWindowConfig) -> None:
        super().__init__(config)
        self.model = Qwen3NextWindowModel(config)
        self.post_init()


for _config, _body, _model in (
    (BambaWindowConfig, BambaWindowModel, BambaWindowForCausalLM),
    (Qwen3NextWindowConfig, Qwen3NextWindowModel, Qwen3NextWindowForCausalLM),
):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModel.register(_config, _body, exist_ok=True)
    AutoModelForCausalLM.register(_config, _model, exist_ok=True)
