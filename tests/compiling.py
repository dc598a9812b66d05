"""`torch.compile` over the releases that are tested."""

import contextlib

import torch


def whole_graphs() -> contextlib.AbstractContextManager:
    """Where fullgraph=True takes ops whose results' shapes depend on data; from torch 2.11 on it does by itself."""
    older = torch.__version__.startswith(("2.9.", "2.10."))
    return torch._dynamo.config.patch(capture_dynamic_output_shape_ops=older)
