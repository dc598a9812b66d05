"""Damaged cache files are refused in one line: by their checksum, and without one by the checks of each tensor."""

import json
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from titanslab import TitansCache, TitansConfig, TitansForCausalLM
from titanslab.models.cache_file import CHECKSUM


def make(variant: str, **more) -> TitansForCausalLM:
    torch.manual_seed(0)
    fields = dict(
        vocab_size=31, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, memory_expansion=2, chunk_size=4,
        segment_len=8, window_size=6, num_persistent_tokens=3, intermediate_size=32,
    )  # fmt: skip
    return TitansForCausalLM(TitansConfig(variant=variant, **(fields | more))).eval()


@pytest.fixture(scope="module")
def model() -> TitansForCausalLM:
    return make("mac")


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("cache") / "c"
    model.read(torch.arange(22)[None] % 31).save(path, notes={"title": "a book"})
    return path


def parts(path) -> tuple[dict, bytes]:
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def put(path, header: dict, body: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def test_every_changed_byte_of_the_tensors_is_noticed(saved, model, tmp_path):
    header, body = parts(saved)
    for place in range(0, len(body), len(body) // 20):
        changed = bytearray(body)
        changed[place] ^= 1
        put(tmp_path / "c", header, bytes(changed))
        with pytest.raises(ValueError, match="c is damaged: its contents do not agree with its checksum; read the"):
            TitansCache.load(tmp_path / "c", model)


@pytest.mark.parametrize("name", ["columns", "learn", "write_scale", "notes", "weights", "config", CHECKSUM, "more"])
def test_a_changed_header_is_noticed_without_the_tensors(name, saved, tmp_path):
    header, body = parts(saved)
    values = header["__metadata__"]
    values[name] = values.get(name, "") + " "
    put(tmp_path / "c", header, body)
    with pytest.raises(ValueError, match="do not agree with its checksum"):
        TitansCache.header(tmp_path / "c")


def changed(saved, tmp_path, change, **metadata: str):
    """The cache without its checksum, as a release before wrote it, with some tensors changed by `change`."""
    tensors, old = load_file(saved), parts(saved)[0]["__metadata__"]
    del old[CHECKSUM]
    change(tensors)
    save_file(tensors, tmp_path / "c", old | metadata)
    return tmp_path / "c"


MEMORY, KEYS = "layers.1.memory.memory.weights.0", "layers.0.keys"
FAULTS = {
    "lacks the tensor 'layers.0.keys'": lambda t: t.pop(KEYS),
    "holds the tensor 'more', which its model has not": lambda t: t.update(more=torch.zeros(1)),
    r"has 'layers.1.memory.memory.weights.0' of shape \[1, 2, 16, 8\]": lambda t: t.update(
        {MEMORY: t[MEMORY].transpose(-1, -2).contiguous()}
    ),
    r"has 'layers.0.keys' of shape \[1, 2, 18, 8\]": lambda t: t.update({KEYS: t[KEYS][:, :, 1:].contiguous()}),
    "in int32, and a floating-point dtype is needed": lambda t: t.update({MEMORY: t[MEMORY].view(torch.int32)}),
    "in float64 and 'layers.0.memory.memory.weights.0' in float32": lambda t: t.update({MEMORY: t[MEMORY].double()}),
    "has 'position' in int32, and counters are int64": lambda t: t.update(position=t["position"].int()),
    "has 'position' in complex64, and counters": lambda t: t.update(position=t["position"].to(torch.complex64)),
    "has 'position' = -5, and 0 to": lambda t: t["position"].fill_(-5),
    "has 'position' = 1099511627776": lambda t: t["position"].fill_(1 << 40),
    "has 'layers.1.memory.memory.offset' = 4, and 0 to 3": lambda t: t["layers.1.memory.memory.offset"].fill_(4),
    r"has 'position' of shape \[0\]": lambda t: t.update({name: x[:0] for name, x in t.items()}),
    "has numbers that are not finite in 'layers.1.memory.memory.weights.0'": lambda t: t[MEMORY][..., 3].fill_(
        float("nan")
    ),
    "has numbers that are not finite in 'layers.0.keys'": lambda t: (
        t[KEYS].view(-1)[:2].copy_(torch.tensor([float("inf"), -float("inf")]))
    ),
}


@pytest.mark.parametrize("words", FAULTS)
def test_without_a_checksum_each_tensor_is_checked(words, saved, model, tmp_path):
    path = changed(saved, tmp_path, FAULTS[words])
    with pytest.warns(match="carries no checksum"), pytest.raises(ValueError, match=words + ".*; read the text again"):
        TitansCache.load(path, model)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("columns", "-1", "header: columns must be a whole number of at least 0, got int -1"),
        ("columns", "[]", "columns must be a whole number"),
        ("columns", str(1 << 60), "columns must be"),
        ("write_scale", "NaN", "write_scale must be a finite number"),
        ("write_scale", "9" * 400, "write_scale"),
        ("learn", "1", "learn must be true or false"),
        ("notes", "[" * 100_000, "notes"),
        ("config", '{"variant": "mac", "auto_map": 1}', "unknown key 'auto_map'"),
    ],
)
def test_without_a_checksum_the_header_is_checked(name, text, words, saved, model, tmp_path):
    path = changed(saved, tmp_path, lambda _: None, **{name: text})
    with pytest.raises(ValueError, match=words):
        TitansCache.header(path)


@pytest.mark.parametrize("name", ["hidden_size", "memory_depth", "variant"])
def test_a_stored_config_that_cannot_be_is_refused_without_a_model(name, saved, tmp_path):
    config = json.loads(parts(saved)[0]["__metadata__"]["config"]) | {name: "x"}
    path = changed(saved, tmp_path, lambda _: None, config=json.dumps(config))
    with pytest.warns(match="no checksum"), pytest.raises(ValueError, match="damaged header"):
        TitansCache.load(path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    ("variant", "more"),
    [
        ("lmm", {"memory_depth": 1}),
        ("mac", {"num_persistent_tokens": 0, "conv_size": 1}),
        ("mag", {"num_memory_heads": 1}),
        ("mal", {"memory_head_dim": 4}),
        ("attention", {"attention_conv_size": 3}),
        ("attention", {"window_size": None}),
    ],
)
def test_caches_of_every_kind_pass(variant, more, dtype, tmp_path):
    model = make(variant, **more).to(dtype)
    ids = torch.arange(26).reshape(2, 13)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    cache = model.read(ids, attention_mask=mask)
    documents = model(ids[:, :5], document_ids=torch.tensor([[0, 0, 1, 1, 2]] * 2), past_key_values=cache)
    for number, one in enumerate((cache, documents.past_key_values.detach(), cache.to(torch.float64))):
        one.save(tmp_path / str(number), model)
        again = TitansCache.load(tmp_path / str(number), model)
        assert all(torch.equal(t, again.tensors()[name]) for name, t in one.tensors().items())


def test_what_is_not_finite_is_not_saved(model, saved, tmp_path):
    cache = TitansCache.load(saved, model)
    assert cache.not_finite() == ""
    cache.tensors()[MEMORY].view(-1)[7] = float("inf")
    assert cache.not_finite() == MEMORY
    before = saved.read_bytes()
    with pytest.raises(FloatingPointError, match=f"was not written: .*{MEMORY}"):
        cache.save(saved, model)
    assert saved.read_bytes() == before


@pytest.mark.parametrize("notes", [{"a": {1, 2}}, {"a": 1 << 70}, {"a": "\ud800"}])
def test_notes_that_no_file_can_hold_are_refused_before_writing(notes, model, saved, tmp_path):
    with pytest.raises(ValueError, match="notes"):
        TitansCache.load(saved, model).save(tmp_path / "c", model, notes)
    assert not (tmp_path / "c").exists()
