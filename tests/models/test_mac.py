"""Tests of the writes of MAC."""

import torch

from titanslab.models import call as layout
from titanslab.models import segments as segments_module
from titanslab.models.cache import TitansCache
from titanslab.models.config import TitansConfig
from titanslab.models.modeling import TitansForCausalLM


def small_mac(**fields: int) -> TitansConfig:
    shape = dict(
        vocab_size=40, hidden_size=16, num_attention_heads=2, intermediate_size=32, chunk_size=4, segment_len=8
    )
    return TitansConfig(variant="mac", **(shape | fields))


def test_a_mac_whose_attention_is_silent_writes_its_tokens() -> None:
    """If attention's values are zero, MAC writes the normalised tokens of the segment."""
    torch.manual_seed(0)
    config = small_mac(num_hidden_layers=1, num_persistent_tokens=0)
    model = TitansForCausalLM(config).double().eval()
    mixer = model.model.layers[0].mixer
    torch.nn.init.zeros_(mixer.attention.v_proj.weight)
    ids = torch.randint(0, 40, (2, 24))
    with torch.no_grad():
        state = model(ids, use_cache=True).past_key_values.states[0].memory.memory
        tokens = mixer.y_norm(mixer.norm(model.model.embed_tokens(ids)))
        expected = mixer.memory.update(tokens).memory
    for got, wanted in zip(state.weights + state.momentum, expected.weights + expected.momentum, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)
        assert wanted.abs().max() > 1e-3


def test_pieces_of_whole_segments_take_the_short_way(monkeypatch) -> None:
    """A call that begins with a segment in every row takes the path without a cache, with the same outputs."""
    torch.manual_seed(0)
    config = small_mac(num_hidden_layers=2, num_persistent_tokens=2)
    model = TitansForCausalLM(config).double().eval()
    ids = torch.randint(0, 40, (2, 41))
    laid: list[bool] = []
    make = layout._make_steps
    monkeypatch.setattr(layout, "_make_steps", lambda *a: (laid.append(True), make(*a))[1])

    def read() -> tuple[list[torch.Tensor], list[bool]]:
        laid.clear()
        cache, logits, walked = TitansCache(config), [], []
        for start, stop in ((0, 16), (16, 35), (35, 37), (37, 40), (40, 41)):
            before = len(laid)
            with torch.no_grad():
                logits.append(model(ids[:, start:stop], past_key_values=cache).logits)
            walked.append(len(laid) > before)
        tensors = [t for state in cache.states for t in state.tensors().values()]
        return [torch.cat(logits, 1), *tensors], walked

    short, walked = read()
    assert walked == [False, False, True, True, True]  # 35 is inside a segment; a decode step does not check
    monkeypatch.setattr(layout, "_aligned", lambda start, *_: start is None)
    long, walked = read()
    assert walked == [False, True, True, True, True]
    for a, b in zip(short, long, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_what_a_training_segment_holds(monkeypatch) -> None:
    """In the loop a segment keeps its state once and no tensor of the memory's hidden width; all share one mask."""
    monkeypatch.setattr(segments_module, "takes_walk", lambda *_: False)
    torch.manual_seed(0)
    config = small_mac(num_hidden_layers=1, num_persistent_tokens=0, segment_len=32, memory_expansion=3)
    model, segments = TitansForCausalLM(config), 6
    ids = torch.randint(0, 40, (1, 32 * segments))
    held: dict[int, torch.Tensor] = {}

    def note(t: torch.Tensor) -> torch.Tensor:
        held[t.untyped_storage().data_ptr()] = t
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        model(ids, labels=ids)
    shapes = [tuple(t.shape) for t in held.values()]
    inner = config.memory_expansion * config.head_dim
    assert not [s for s in shapes if s[-2:] == (32, inner)]
    assert shapes.count((32, 64)) == 1
    states = [s for s in shapes if s[-2:] in ((2 * 8, inner), (8, inner), (2 * inner, 8), (inner, 8))]
    assert 2 * (segments - 1) <= len(states) <= 2 * (segments + 2)
