"""`training.report_to`: the Trainer's trackers, checked before a run begins; TensorBoard writes into the run folder."""

import os
from pathlib import Path
from typing import Any

from titanslab.models.config import nearest

TENSORBOARD = "tensorboard"  # the folder of its logs in a run
PACKAGES = {"azure_ml": "azureml-core", "comet_ml": "comet-ml", "flyte": "flytekit"}  # others have the tracker's name


def check_trackers(names: list[str]) -> None:
    """ValueError for a tracker that the Trainer does not know, or whose package is missing."""
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            allowed = tuple(sorted(INTEGRATION_TO_CALLBACK))
            raise ValueError(
                f"training.report_to names {name!r}; the Trainer can report to {', '.join(allowed)}"
                f"{nearest(name, allowed)}"
            )
        try:
            INTEGRATION_TO_CALLBACK[name]()
        except (RuntimeError, ImportError) as error:
            package = PACKAGES.get(name, name)
            raise ValueError(
                f"training.report_to names {name!r}, which needs the package {package}: pip install {package}, or take "
                "the name out"
            ) from error


def place_logs(trainer: Any, output: Path) -> None:
    """Let TensorBoard's callback write to `output`/tensorboard, unless its environment variable names a folder."""
    for callback in trainer.callback_handler.callbacks:
        if type(callback).__name__ == "TensorBoardCallback" and "TENSORBOARD_LOGGING_DIR" not in os.environ:
            callback.logging_dir = str(output / TENSORBOARD)
