"""Compares the bytes of training in closed form with the tensors that a forward pass holds for backward."""

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from titanslab import TitansConfig, TitansForCausalLM
from titanslab.layers import mlp
from titanslab.memory import backends, layer, norms
from titanslab.models import segments
from titanslab.models.training_memory import Setting, block_states, training_memory

ROWS, TOKENS = 2, 576  # more than layer.RECOMPUTE_TOKENS


class Live(TorchDispatchMode):
    """Counts the bytes of the storages that live: `now`, and the most at a time, `peak`."""

    def __init__(self, known):
        super().__init__()
        self.now = self.peak = 0
        self.sizes = {tensor.untyped_storage()._cdata: 0 for tensor in known}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu":
                storage = tensor.untyped_storage()
                if storage._cdata not in self.sizes:
                    self.sizes[storage._cdata] = storage.nbytes()
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self.drop, storage._cdata)
        return out

    def drop(self, key):
        self.now -= self.sizes.pop(key)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """PyTorch operations alone, without the compiled passes for a CPU."""
    for module in (norms, mlp):
        monkeypatch.setattr(module, "own_backward", lambda x: False)
    monkeypatch.setattr(layer, "takes_layer", lambda *_: False)
    monkeypatch.setattr(layer, "takes_features", lambda *_: False)
    monkeypatch.setattr(segments, "takes_walk", lambda *_: False)
    monkeypatch.setattr(backends, "chunk_loop", lambda *_: ("torch", ""))


def small(variant, blocks, **options):
    return TitansConfig(
        variant=variant, vocab_size=64, hidden_size=64, num_attention_heads=2, num_hidden_layers=blocks,
        num_persistent_tokens=16, window_size=256, segment_len=192, chunk_size=64, fused_loss=True, **options,
    )  # fmt: skip


def held(config, bf16, checkpointing=False):
    """Bytes that live at the end of a forward pass, and the most while it and its backward pass run."""
    model = TitansForCausalLM(config).train()
    if checkpointing:
        turn_on = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        turn_on({"use_reentrant": False})
    ids = torch.zeros(ROWS, TOKENS, dtype=torch.int64)
    with Live(model.parameters()) as live:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(ids, labels=ids).loss
        now = live.now
        loss.backward()
    return now, live.peak


def counted(config, bf16, **options):
    return training_memory(config, Setting(ROWS, TOKENS, bf16=bf16, narrow_memory=False, **options))


@pytest.mark.parametrize(
    ("variant", "bf16"), [*((v, True) for v in ("attention", "lmm", "mal", "mag", "mac")), ("mag", False)]
)
def test_a_block_holds_the_bytes_of_the_closed_form(variant, bf16, as_on_a_gpu):
    one, two = (held(small(variant, blocks), bf16)[0] for blocks in (1, 2))
    more, fewer = (counted(small(variant, blocks), bf16) for blocks in (2, 1))
    known = sum(getattr(more, n) - getattr(fewer, n) for n in ("activations", "states", "casts"))
    assert known == pytest.approx(two - one, rel=0.03)


@pytest.mark.parametrize("variant", ["lmm", "mac"])
def test_checkpointing_leaves_one_block_at_a_time(variant, as_on_a_gpu):
    config = small(variant, 3)
    _, peak = held(config, True, checkpointing=True)
    found = counted(config, True, checkpointing=True)
    # `Live` does not see inside the memory's op, where backward computes states again
    inside = found.states - block_states(config, Setting(ROWS, TOKENS))
    most = found.total - found.parameters - found.optimizer - inside  # if all gradients were there from the start
    assert 0.8 * most < peak < 1.03 * most
    assert peak < counted(config, True).activations / 1.5


def test_sharding_divides_weights_gradients_and_moments():
    config = TitansConfig.preset("340m", variant="lmm")
    one, ddp = (training_memory(config, Setting(1, 4096, devices=devices)) for devices in (1, 8))
    fsdp = training_memory(config, Setting(1, 4096, devices=8, sharding="fsdp"))
    for name in ("parameters", "gradients", "optimizer"):
        assert getattr(ddp, name) == getattr(one, name) == pytest.approx(8 * getattr(fsdp, name), abs=8)
    assert one.exchange == 0 < fsdp.exchange < ddp.exchange == ddp.gradients
    assert one.activations == ddp.activations == fsdp.activations


def test_states_of_wide_heads_are_kept_more_often():
    narrow, wide = (TitansConfig.preset(name, variant="lmm") for name in ("760m", "1.3b"))
    sizes = [block_states(config, Setting(1, 4096)) for config in (narrow, wide)]
    fast = [config.memory.num_heads * 8 * config.memory_head_dim**2 for config in (narrow, wide)]
    assert sizes[1] / sizes[0] > 2 * fast[1] / fast[0]
