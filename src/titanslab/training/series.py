"""The windows and the model of a recipe with [series]."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import default_data_collator

from titanslab.data.order import ShuffledRows
from titanslab.runs.loading import load_config, load_forecaster
from titanslab.training.recipe import Recipe
from titanslab.training.series_sections import FILLED, ForecasterRecipe, SeriesRecipe
from titanslab.training.sources import RunData

UNITS = {"mse": "mean squared error", "mae": "mean absolute error", "huber": "Huber loss", "quantile": "pinball loss"}


def open_series(recipe: Recipe, say: Callable[[str], None]) -> tuple[RunData, Callable[[], Any]]:
    """Read the file of a recipe: its windows on the standardised scale, and a function that makes the model.

    Raises FileNotFoundError or ValueError for a file that is missing, unreadable or too short.
    """
    from titanslab.data.series import SeriesFacts, read_series
    from titanslab.data.series.series import describe
    from titanslab.tasks.forecasting import constant_columns, fit_scalers, form_of, part_windows, split_name

    section: SeriesRecipe = recipe.data
    split = section.split or split_name(section.file)
    form = form_of(split, series_form(section))
    series = read_series(section.file, form)
    say(describe(series, section.file))
    if constant := constant_columns(series, split, section.file):
        say(f"warning: constant in the training rows, and not scaled: {', '.join(constant)}")
    scalers = fit_scalers(series, split, section.file)
    columns = list(series[0].columns)
    config = forecaster_config(recipe.model, len(columns))
    lengths = (config.history_length, config.prediction_length)
    train = part_windows(series, "train", split, lengths, scalers, section.file, stride=section.stride)
    facts = SeriesFacts(
        columns=columns,
        mean=scalers[0].mean.tolist() if len(series) == 1 else [],
        std=scalers[0].std.tolist() if len(series) == 1 else [],
        step=series[0].step,
        split=split,
        form="long" if series[0].name else "wide",
        time_column=form.time_column,
        series_column=form.series_column,
        steps=form.steps,
        decimal=form.decimal,
        file=Path(section.file).name,
    )
    data = RunData(
        ShuffledRows(train, recipe.training.seed),  # type: ignore[arg-type]
        lambda model_type: default_data_collator,
        per_epoch=len(train),
        validation=part_windows(series, "validation", split, lengths, scalers, section.file),  # type: ignore[arg-type]
        unit=UNITS.get(config.loss, config.loss),
        labels="future_values",
        counted="values",
        save=facts.write,
    )
    return data, lambda: build_forecaster(recipe.model, config)


def series_form(section: SeriesRecipe) -> Any:
    """How the section says that its file is to be read."""
    from titanslab.data.series import SeriesForm

    names = ("form", "time_column", "series_column", "columns", "steps", "decimal")
    return SeriesForm(**{name: getattr(section, name) for name in names})


def forecaster_config(section: ForecasterRecipe, channels: int) -> Any:
    """The config that [model] describes, for a file with so many columns."""
    from titanslab.models.forecaster import forecaster_config as new_config

    if section.pretrained is None:
        return new_config(section.architecture, {FILLED: channels} | section.options)
    config: Any = load_config(section.pretrained, **section.options)
    if getattr(config, "num_input_channels", channels) != channels:
        raise ValueError(
            f"model.pretrained = {section.pretrained!r} forecasts {config.num_input_channels} columns, and the file "
            f"has {channels}"
        )
    return config


def build_forecaster(section: ForecasterRecipe, config: Any) -> Any:
    """The model of a config; with `pretrained` its weights are those of that folder."""
    from titanslab.models.forecaster import ARCHITECTURES

    if section.pretrained is None:
        return ARCHITECTURES[section.architecture or "titans"](config)
    return load_forecaster(section.pretrained, **section.options).float().train()
