"""Tests of `model.read`: pieces, frozen and scaled writes, interruption and continuation, cache files."""

import subprocess
import sys
import time

import pytest
import torch
from transformers import DynamicCache

from titanslab import TitansCache, TitansConfig, TitansForCausalLM, TitansModel
from titanslab.models.read import piece_unit
from tolerances import EXACT

VARIANTS = ["lmm", "mal", "mag", "mac", "attention"]
MEMORIES = VARIANTS[:-1]


def make_model(variant: str = "mac", **overrides) -> TitansForCausalLM:
    torch.manual_seed(0)
    fields = dict(
        vocab_size=31, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, memory_expansion=2, chunk_size=4,
        segment_len=8, window_size=6, num_persistent_tokens=3, intermediate_size=32,
    )  # fmt: skip
    return TitansForCausalLM(TitansConfig(variant=variant, **(fields | overrides))).double().eval()


def tokens(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 31, (rows, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def next_logits(model, cache) -> torch.Tensor:
    return model(tokens(cache.batch_size, 5, seed=9), past_key_values=cache.fork()).logits


def memory_tensors(cache: TitansCache) -> list[torch.Tensor]:
    return [t for state in cache.states for t in state.memory.memory.tensors().values()]


@pytest.mark.parametrize("variant", VARIANTS)
def test_pieces_of_any_size_equal_the_whole(variant):
    model, ids = make_model(variant), tokens(2, 61)
    with torch.no_grad():
        expected = model(torch.cat((ids, tokens(2, 5, seed=9)), dim=1)).logits[:, 61:]
    for piece_size in (1, 5, 8, 13, 61, None):
        cache = model.read(ids, piece_size=piece_size)
        assert cache.get_seq_length() == 61
        torch.testing.assert_close(next_logits(model, cache), expected, atol=EXACT, rtol=0)
    odd = iter([ids[:, :1], ids[:, 1:1], ids[:, 1:30], ids[:, 30:33], ids[:, 33:]])
    torch.testing.assert_close(next_logits(model, model.read(odd, piece_size=7)), expected, atol=EXACT, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_in_a_batch_is_not_read(variant):
    model, ids = make_model(variant), tokens(1, 30)
    mask = torch.ones(1, 40, dtype=torch.int64)
    mask[:, :10] = 0
    padded = model.read(torch.cat((tokens(1, 10, seed=3), ids), dim=1), attention_mask=mask, piece_size=7)
    expected = next_logits(model, model.read(ids))
    torch.testing.assert_close(next_logits(model, padded), expected, atol=EXACT, rtol=0)


def test_reading_stops_and_goes_on_and_leaves_the_old_cache_alone():
    model, ids = make_model(), tokens(1, 50)
    first = model.read(ids[:, :21])
    before = {name: t.clone() for name, t in first.tensors().items()}
    second = model.read(ids[:, 21:], first)
    assert (first.get_seq_length(), second.get_seq_length()) == (21, 50)
    assert all(torch.equal(t, before[name]) for name, t in first.tensors().items())
    expected = next_logits(model, model.read(ids))
    torch.testing.assert_close(next_logits(model, second), expected, atol=EXACT, rtol=0)
    assert model.read(iter([]), first).get_seq_length() == 21
    base = TitansModel(model.config).double()
    base.load_state_dict(model.model.state_dict())
    assert base.read(ids).get_seq_length() == 50


def test_an_interrupted_piece_is_as_if_it_had_not_begun(monkeypatch):
    model, ids = make_model(), tokens(1, 40)
    block, calls = model.model.layers[1], []
    whole = type(block).forward

    def stop(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 6:  # fails in the second block of the third piece
            raise KeyboardInterrupt
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(type(block), "forward", stop)
    caches = model.read_pieces(ids, piece_size=8)
    next(caches)
    last = next(caches)
    with pytest.raises(KeyboardInterrupt):
        next(caches)
    monkeypatch.undo()
    assert last.get_seq_length() == 16
    resumed = model.read(ids[:, 16:], last)
    expected = next_logits(model, model.read(ids))
    torch.testing.assert_close(next_logits(model, resumed), expected, atol=EXACT, rtol=0)


def test_pieces_are_whole_segments_and_progress_is_told():
    model, told, sizes = make_model(segment_len=12), [], []
    assert piece_unit(model.config) == 12
    model.model.register_forward_pre_hook(lambda m, a, k: sizes.append(k["input_ids"].shape[1]), with_kwargs=True)
    first = model.read(tokens(1, 5))
    model.read(tokens(1, 40), first, piece_size=24, progress=lambda done, total: told.append((done, total)))
    assert sizes == [5, 19, 21]
    assert told == [(19, 40), (40, 40)]
    told.clear()
    model.read(iter([tokens(1, 6)]), progress=lambda done, total: told.append((done, total)))
    assert told == [(6, None)]


@pytest.mark.parametrize("variant", MEMORIES)
def test_frozen_writes_leave_the_memory_bit_for_bit(variant):
    model, ids = make_model(variant), tokens(2, 43)
    before = model.read(ids[:, :22])  # inside a chunk and a segment
    frozen = model.read(ids[:, 22:], before, learn=False, piece_size=9)
    assert all(torch.equal(a, b) for a, b in zip(memory_tensors(frozen), memory_tensors(before), strict=True))
    learnt = model.read(ids[:, 22:], before)
    assert not all(torch.equal(a, b) for a, b in zip(memory_tensors(learnt), memory_tensors(before), strict=True))
    tails = [cache.states[0].memory.conv["k"] for cache in (before, frozen)]
    assert not torch.equal(*tails)
    assert (frozen.learn, frozen.get_seq_length()) == (True, 43)
    whole = model.read(ids[:, 22:], before, learn=False)
    torch.testing.assert_close(next_logits(model, frozen), next_logits(model, whole), atol=EXACT, rtol=0)


@pytest.mark.parametrize("variant", MEMORIES)
@torch.no_grad()
def test_frozen_reading_is_writing_with_gates_shut(variant):
    model, ids = make_model(variant, memory_momentum=False), tokens(2, 30)
    cache = model.read(ids[:, :13])
    cache.learn = False
    frozen = model(ids[:, 13:], past_key_values=cache.fork()).logits
    for module in model.modules():
        if hasattr(module, "theta_proj"):
            for gate in (module.theta_proj, module.alpha_proj):
                gate.weight.zero_()
                gate.bias.fill_(-1e4)
    cache.learn = True
    shut = model(ids[:, 13:], past_key_values=cache.fork()).logits
    torch.testing.assert_close(frozen, shut, atol=EXACT, rtol=0)


@pytest.mark.parametrize("variant", MEMORIES)
@torch.no_grad()
def test_a_document_that_begins_while_frozen_begins_with_the_learned_start(variant):
    model, ids = make_model(variant), tokens(2, 24)
    documents = torch.zeros(2, 24, dtype=torch.int64)
    documents[0, 9:] = 1
    cache = model.read(tokens(2, 10, seed=4))
    cache.learn = False
    together = model(ids, document_ids=documents, past_key_values=cache.fork()).logits
    fresh = TitansCache(model.config)
    fresh.learn = False
    alone = model(ids[:1, 9:], past_key_values=fresh).logits
    torch.testing.assert_close(together[:1, 9:], alone, atol=EXACT, rtol=0)
    plain = model(ids, past_key_values=cache.fork()).logits
    torch.testing.assert_close(together[1:], plain[1:], atol=EXACT, rtol=0)


@torch.no_grad()
def test_write_scale_is_a_factor_on_theta():
    model, ids = make_model("lmm"), tokens(1, 20)
    scaled = model.read(ids, write_scale=0.5)
    memory = model.model.layers[0].mixer.memory
    x = model.model.layers[0].mixer.norm(model.model.embed_tokens(ids))
    gates = type(memory).all_gates
    half = lambda self, *given: tuple(g * f for g, f in zip(gates(self, *given), (0.5, 1, 1, 1), strict=True))  # noqa: E731
    start = memory.initial_state(1, persistent=model.model.layers[0].mixer.persistent)
    try:
        type(memory).all_gates = half
        _, expected = memory(x, start)
    finally:
        type(memory).all_gates = gates
    ours = scaled.states[0].memory.memory.weights
    for a, b in zip(ours, expected.memory.weights, strict=True):
        torch.testing.assert_close(a, b, atol=EXACT, rtol=0)
    assert scaled.write_scale == 1.0


def test_generation_with_a_frozen_memory_and_new_tokens_alone():
    model, ids, question = make_model(), tokens(2, 30), tokens(2, 6, seed=1)
    options = dict(max_new_tokens=7, do_sample=False, eos_token_id=None, pad_token_id=0)
    cache = model.read(ids)
    whole = model.generate(torch.cat((ids, question), dim=1), **options)[:, 36:]
    assert torch.equal(model.generate(question, past_key_values=cache.continued(), **options)[:, 6:], whole)
    with pytest.raises(ValueError, match=r"continued\(\)"):
        model.generate(question, past_key_values=cache.fork(), **options)
    asked = cache.continued()
    asked.learn = False
    out = model.generate(question, past_key_values=asked, **options)
    assert all(torch.equal(a, b) for a, b in zip(memory_tensors(asked), memory_tensors(cache), strict=True))
    again = cache.fork()
    again.learn = False
    for column in range(6, 13):
        new = question if column == 6 else out[:, column - 1 : column]
        with torch.no_grad():
            logits = model(new, past_key_values=again).logits
        assert torch.equal(logits[:, -1].argmax(-1), out[:, column])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("text",), "input_ids is text"),
        ((torch.zeros(3, dtype=torch.int64),), r"must be integer tensors \[B, T\], got \[3\]"),
        ((iter([torch.zeros(1, 2)]),), "float"),
        ((iter([tokens(1, 2), tokens(2, 2)]),), "1 and then 2 rows"),
        ((torch.zeros(1, 3, dtype=torch.bool),), r"must be integer tensors .* torch\.bool"),
        ((torch.zeros(0, 3, dtype=torch.int64),), "at least one row"),
        ((torch.tensor([[1, 31]]),), r"vocabulary 0\.\.30, got 31"),
        ((iter([torch.tensor([[1, -1]])]),), r"vocabulary 0\.\.30, got -1"),
        ((tokens(1, 2), DynamicCache()), "must be a TitansCache or None, got DynamicCache"),
    ],
)
def test_input_that_cannot_be_read(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_model().read(*arguments)


def test_options_that_cannot_act_raise():
    model, ids = make_model(), tokens(1, 4)
    with pytest.raises(ValueError, match="nothing is written"):
        model.read(ids, learn=False, write_scale=2.0)
    with pytest.raises(ValueError, match="write_scale must be"):
        model.read(ids, write_scale=-1.0)
    with pytest.raises(ValueError, match="piece_size must be"):
        model.read(ids, piece_size=0)
    with pytest.raises(ValueError, match="shape of input_ids"):
        model.read(ids, attention_mask=torch.ones(1, 9))
    with pytest.raises(ValueError, match="'attention' has none"):
        make_model("attention").read(ids, learn=False)


def test_a_frozen_cache_ignores_its_own_scale():
    model, ids = make_model(), tokens(1, 20)
    cache = model.read(ids)
    expected = model.read(ids, cache, learn=False)
    cache.write_scale = 0.5
    for frozen in (model.read(ids, cache, learn=False), model.read(ids, with_learn(cache, False))):
        assert frozen.write_scale == 0.5
        assert torch.equal(
            next_logits(model, with_learn(frozen, False)), next_logits(model, with_learn(expected, False))
        )


def with_learn(cache: TitansCache, learn: bool) -> TitansCache:
    out = cache.fork()
    out.learn = learn
    return out


def test_generation_from_a_cache_always_keeps_it():
    model, ids, question = make_model(), tokens(2, 30), tokens(2, 6, seed=1)
    options = dict(max_new_tokens=5, do_sample=False, eos_token_id=None, pad_token_id=0)
    cache = model.read(ids)
    expected = model.generate(question, past_key_values=cache.continued(), **options)
    model.generation_config.use_cache = False
    assert torch.equal(model.generate(question, past_key_values=cache.continued(), **options), expected)
    with pytest.raises(ValueError, match="use_cache=False and a cache"):
        model.generate(question, past_key_values=cache.continued(), use_cache=False, **options)
    with pytest.raises(ValueError, match=r"batch_repeat_interleave\(how_many\)"):
        model.generate(question, past_key_values=cache.continued(), num_beams=2, **options)
    beams = cache.continued()
    beams.batch_repeat_interleave(2)
    assert model.generate(question, past_key_values=beams, num_beams=2, **options).shape == expected.shape


def test_a_file_knows_its_model_without_being_told(tmp_path):
    model, path = make_model(), tmp_path / "book.memory"
    cache = model.read(tokens(1, 20))
    cache.write_scale = 0.5
    cache.save(path, notes={"book": "one"})
    header = TitansCache.header(path)
    assert (header.notes, header.columns, header.config["variant"]) == ({"book": "one"}, 20, "mac")
    loaded = TitansCache.load(path)
    assert loaded.write_scale == 0.5
    assert torch.equal(next_logits(model, loaded), next_logits(model, cache))
    torch.manual_seed(5)
    other = TitansForCausalLM(model.config).double()
    with pytest.raises(ValueError, match="same shape with other weights"):
        other.read(tokens(1, 3), TitansCache.load(path))
    with pytest.raises(ValueError, match="another model: chunk_size 4 there and 8 here"):
        make_model(chunk_size=8).read(tokens(1, 3), TitansCache.load(path))
    model.model.read(tokens(1, 3), TitansCache.load(path, model.model))


@pytest.mark.parametrize("part", ["position", "layers.1.memory.memory.offset", "layers.0.keys", "layers.1."])
def test_a_file_without_all_its_tensors(part, tmp_path):
    from safetensors import safe_open
    from safetensors.torch import save_file

    model, path = make_model(), tmp_path / "c"
    model.read(tokens(1, 9)).save(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        kept = {name: file.get_tensor(name) for name in file.keys() if not name.startswith(part)}  # noqa: SIM118
    save_file(kept, path, metadata)
    with pytest.raises(ValueError, match="do not agree with its checksum"):
        TitansCache.load(path, model)
    del metadata["checksum"]
    save_file(kept, path, metadata)
    with pytest.warns(match="carries no checksum"), pytest.raises(ValueError, match=f"lacks the tensor '{part}"):
        TitansCache.load(path, model)
    save_file(kept, path, {k: v for k, v in metadata.items() if k != "config"})
    with pytest.warns(match="no checksum"), pytest.raises(ValueError, match="damaged header"):
        TitansCache.load(path)


KILLED = """
import sys, torch
from titanslab import TitansCache, TitansConfig
from titanslab.models.state import MixerState
path = sys.argv[1]
cache = TitansCache.load(path)
big = torch.zeros(1, 1, 2_000_000, 4)
cache.states = [s.map(lambda t: t) for s in cache.states]
cache.states[0] = MixerState(cache.states[0].memory, cache.states[0].read_weights, big, big)
print("ready", flush=True)
while True:
    cache.save(path)
"""


def test_killed_while_saving_the_file_is_whole(tmp_path):
    model, path = make_model(), tmp_path / "c"
    model.read(tokens(1, 9)).save(path)
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob(".c.*.tmp")):  # while the file is written
        assert time.monotonic() < deadline
    process.kill()
    process.wait()
    process.stdout.close()
    assert list(tmp_path.glob(".c.*.tmp"))
    assert TitansCache.load(path, model).get_seq_length() == 9
    model.read(tokens(1, 11)).save(path)
    assert not list(tmp_path.glob(".c.*.tmp"))  # the next save removes it
    assert TitansCache.load(path, model).get_seq_length() == 11
