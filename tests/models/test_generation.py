"""Tests of `generate()`: greedy, sampling, beams, left padding, a given cache, prefill in chunks."""

import pytest
import torch

from titanslab import TitansCache, TitansConfig, TitansForCausalLM

NEW = 9
OPTIONS = dict(max_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=0)


@pytest.fixture(params=["lmm", "mal", "mag", "mac", "attention", "full"])
def model(request) -> TitansForCausalLM:
    torch.manual_seed(0)
    full = request.param == "full"
    config = TitansConfig(
        variant="attention" if full else request.param, vocab_size=31, hidden_size=16, num_hidden_layers=2,
        num_attention_heads=2, memory_expansion=2, chunk_size=4, segment_len=8, window_size=None if full else 6,
        num_persistent_tokens=3, intermediate_size=32, initializer_range=0.3, pad_token_id=0,
    )  # fmt: skip
    return TitansForCausalLM(config).double().eval()


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(3, 31, (2, 9), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def greedy(model, ids: torch.Tensor) -> torch.Tensor:
    """The definition, without a cache: the whole text is read again for every token."""
    for _ in range(NEW):
        ids = torch.cat((ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)), dim=1)
    return ids


def test_greedy_is_a_loop_of_argmax(model, ids):
    expected = greedy(model, ids)
    assert torch.equal(model.generate(ids, **OPTIONS), expected)
    assert torch.equal(model.generate(ids, use_cache=False, **OPTIONS), expected)


def test_left_padding_changes_no_token(model, ids):
    long = torch.randint(3, 31, (1, 14), generator=torch.Generator().manual_seed(1))
    batch = torch.cat((torch.nn.functional.pad(ids[:1], (5, 0)), long))
    out = model.generate(batch, attention_mask=(batch != 0).long(), **OPTIONS)
    assert torch.equal(out[:1, 5:], greedy(model, ids[:1]))
    assert torch.equal(out[1:], greedy(model, long))
    alone = model.generate(batch[:1], attention_mask=(batch[:1] != 0).long(), **OPTIONS)
    assert torch.equal(alone, out[:1])


def test_beams_with_a_cache_find_what_they_find_without(model, ids):
    with_cache = model.generate(ids, num_beams=3, **OPTIONS)
    assert torch.equal(with_cache, model.generate(ids, num_beams=3, use_cache=False, **OPTIONS))


def test_sampling_repeats_under_a_seed(model, ids):
    options = OPTIONS | {"do_sample": True, "num_return_sequences": 2, "top_k": 5}
    torch.manual_seed(1)
    first = model.generate(ids, **options)
    torch.manual_seed(1)
    assert torch.equal(model.generate(ids, **options), first)
    assert first.shape == (4, 9 + NEW)


@torch.no_grad()
def test_a_conversation_goes_on_from_its_cache(model, ids):
    cache = TitansCache(model.config)
    model(ids, past_key_values=cache)
    longer = torch.cat((ids, torch.tensor([[5, 6], [7, 8]])), dim=1)
    out = model.generate(longer, past_key_values=cache.fork(), **OPTIONS)
    assert torch.equal(out, greedy(model, longer))
    assert cache.get_seq_length() == 9
    again = model.generate(longer, past_key_values=cache, **OPTIONS)
    assert torch.equal(again, out)
    assert cache.get_seq_length() == 11 + NEW - 1


def test_prefill_in_chunks(model, ids):
    cache = TitansCache(model.config)
    out = model.generate(ids, past_key_values=cache, prefill_chunk_size=4, **OPTIONS)
    assert torch.equal(out, greedy(model, ids))


def test_a_prompt_of_packed_documents(model, ids):
    """The new tokens continue the last document, and depend on it alone."""
    documents = torch.zeros_like(ids)
    documents[:, 4:] = 1
    out = model.generate(ids, document_ids=documents, **OPTIONS)
    assert torch.equal(out[:, 4:], greedy(model, ids[:, 4:]))
    assert torch.equal(model.generate(ids, document_ids=documents, use_cache=False, **OPTIONS), out)


def test_assisted_decoding_is_refused(model, ids):
    with pytest.raises(ValueError, match="assisted generation is not supported with stateful models"):
        model.generate(ids[:1], assistant_model=model, **OPTIONS)


@pytest.mark.parametrize("use_cache", [True, False])
def test_prompts_that_end_in_padding_are_refused(model, ids: torch.Tensor, use_cache: bool) -> None:
    prompt = ids.clone()
    prompt[1, 5:] = 0
    for options in ({"attention_mask": (prompt != 0).long()}, {}):  # without a mask, generate() makes it of the id
        with pytest.raises(ValueError, match=r"attention_mask ends in padding; pad prompts on the left"):
            model.generate(prompt, use_cache=use_cache, **options, **OPTIONS)


@torch.no_grad()
def test_a_cache_that_has_read_the_whole_prompt_is_refused(model, ids: torch.Tensor) -> None:
    cache = model(ids, use_cache=True).past_key_values
    with pytest.raises(ValueError, match=r"the prompt has 9 tokens, and the cache has read 9"):
        model.generate(ids, past_key_values=cache, **OPTIONS)
    assert cache.get_seq_length() == 9
