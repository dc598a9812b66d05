"""The CNN of GenomicBenchmarks as a Hugging Face model: the usual small baseline of its sets."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils import can_return_tuple

from titanslab.models.classifier_configs import CNN_KERNEL, CNN_WIDTHS, GenomicCNNConfig


class CNNForSequenceClassification(PreTrainedModel):
    """Embedding, three convolutions of 16, 8 and 4 channels and kernel 8, and two linear layers.

    The layers are those of `genomic_benchmarks.models.torch.CNN` (version 1.0.0), which has a ReLU after the first
    convolution alone and nothing between the linear layers. OURS: two classes have two outputs and a cross entropy,
    which is the same function family as the benchmark's one output with a sigmoid.
    """

    config: GenomicCNNConfig
    config_class = GenomicCNNConfig

    def __init__(self, config: GenomicCNNConfig) -> None:
        super().__init__(config)
        self.num_labels: int = config.num_labels  # type: ignore[assignment]
        self.embeddings = nn.Embedding(config.vocab_size, config.embedding_size)
        layers: list[nn.Module] = []
        for inner, outer in pairwise((config.embedding_size, *CNN_WIDTHS)):
            first = [nn.ReLU()] if not layers else []
            layers += [nn.Conv1d(inner, outer, CNN_KERNEL), nn.BatchNorm1d(outer), *first, nn.MaxPool1d(2)]
        self.cnn = nn.Sequential(*layers)
        length = config.max_length
        for _ in CNN_WIDTHS:
            length = (length - CNN_KERNEL + 1) // 2
        self.dense = nn.Linear(CNN_WIDTHS[-1] * length, config.dense_size)
        self.score = nn.Linear(config.dense_size, self.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Every layer keeps the start that torch gives it, as the benchmark's does."""

    @can_return_tuple
    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **kwargs: Any
    ) -> SequenceClassifierOutput:
        """Logits `[B, num_labels]`, and the loss where labels are given.

        Args:
            input_ids: int64 `[B, T]` with T of at most `config.max_length`, padded on the right to that length.
            attention_mask: `[B, T]`; tokens where it is 0 are read as padding.
            labels: int64 `[B]`.
        """
        pad, length = self.config.pad_token_id or 0, self.config.max_length
        if input_ids.shape[1] > length:
            raise ValueError(
                f"input_ids has {input_ids.shape[1]} tokens a row, and config.max_length is {length}; cut the rows"
            )
        if attention_mask is not None:
            input_ids = input_ids.masked_fill(attention_mask == 0, pad)
        ids = F.pad(input_ids, (0, length - input_ids.shape[1]), value=pad)
        hidden = self.cnn(self.embeddings(ids).transpose(1, 2)).flatten(1)
        logits = self.score(self.dense(hidden))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config, **kwargs)
        return SequenceClassifierOutput(loss=loss, logits=logits)
