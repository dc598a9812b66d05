"""One decode step on fixed buffers, and the same step as a CUDA graph.

A step of one token launches hundreds of small kernels, which takes longer than their arithmetic. The shapes and the
code of the step do not depend on the number of tokens read, so a GPU can record it once and replay it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from titanslab.models.cache import TitansCache

if TYPE_CHECKING:
    from titanslab.models.modeling import TitansForCausalLM

_WARMUP = 3  # steps before the recording; libraries allocate their buffers in the first


class StaticStep:
    """A model's decode step with its inputs and results in fixed buffers, on any device.

    Args:
        model: in `eval()` mode. Variant "attention" needs a window, since without one its cache grows.
        cache: state after the tokens read so far. It is copied, not changed.

    Raises:
        ValueError: the cache is empty, the cache of the model grows, or the model is in training mode.
    """

    def __init__(self, model: TitansForCausalLM, cache: TitansCache) -> None:
        if cache.position is None:
            raise ValueError("cache is empty: read a prompt first, with model.read(ids) or model(ids, use_cache=True)")
        if model.config.variant == "attention" and model.config.window_size is None:
            raise ValueError(
                "model has variant 'attention' without a window: its cache grows with every token, so a step cannot be "
                "replayed; use generate()"
            )
        if model.training:
            raise ValueError("model is in training mode; call model.eval() first")
        self.model = model
        self._cache = cache.map(lambda t: t.detach().clone())
        self._cache.bind(model)
        self.token = torch.zeros(cache.batch_size, 1, dtype=torch.int64, device=cache.position.device)
        self.logits = model.lm_head.weight.detach().new_zeros(cache.batch_size, model.config.vocab_size)

    def _step(self) -> None:
        """Read `self.token`; store the new state in the cache's buffers and the logits in `self.logits`."""
        after = self._cache.fork()
        with torch.no_grad():
            logits = self.model(self.token, past_key_values=after, use_cache=True).logits[:, -1]
        buffers, new = self._cache.tensors(), after.tensors()
        # A new value may share memory with a buffer: at a chunk's start, chunk_weights become the old weights. Such
        # values are copied before any buffer is written.
        taken = {b.untyped_storage().data_ptr() for b in buffers.values()}
        new = {n: t.clone() if t.untyped_storage().data_ptr() in taken else t for n, t in new.items()}
        for name, buffer in buffers.items():
            buffer.copy_(new[name])
        self.logits.copy_(logits)

    def __call__(self, token: Tensor) -> Tensor:
        """Logits `[B, vocabulary]` after `token [B]` or `[B, 1]`; the next call overwrites them."""
        self.token.copy_(token.view_as(self.token))
        self._step()
        self._cache.columns += 1
        return self.logits

    def cache(self) -> TitansCache:
        """A copy of the current cache, to save it or to continue from it with `generate()`."""
        return self._cache.map(torch.clone)


class DecodeGraph(StaticStep):
    """`StaticStep` recorded as a CUDA graph.

        graph = DecodeGraph(model, model.read(prompt[:, :-1]))
        token = prompt[:, -1]
        for _ in range(100):
            token = graph(token).argmax(-1)

    The graph keeps the values that `cache.learn` and `cache.write_scale` have when it is recorded.

    Raises:
        ValueError: the model is not on a CUDA device, or an error of `StaticStep`.
    """

    def __init__(self, model: TitansForCausalLM, cache: TitansCache) -> None:
        device = next(model.parameters()).device
        if device.type != "cuda":
            raise ValueError(
                f"model is on {device}; a CUDA graph needs a GPU: use model.to('cuda'), or generate() here"
            )
        super().__init__(model, cache)
        before = self.cache().tensors()
        with torch.cuda.device(device):  # a graph records the current device's stream
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARMUP):
                    super()._step()
            torch.cuda.current_stream().wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                super()._step()
        for name, buffer in self._cache.tensors().items():
            buffer.copy_(before[name])

    def _step(self) -> None:
        with torch.cuda.device(self.token.device):
            self._graph.replay()
