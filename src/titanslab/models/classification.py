"""`TitansForSequenceClassification`: the trunk of a Titans model, pooled, and a linear head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils import can_return_tuple

from titanslab.models.config import TitansConfig
from titanslab.models.losses import write_loss
from titanslab.models.modeling import TitansModel
from titanslab.models.pooling import pool
from titanslab.models.pretrained import TitansPreTrainedModel


@dataclass
class TitansClassifierOutput(SequenceClassifierOutput):
    """Outputs of `TitansForSequenceClassification`; `memory_stats` as in `TitansOutput`."""

    memory_stats: tuple[dict[str, Tensor], ...] | None = None


class TitansForSequenceClassification(TitansPreTrainedModel):
    """A Titans model that classifies a sequence by the mean of its outputs, or by the last of them.

    The config's `num_labels`, `id2label` and `problem_type` are those of transformers; `classifier_pooling` and
    `classifier_dropout` are fields of `TitansConfig`. `from_pretrained` on the folder of a `TitansForCausalLM` keeps
    its trunk and draws a new head.
    """

    def __init__(self, config: TitansConfig) -> None:
        super().__init__(config)
        self.num_labels: int = config.num_labels  # type: ignore[assignment]
        self.model = TitansModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.score = nn.Linear(config.hidden_size, self.num_labels, bias=False)
        self.post_init()

    @property
    def accepts_loss_kwargs(self) -> bool:
        """Whether the loss takes `num_items_in_batch`, as that of one class a sequence does; see the base class."""
        return super().accepts_loss_kwargs and self.config.problem_type == "single_label_classification"

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_memory_stats: bool = False,
        **kwargs: Any,
    ) -> TitansClassifierOutput:
        """Logits `[B, num_labels]`, and the loss where labels are given.

        Args:
            input_ids: int64 `[B, T]`; or give `inputs_embeds [B, T, hidden_size]` in its place.
            attention_mask: `[B, T]`, 0 = padding, anywhere in a row; padded tokens are not pooled.
            labels: int64 `[B]` for classes; float `[B, num_labels]` for several classes at once; float `[B]` for a
                regression (`num_labels` of 1).
            output_hidden_states, output_memory_stats: as in `TitansModel.forward`.
            kwargs: `num_items_in_batch`, the divisor of the summed loss; `write_cost_share`, a factor of
                `config.memory_write_cost`, whose cost is a part of the loss in training.
        """
        share = kwargs.pop("write_cost_share", 1.0)
        for name in ("cache", "past_key_values", "document_ids"):
            if kwargs.pop(name, None) is not None:
                raise ValueError(f"{name} is not an argument of a classifier: it reads a row as one whole sequence")
        kwargs.pop("use_cache", None)
        has_memory = self.config.variant != "attention"
        priced = has_memory and self.training and labels is not None and self.config.memory_write_cost > 0
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            use_cache=False,
            output_hidden_states=output_hidden_states,
            output_memory_stats=output_memory_stats or priced,
            return_dict=True,
        )
        pooled = pool(outputs.last_hidden_state, attention_mask, self.config.classifier_pooling)
        logits = self.score(self.dropout(pooled))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config, **kwargs)
        if loss is not None and priced:
            cost = share * self.config.memory_write_cost
            price = cost * write_loss(outputs.memory_stats, attention_mask, self.config.memory_write_floor)
            items = kwargs.get("num_items_in_batch")
            loss = loss + (price if items is None else price * len(logits) / items).to(loss.dtype)
        return TitansClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            memory_stats=outputs.memory_stats if output_memory_stats else None,
        )
