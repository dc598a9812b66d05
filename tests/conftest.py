"""Loaded before any test module: Triton reads its switch when it is first imported."""

import os

import torch

# without a GPU the kernels run in Triton's interpreter
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
