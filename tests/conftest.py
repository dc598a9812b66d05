"""Loaded before any test module: one thread a process, and Triton's switch, read when it is first imported."""

import contextlib
import os

# two pytest workers share the cores; libraries that start more threads than that wait for one another
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)
# without a GPU the kernels run in Triton's interpreter
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    with contextlib.suppress(ImportError, AttributeError):
        from triton.runtime import interpreter

        patch = interpreter._patch_lang_tensor

        def patched(tensor, *scope):
            """Triton before 3.7 makes a loop's bound of an array of one element, which NumPy 2.4 does not convert."""
            patch(tensor, *scope)
            tensor.__index__ = lambda self: int(self.handle.data.squeeze())

        interpreter._patch_lang_tensor = patched
