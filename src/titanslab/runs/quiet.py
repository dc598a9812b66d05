"""Other libraries print errors alone while our commands run."""

import logging
import os
import warnings


def quiet_libraries() -> None:
    """Let torch, transformers and accelerate report errors alone; no progress bars of theirs, no telemetry."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(torch|transformers|accelerate)\b")
    logging.getLogger("torch.distributed").setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
