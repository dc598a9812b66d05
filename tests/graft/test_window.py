"""Attention in a window with sinks: against masks made token by token, with and without a cache, at any length."""

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.bloom.configuration_bloom import BloomConfig
from transformers.models.gpt_neo.configuration_gpt_neo import GPTNeoConfig
from transformers.models.qwen3_next.configuration_qwen3_next import Qwen3NextConfig

from grafted import base, grafted, left_padded, text

ROTARY = ("llama", "mistral", "qwen2", "qwen3", "gemma3", "gpt_neox", "olmo2", "cohere", "glm", "lfm2", "qwen3_next")
W, S = 6, 2


def reference(model, ids: torch.Tensor, mask: torch.Tensor, size: int, sinks: int, **given) -> torch.Tensor:
    """Logits of the base with an attention mask that is made here for each row, token by token."""
    rows, tokens = ids.shape

    def made(size: int, sinks: int) -> torch.Tensor:
        seen = torch.zeros(rows, 1, tokens, tokens, dtype=torch.bool)
        for row in range(rows):
            real = [t for t in range(tokens) if mask[row, t]]
            for number, t in enumerate(real):
                for other in range(number + 1):
                    seen[row, 0, t, real[other]] = number - other < size or other < sinks
            for t in set(range(tokens)) - set(real):
                seen[row, 0, t, t] = True
        if model.config._attn_implementation == "eager":
            return torch.where(seen, 0.0, torch.finfo(torch.float32).min)
        return seen

    full, own = made(size, sinks), getattr(model.config, "sliding_window", None)
    layers = getattr(model.config, "layer_types", None)
    if layers and "sliding_attention" in layers:
        full = {"full_attention": full, "sliding_attention": full if own > size else made(own, 0)}
    elif layers and set(layers) & {"conv", "linear_attention"}:
        full = {"full_attention": full, "conv": mask, "linear_attention": mask}
    elif own is not None and own <= size:
        full = made(own, 0)
    with torch.no_grad():
        return model(ids, attention_mask=full, use_cache=False, **given).logits


@torch.no_grad()
def in_pieces(model, ids: torch.Tensor, mask: torch.Tensor | None, ends: tuple[int, ...], position=None, cache=None):
    """Logits of a text that a cache reads in pieces, and the cache."""
    cache = model.graft.cache() if cache is None else cache
    found, start = [], 0
    for end in ends:
        given = {model.graft.decoder.cache_name: cache}
        if position is not None:
            given["position_ids"] = position[:, start:end]
        if mask is not None:
            given["attention_mask"] = mask[:, :end]
        found.append(model(ids[:, start:end], **given).logits)
        start = end
    return torch.cat(found, 1), cache


ENDS = (3, 4, 11, 12, 13, 14, 30)


@pytest.mark.parametrize(
    ("name", "attention", "size"),
    [(name, "sdpa", W) for name in (*ROTARY, "gpt2")]
    + [("llama", "eager", W), ("gemma3", "eager", W), ("mistral", "sdpa", 9), ("gemma3", "sdpa", 9)],
)
def test_the_masks_of_the_base(name, attention, size):
    model = base(name, attention)
    with torch.no_grad():
        model.get_input_embeddings().weight[0] = 0.1  # padding is 0 otherwise, which hides that a layer reads it
    ids, mask = left_padded(2, 30)
    position = (mask.cumsum(1) - 1).clamp(0)
    wanted = [reference(model, text(2, 30), torch.ones(2, 30), size, S)]
    wanted.append(reference(model, ids, mask, size, S, position_ids=position))
    grafted(model, window_size=size, num_sink_tokens=S)
    with torch.no_grad(), model.graft.window_alone():
        torch.testing.assert_close(model(text(2, 30), use_cache=False).logits, wanted[0])
        torch.testing.assert_close(in_pieces(model, text(2, 30), None, ENDS)[0], wanted[0])
        torch.testing.assert_close(model(text(2, 30)).logits, wanted[0])
        real = mask.bool()
        found = model(ids, attention_mask=mask, position_ids=position, use_cache=False).logits
        torch.testing.assert_close(found[real], wanted[1][real])
        # transformers takes a single token as real in layers with states
        ends = ENDS if all(model.graft.decoder.attentions) else ENDS[2:]
        found, cache = in_pieces(model, ids, mask, ends, position)
        torch.testing.assert_close(found[real], wanted[1][real])
    kept = {layer.keys.shape[2] for layer in cache.layers if hasattr(layer, "keys")}
    assert kept <= {size + S - 1, 7}


@pytest.mark.parametrize(("name", "placement"), [("llama", "mag"), ("gemma3", "mac"), ("gpt2", "mal")])
def test_memories_go_on_beside_a_window(name, placement):
    model = grafted(base(name), window_size=W, num_sink_tokens=S, placement=placement)
    ids, mask = left_padded(2, 30)
    position = (mask.cumsum(1) - 1).clamp(0)
    with torch.no_grad():
        whole = model(ids, attention_mask=mask, position_ids=position, use_cache=False).logits
    found, _ = in_pieces(model, ids, mask, ENDS, position)
    torch.testing.assert_close(found[mask.bool()], whole[mask.bool()])


def test_outputs_of_a_memory_leave_its_context():
    model = grafted(base(), window_size=W, num_sink_tokens=S, placement="mac")
    ids, mask = left_padded(2, 100)
    position = (mask.cumsum(1) - 1).clamp(0)
    with torch.no_grad():
        whole = model(ids, attention_mask=mask, position_ids=position, use_cache=False).logits
    found, _ = in_pieces(model, ids, mask, (30, 68, 69, 70, 100), position)
    torch.testing.assert_close(found[mask.bool()], whole[mask.bool()])
    with torch.no_grad():
        alone = model(ids[:1, 5:], use_cache=False).logits
    torch.testing.assert_close(whole[:1, 5:], alone)


def test_short_texts_are_the_base_bit_by_bit():
    for name in ("llama", "mistral", "gemma3"):
        model = base(name)
        ids, mask = left_padded(2, W + S)
        with torch.no_grad():
            before = [model(ids, attention_mask=mask).logits, model.generate(ids[:, :5], max_new_tokens=3)]
            grafted(model, trained=False, window_size=W, num_sink_tokens=S)
            after = [model(ids, attention_mask=mask).logits, model.generate(ids[:, :5], max_new_tokens=3)]
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)), name


@pytest.mark.parametrize("name", ROTARY)
def test_rotary_positions_never_end(name):
    """Without sinks, attention depends on distances alone, so that positions set back change nothing."""
    long = base(name, max_position_embeddings=4096)
    ids = text(2, 80)
    wanted = reference(long, ids, torch.ones(2, 80), W, 0)
    model = grafted(base(name, max_position_embeddings=32), window_size=W, num_sink_tokens=0)
    with model.graft.window_alone():
        ends = (5, 20, *range(21, 42), 62, 80)
        found, cache = in_pieces(model, ids, None, ends)
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-4)
    assert int(cache.slots.shift[0]) > 0
    assert cache.columns == 80


def test_sinks_stay_within_reach_when_positions_are_set_back():
    """One layer: its keys depend on a token and its position alone, so a short text has the same last logits."""
    model = base(num_hidden_layers=1, max_position_embeddings=16)
    grafted(model, window_size=W, num_sink_tokens=S)
    ids = text(1, 60)
    with model.graft.window_alone():
        found, cache = in_pieces(model, ids, None, tuple(range(4, 61, 4)))
        used = int(cache.slots.position[0] - cache.slots.shift[0])  # position after the last token
        assert used <= 16
        tokens = torch.cat((ids[:, :S], ids[:, -W:]), 1)
        position = torch.cat((torch.arange(S), torch.arange(used - W, used)))[None]
        with torch.no_grad():
            alone = model(tokens, torch.ones_like(tokens), position_ids=position, use_cache=False).logits
    torch.testing.assert_close(found[:, -1], alone[:, -1], atol=2e-5, rtol=1e-4)


def test_rows_with_padding_set_back_by_themselves():
    model = grafted(base(max_position_embeddings=24), window_size=W, num_sink_tokens=S)
    ids, mask = left_padded(2, 80)
    ends = (10, *range(14, 81, 3))
    position = (mask.cumsum(1) - 1).clamp(0)
    both, _ = in_pieces(model, ids, mask, ends, position)
    alone, _ = in_pieces(model, ids[:1, 5:], None, tuple(end - 5 for end in ends))
    torch.testing.assert_close(both[:1, 5:], alone, atol=2e-5, rtol=1e-4)


def test_learned_positions_end():
    model = grafted(base("gpt2"), window_size=W)
    _, cache = in_pieces(model, text(1, 128), None, (64, 128))
    with pytest.raises(ValueError, match="the base has 128 learned positions and the text is longer"):
        model(text(1, 1), **{model.graft.decoder.cache_name: cache})


def test_bases_in_which_no_window_can_move():
    size = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    alibi = AutoModelForCausalLM.from_config(BloomConfig(vocab_size=64, hidden_size=32, n_layer=1, n_head=4))
    with pytest.raises(ValueError, match="window_size needs a base that takes position_ids"):
        grafted(alibi, window_size=W)
    own = GPTNeoConfig(vocab_size=64, hidden_size=32, num_layers=1, num_heads=4, attention_types=[[["local"], 1]])
    with pytest.raises(ValueError, match="needs attention that is given its mask, and this base makes its own"):
        grafted(AutoModelForCausalLM.from_config(own), window_size=W)
    recurrent = Qwen3NextConfig(
        **size, layer_types=["linear_attention"], intermediate_size=8, num_experts=2, num_experts_per_tok=1
    )
    with pytest.raises(ValueError, match="Qwen3NextForCausalLM has no list of layers with an attention module"):
        grafted(AutoModelForCausalLM.from_config(recurrent), window_size=W)


def test_errors():
    model = grafted(base(max_position_embeddings=24), window_size=W)
    _, cache = in_pieces(model, text(1, 10), None, (10,))
    with pytest.raises(ValueError, match="read at most 15 tokens at a time"):
        model(text(1, 16), **{model.graft.decoder.cache_name: cache})
    with pytest.raises(ValueError, match="window_size and num_sink_tokens are 24 tokens together"):
        grafted(base(max_position_embeddings=24), window_size=20)


def test_bytes_are_constant():
    model = grafted(base(max_position_embeddings=64), window_size=W, num_sink_tokens=S)
    sizes = []
    for tokens in (16, 160):
        _, cache = in_pieces(model, text(1, tokens), None, tuple(range(16, tokens + 1, 16)))
        sizes.append(cache.nbytes())
    assert sizes[0] == sizes[1]


def test_gradients_through_a_window():
    model = grafted(base(), window_size=W, num_sink_tokens=S).train()
    ids = text(2, 24)
    whole = model(ids, labels=ids, use_cache=False).loss
    whole.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.graft.parameters() if p.grad is not None)
