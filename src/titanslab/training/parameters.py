"""`model.parameters` of a recipe: the width of the MLPs that gives a model its number of parameters."""

from typing import Any

from titanslab.models.cost import num_parameters

TOLERANCE = 0.03  # largest share by which the number may differ


def fit_parameters(config: Any, parameters: int) -> None:
    """Set `config.intermediate_size` so that the model has nearly `parameters` parameters; tied ones count once.

    The variants differ in their mixers. With the blocks, the width and the heads of the paper's table, the width of the
    MLPs is the size that the paper leaves open. It is a multiple of 64, or of 8 below a hidden size of 512.

    Raises:
        ValueError: the config has no `intermediate_size`, or no width comes within 3 % of the number.
    """
    if not isinstance(getattr(config, "intermediate_size", None), int):
        raise ValueError(
            f"model.parameters = {parameters} sets intermediate_size, which a {config.model_type} has not; leave it out"
        )
    step = 64 if config.hidden_size >= 512 else 8
    counts = []
    for width in (step, 2 * step):
        config.intermediate_size = width
        counts.append(num_parameters(config))
    each = counts[1] - counts[0]
    steps = max(1, round((parameters - counts[0]) / each) + 1) if each > 0 else 1
    found = counts[0] + (steps - 1) * each
    if abs(found - parameters) > TOLERANCE * parameters:
        raise ValueError(
            f"model.parameters = {parameters:,} is out of reach: with MLPs {steps * step} wide, the nearest, the model "
            f"has {found:,}; change the number, model.num_hidden_layers or model.hidden_size"
        )
    config.intermediate_size = steps * step
