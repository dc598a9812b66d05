"""`Model(configs)`, a model for the harness Time-Series-Library (TSLib): its file `models/Titans.py` is one line.

from titanslab.integrations.tslib import Model
"""

from typing import Any

from torch import Tensor, nn

from titanslab.integrations.core import forecasting_core

TASKS = ("long_term_forecast", "short_term_forecast")
# Attributes of TSLib's `configs` and the fields of `TitansForecastingConfig` that they give.
NAMES = {
    "d_model": "hidden_size",
    "n_heads": "num_attention_heads",
    "e_layers": "num_hidden_layers",
    "d_ff": "intermediate_size",
    "dropout": "dropout",
    "patch_len": "patch_length",
}
# Fields of the config that `configs` may have under their own name: no argument of TSLib's run.py sets them.
OWN = ("patch_stride", "sequence_module", "channel_mixing", "head_dropout", "scaling_affine", "linear_skip", "memory")


class Model(nn.Module):
    """`TitansForForecasting` with the constructor and the `forward` of TSLib's models.

    Args:
        configs: has `seq_len`, `pred_len` and `enc_in`; and may have `task_name`, `d_model`, `n_heads`, `e_layers`,
            `d_ff`, `dropout`, `patch_len` and `use_norm` (0: no instance normalisation), with the meaning that they
            have for TSLib's PatchTST, and `patch_stride`, `sequence_module`, `channel_mixing`, `head_dropout`,
            `scaling_affine`, `linear_skip` and `memory` as in `TitansForecastingConfig`. `label_len` is not used.

    Raises:
        ValueError: a task that is no forecast, an attribute that is missing, or one with an impossible value.
    """

    def __init__(self, configs: Any) -> None:
        super().__init__()
        self.task_name = getattr(configs, "task_name", TASKS[0])
        if self.task_name not in TASKS:
            raise ValueError(
                f"task_name {self.task_name!r} is not a task of Titans' Model, which forecasts: {' and '.join(TASKS)}"
            )
        missing = [name for name in ("seq_len", "pred_len", "enc_in") if getattr(configs, name, None) is None]
        if missing:
            raise ValueError(f"configs has no {missing[0]!r}, which Titans' Model needs: seq_len, pred_len and enc_in")
        options = {field: getattr(configs, name, None) for name, field in NAMES.items()}
        options |= {name: getattr(configs, name, None) for name in OWN}
        if not getattr(configs, "use_norm", True):
            options["scaling"] = "none"
        self.model = forecasting_core(configs.seq_len, configs.pred_len, configs.enc_in, **options)

    def forward(
        self,
        x_enc: Tensor,
        x_mark_enc: Tensor | None = None,
        x_dec: Tensor | None = None,
        x_mark_dec: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """The forecast `[B, pred_len, enc_in]` of the history `x_enc [B, seq_len, enc_in]`.

        `mask [B, seq_len, enc_in]` is 0 for missing values. Time features and the decoder's input are not read.
        """
        return self.model(x_enc, mask).prediction_outputs
