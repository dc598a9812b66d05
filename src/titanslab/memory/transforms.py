"""Whether a transform of PyTorch is at work, whose tensors have no storage and no values to look at."""

import torch
from torch.autograd import forward_ad


def transformed() -> bool:
    """Whether torch.func or forward-mode AD is at work, whose tensors no compiled pass can take."""
    if torch.compiler.is_compiling():
        return False  # a trace answers for the tracer; an op without a rule for the transform says so itself
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0
