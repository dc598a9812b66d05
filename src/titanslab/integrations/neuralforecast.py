"""`Titans`, a model of the library neuralforecast: `NeuralForecast(models=[Titans(h=24, input_size=96)], freq="h")`."""

import difflib
import inspect
from typing import Any

from torch import Tensor

from titanslab.integrations.core import forecasting_core
from titanslab.models.forecasting_config import TitansForecastingConfig

try:
    import pytorch_lightning as lightning
    from neuralforecast.common._base_model import BaseModel
    from neuralforecast.core import MODEL_FILENAME_DICT
    from neuralforecast.losses.pytorch import MAE
except ImportError as error:
    raise ImportError(
        f"titanslab.integrations.neuralforecast needs neuralforecast, which cannot be imported ({error}); "
        "pip install 'titans-lab[forecast]'"
    ) from error

# Fields of the config that follow from h, input_size and loss, or that need more than the rows of a series.
SET_HERE = {"context_length", "prediction_length", "num_input_channels", "loss", "quantiles", "variant"}
SET_HERE |= {"cycle", "memory_windows"}
# Arguments of BaseModel that have no default there, with those of most models of neuralforecast.
DEFAULTS: dict[str, Any] = {
    "loss": MAE(),
    "valid_loss": None,
    "learning_rate": 1e-3,
    "max_steps": 1000,
    "val_check_steps": 100,
    "batch_size": 32,
    "valid_batch_size": None,
    "windows_batch_size": 256,
    "inference_windows_batch_size": 1024,
    "start_padding_enabled": False,
}


class Titans(BaseModel):
    """Titans in neuralforecast: `fit`, `predict`, `cross_validation`, `save` and `load` of `NeuralForecast` take it.

    One model is trained on the windows of all series, each by itself. It is `TitansForForecasting`, and its options are
    those of `TitansForecastingConfig`. For `MQLoss` or a distribution as loss, the head gives as many values for each
    step as the loss has.

    Args:
        h, input_size: rows of the forecast and of the history.
        hidden_size, num_hidden_layers, num_attention_heads, patch_length, patch_stride, sequence_module, dropout: as in
            `TitansForecastingConfig`. Patches are shortened to the history where it is short.
        model_options: more fields of that config, such as {"channel_mixing": "fft", "memory": {"chunk_size": 2}}. Its
            `scaling` is "instance" by default. A distribution's parameters are not on the scale of the series, so that
            for one `scaling` is "none" and `scaler_type` "standard" by default.
        others: loss, max_steps, learning_rate, windows_batch_size, scaler_type, random_seed, alias and all that models
            of neuralforecast take, and every argument of Lightning's Trainer. Defaults are in `DEFAULTS`.

    Raises:
        ValueError: an option with an impossible value. TypeError: an argument that none of them has.
        Exception: `futr_exog_list`, `hist_exog_list` or `stat_exog_list`; the model reads the series alone.
    """

    EXOGENOUS_FUTR = False
    EXOGENOUS_HIST = False
    EXOGENOUS_STAT = False
    MULTIVARIATE = False
    RECURRENT = False

    def __init__(
        self,
        h: int,
        input_size: int,
        hidden_size: int = 64,
        num_hidden_layers: int = 2,
        num_attention_heads: int = 4,
        patch_length: int = 16,
        patch_stride: int = 8,
        sequence_module: str = "lmm",
        dropout: float = 0.1,
        model_options: dict[str, Any] | None = None,
        **others: Any,
    ) -> None:
        _check_names(others, model_options or {})
        distribution = others.get("loss", DEFAULTS["loss"]).is_distribution_output
        scaler = {"scaler_type": "standard"} if distribution else {}
        super().__init__(h=h, input_size=input_size, **(DEFAULTS | scaler | others))
        options: dict[str, Any] = {"scaling": "none" if distribution else "instance"}
        options |= {
            "hidden_size": hidden_size,
            "num_hidden_layers": num_hidden_layers,
            "num_attention_heads": num_attention_heads,
            "patch_length": patch_length,
            "patch_stride": patch_stride,
            "sequence_module": sequence_module,
            "dropout": dropout,
        }
        # A step of the forecast with K values is K rows of the model's forecast.
        rows = h * self.loss.outputsize_multiplier
        self.model = forecasting_core(self.input_size, rows, 1, **(options | (model_options or {})))

    def forward(self, windows_batch: dict[str, Tensor]) -> Tensor:
        """Forecasts `[B, h, K]` of histories `insample_y [B, input_size, 1]`; `insample_mask` is 0 for missing rows.

        K is the loss's `outputsize_multiplier`, and its `domain_map` turns the K values into quantiles or parameters.
        """
        history = windows_batch["insample_y"]
        forecast = self.model(history, windows_batch.get("insample_mask")).prediction_outputs
        return forecast.reshape(history.shape[0], self.h, -1)


def _check_names(others: dict[str, Any], model_options: dict[str, Any]) -> None:
    """TypeError for an argument, or a model's option, that does not exist or stands in the wrong place."""
    fields = set(inspect.signature(TitansForecastingConfig).parameters) - SET_HERE
    own = inspect.signature(Titans.__init__).parameters
    known = {*own, *inspect.signature(BaseModel.__init__).parameters}
    known |= set(inspect.signature(lightning.Trainer.__init__).parameters)
    for name in others:
        if name in fields - known:
            raise TypeError(f"Titans takes {name!r} as an entry of model_options: model_options={{{name!r}: ...}}")
        if name not in known:
            raise TypeError(f"Titans has no argument {name!r}{_nearest(name, known | fields)}")
    for name in model_options:
        if name in own:
            raise TypeError(f"model_options holds {name!r}, which is an argument of its own: Titans({name}=...)")
        if name not in fields:
            raise TypeError(f"model_options holds {name!r}, which is no option of the model{_nearest(name, fields)}")


def _nearest(name: str, known: set[str]) -> str:
    near = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


MODEL_FILENAME_DICT["titans"] = Titans  # `NeuralForecast.save` and `load` find classes here
