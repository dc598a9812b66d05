"""What the tests of the two carries share: those of a graft and of a Titans model."""

import torch

from titanslab.data.documents import ANEW, BEGINS, GOES_ON


def batch(ids, *begins):
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), BEGINS: torch.tensor(begins)}


def step(model, carry, *given):
    """The logits of a batch that is read with what was carried."""
    logits = model(**carry.enter(batch(*given))).logits
    carry.leave()
    return logits


def check_gradients(model, carry, ids, start):
    """Assert that gradients end at a row and reach the memory's `start` where a document begins; `ids [2, 24]`."""
    step(model, carry, ids[:, :12], ANEW, ANEW)
    assert not any(t.requires_grad for t in carry.cache.tensors().values())
    for begins, reached in ((GOES_ON, False), (ANEW, True)):
        kept = carry.cache.fork()
        start.grad = None
        step(model, carry, ids[:, 12:], GOES_ON, begins).square().mean().backward()
        assert (start.grad is not None and bool(start.grad.abs().sum() > 0)) == reached
        carry.cache = kept
