"""Loaded before any test module: one thread a process, and Triton's switch, read when it is first imported."""

import os

# two pytest workers share the cores; libraries that start more threads than that wait for one another
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)
# without a GPU the kernels run in Triton's interpreter
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
