"""Baselines of forecasting with the inputs, the outputs and the scaling of `TitansForForecasting`."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PatchTSTConfig, PatchTSTForPrediction, PreTrainedModel

from titanslab.models.pretrained import reset_unless_loaded
from titanslab.models.series_config import (
    DLinearConfig,
    InvertedConfig,
    LinearForecastingConfig,
    PatchTSTForecastingConfig,
    SeriesConfig,
)
from titanslab.models.series_model import SeriesModel, States


class SeriesPreTrainedModel(SeriesModel, PreTrainedModel):
    """Base of the baselines: a Hugging Face model whose modules start as torch starts them."""

    config: Any
    config_class = SeriesConfig
    base_model_prefix = ""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        config.check()
        self.make_series_parts()
        self.outputs = config.prediction_length * max(1, len(config.quantiles))

    @property
    def accepts_loss_kwargs(self) -> bool:
        """False: the loss is the mean over a batch's observed values."""
        return False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        reset = getattr(module, "reset_parameters", getattr(module, "_reset_parameters", None))
        if reset is not None and list(module.parameters()):
            reset_unless_loaded(module, reset)


class LinearForForecasting(SeriesPreTrainedModel):
    """RLinear (arXiv 2305.10721): a linear map from the normalised history to the horizon, shared by the columns."""

    config_class = LinearForecastingConfig

    def __init__(self, config: LinearForecastingConfig) -> None:
        super().__init__(config)
        self.dropout = nn.Dropout(config.head_dropout)
        self.linear = nn.Linear(config.context_length, self.outputs)
        self.post_init()

    def predict(self, x: Tensor, state: States | None, return_state: bool) -> tuple[Tensor, States | None]:
        """See `SeriesModel.predict`."""
        return self.linear(self.dropout(x.transpose(1, 2))), None


class DLinearForForecasting(SeriesPreTrainedModel):
    """DLinear (arXiv 2205.13504): linear maps of a moving mean and of the rest, shared by the columns."""

    config_class = DLinearConfig

    def __init__(self, config: DLinearConfig) -> None:
        super().__init__(config)
        self.dropout = nn.Dropout(config.head_dropout)
        self.trend = nn.Linear(config.context_length, self.outputs)
        self.season = nn.Linear(config.context_length, self.outputs)
        self.post_init()

    def predict(self, x: Tensor, state: States | None, return_state: bool) -> tuple[Tensor, States | None]:
        """See `SeriesModel.predict`."""
        x, size = x.transpose(1, 2), self.config.moving_average
        trend = F.avg_pool1d(F.pad(x, (size // 2, size // 2), mode="replicate"), size, stride=1)
        return self.trend(self.dropout(trend)) + self.season(self.dropout(x - trend)), None


class InvertedForForecasting(SeriesPreTrainedModel):
    """Inverted attention (iTransformer, arXiv 2310.06625): a token for each column, in torch's encoder layers."""

    config_class = InvertedConfig

    def __init__(self, config: InvertedConfig) -> None:
        super().__init__(config)
        size = config.hidden_size
        self.embedding = nn.Linear(config.context_length, size)
        self.embedding_dropout = nn.Dropout(config.dropout)
        layer = nn.TransformerEncoderLayer(
            size, config.num_attention_heads, config.intermediate_size, config.dropout, "gelu", batch_first=True
        )
        norm = nn.LayerNorm(size)
        self.encoder = nn.TransformerEncoder(layer, config.num_hidden_layers, norm, enable_nested_tensor=False)
        self.dropout = nn.Dropout(config.head_dropout)
        self.head = nn.Linear(size, self.outputs)
        self.post_init()

    def predict(self, x: Tensor, state: States | None, return_state: bool) -> tuple[Tensor, States | None]:
        """See `SeriesModel.predict`."""
        hidden = self.encoder(self.embedding_dropout(self.embedding(x.transpose(1, 2))))
        return self.head(self.dropout(hidden)), None


class PatchTSTForForecasting(SeriesPreTrainedModel):
    """transformers' `PatchTSTForPrediction` with the scaling, the loss and the quantiles of this library's models."""

    config_class = PatchTSTForecastingConfig

    def __init__(self, config: PatchTSTForecastingConfig) -> None:
        super().__init__(config)
        sizes: dict[str, Any] = {
            "num_input_channels": config.num_input_channels,
            "context_length": config.context_length,
            "prediction_length": self.outputs,
            "patch_length": config.patch_length,
            "patch_stride": config.patch_stride,
            "d_model": config.hidden_size,
            "num_hidden_layers": config.num_hidden_layers,
            "num_attention_heads": config.num_attention_heads,
            "ffn_dim": config.intermediate_size,
            "norm_type": config.norm_type,
            "pre_norm": config.pre_norm,
            "head_dropout": config.head_dropout,
            "scaling": None,
            "pooling_type": None,  # the head reads all patches, as in PatchTST's own code
        }
        places = ("attention_dropout", "positional_dropout", "path_dropout", "ff_dropout")
        self.patchtst = PatchTSTForPrediction(PatchTSTConfig(**sizes | dict.fromkeys(places, config.dropout)))
        self.post_init()

    def predict(self, x: Tensor, state: States | None, return_state: bool) -> tuple[Tensor, States | None]:
        """See `SeriesModel.predict`."""
        return self.patchtst(past_values=x).prediction_outputs.transpose(1, 2), None
