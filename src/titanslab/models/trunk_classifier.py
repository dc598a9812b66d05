"""A classifier over any trunk of transformers, pooled as `TitansForSequenceClassification` pools its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils import can_return_tuple

from titanslab.models.classifier_configs import TrunkClassifierConfig
from titanslab.models.pooling import pool


class TrunkForSequenceClassification(PreTrainedModel):
    """The trunk of any model of transformers, the mean or the last of its outputs, and a linear head.

    transformers' own classifiers take the last token alone, so that a comparison with a mean would also compare the
    poolings.

    Args:
        config: of the classifier and its trunk. trunk: a trained trunk; default a new one.
    """

    config: TrunkClassifierConfig
    config_class = TrunkClassifierConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: TrunkClassifierConfig, trunk: Any = None) -> None:
        super().__init__(config)
        self.num_labels: int = config.num_labels  # type: ignore[assignment]
        body: Any = config.trunk
        self.model = AutoModel.from_config(body) if trunk is None else trunk
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.score = nn.Linear(body.hidden_size, self.num_labels, bias=False)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if module is self.score:  # the trunk has drawn its own
            init.normal_(module.weight, std=0.02)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Logits `[B, num_labels]`, and the loss where labels are given; arguments as in the Titans classifier."""
        outputs = self.model(
            input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds, use_cache=False
        )
        pooled = pool(outputs.last_hidden_state, attention_mask, self.config.classifier_pooling)
        logits = self.score(self.dropout(pooled))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config, **kwargs)
        return SequenceClassifierOutput(loss=loss, logits=logits)
