"""One decode step on buffers that stay where they are, and the same as a CUDA graph.

A step of one token is hundreds of small launches, which cost more than their arithmetic. Its shapes and its code do
not depend on how much was read, so a GPU can record it once and replay it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from titanslab.models.cache import TitansCache

if TYPE_CHECKING:
    from titanslab.models.modeling import TitansForCausalLM

_WARMUP = 3  # runs before recording: libraries allocate what they need on the first


class StaticStep:
    """A model's decode step from and into fixed buffers; on any device.

    Args:
        model: in `eval()`, not variant "attention" without a window, whose cache grows.
        cache: what was read so far; it is copied and stays as it is.
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
        """Read `self.token`; the cache's buffers and `self.logits` then hold what follows."""
        after = self._cache.fork()
        with torch.no_grad():
            logits = self.model(self.token, past_key_values=after, use_cache=True).logits[:, -1]
        buffers, new = self._cache.tensors(), after.tensors()
        # a new value may be another's buffer (a chunk's start is what the weights were): taken before it is written to
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
        """A copy of what is known now, to save or to go on from in any other way."""
        return self._cache.map(torch.clone)


class DecodeGraph(StaticStep):
    """`StaticStep` recorded as a CUDA graph.

        graph = DecodeGraph(model, model.read(prompt[:, :-1]))
        token = prompt[:, -1]
        for _ in range(100):
            token = graph(token).argmax(-1)

    `cache.learn` and `cache.write_scale` hold as they are when it is recorded.

    Raises:
        ValueError: the model is not on a CUDA device, or what `StaticStep` refuses.
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
