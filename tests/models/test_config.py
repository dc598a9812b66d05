"""Configurations: presets, and errors with the name of the field."""

import json

import pytest
from transformers import AutoConfig, LlamaConfig

from titanslab import TitansConfig, TitansForCausalLM
from titanslab.memory import MemoryConfig
from titanslab.models.config import MEMORY_OPTIONS

PAPER_SHAPES = {"170m": (12, 768, 16), "340m": (24, 1024, 16), "760m": (24, 1536, 16), "1.3b": (18, 2048, 8)}


@pytest.mark.parametrize("name", PAPER_SHAPES)
@pytest.mark.parametrize("variant", ["lmm", "mal", "mag", "mac", "attention"])
def test_presets_have_the_camera_ready_shapes(name, variant):
    config = TitansConfig.preset(name, variant=variant)
    shape = (config.num_hidden_layers, config.hidden_size, config.num_attention_heads)
    assert shape == PAPER_SHAPES[name]
    assert (config.chunk_size, config.segment_len, config.window_size) == (16, 512, 2048)
    assert (config.num_persistent_tokens, config.vocab_size) == (128, 32000)
    assert config.variant == variant


def test_preset_overrides_and_defaults():
    config = TitansConfig.preset("tiny", variant="mag", window_size=32, memory_depth=3)
    assert (config.window_size, config.memory_depth, config.variant) == (32, 3, "mag")
    assert config.num_memory_heads == config.num_attention_heads
    assert TitansConfig(hidden_size=96, num_attention_heads=4).intermediate_size == 256


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TitansConfig.preset("170M"), "preset must be one of tiny, 170m.*did you mean '170m'"),
        (lambda: TitansConfig.preset("tiny", variant="maq"), "variant must be one of.*did you mean"),
        (lambda: TitansConfig.preset("tiny", windw_size=3), "no field 'windw_size'; did you mean 'window_size'"),
        (lambda: TitansConfig(segment_length=8), "unknown field 'segment_length'.*did you mean 'segment_len'"),
        (lambda: TitansConfig(variant="mag", window_size=None), "window_size must be an integer for variant 'mag'"),
        (lambda: TitansConfig(hidden_size=100, num_attention_heads=16), "hidden_size must be a multiple of num_att"),
        (lambda: TitansConfig(num_memory_heads=7), "hidden_size must be a multiple of num_memory_heads"),
        (lambda: TitansConfig(hidden_size=12, num_attention_heads=4), "must be even for rotary"),
        (lambda: TitansConfig(gate_type="product"), "gate_type must be one of mix, sigmoid, silu; got 'product'"),
        (lambda: TitansConfig(memory_backend="cuda"), "memory_backend must be one of auto, reference"),
        (lambda: TitansConfig(rope_parameters={"rope_type": "yarn", "factor": 2.0}), "rope_type must be 'default'"),
        (lambda: TitansConfig(memory_theta_bias="open"), "memory_theta_bias must be a number"),
        (lambda: TitansConfig(memory_write_cost=-0.1), "memory_write_cost must be a number of at least 0"),
        (lambda: TitansConfig(memory_write_floor=0), "memory_write_floor must be None or a number between 0 and 1"),
        (lambda: TitansConfig(memory_half_lives=[64.0]), "memory_half_lives must be"),
        (lambda: TitansConfig(memory_half_lives=[64.0, 2.0]), "memory_half_lives must be"),
        (lambda: TitansConfig(memory_half_lives=[1e300, 1e308]), "memory_half_lives must be"),
        (lambda: TitansConfig(memory_half_lives=[1e-9, 2.0]), "memory_half_lives must be"),
        (lambda: TitansConfig(rope_parameters=[1]), "rope_parameters must be a table"),
        (lambda: TitansConfig(rope_parameters={"rope_theta": 1e-300}), "rope_theta must be a number of at least 1"),
        (lambda: TitansConfig(vocab_size=2**63), "vocab_size must be an integer of at most 2147483647"),
        (lambda: TitansConfig(num_hidden_layers=10**6), "num_hidden_layers must be an integer of at most 10000"),
        (lambda: TitansConfig(memory_depth=10**6), "memory_depth must be an integer of at most 10000"),
        (lambda: TitansConfig(conv_size=10**6), "conv_size must be an integer of at most 4096"),
        (lambda: TitansConfig(attention_conv_size=10**6), "attention_conv_size must be an integer of at most 4096"),
        (lambda: TitansConfig(initializer_range=1e308), "initializer_range must be a number of at most 1000"),
        (lambda: TitansConfig(memory_grad_clip=-1.0), "memory_grad_clip must be a positive number"),
        (lambda: TitansConfig(memory_norm=1), "memory_norm must be True or False, got 1"),
        (lambda: TitansConfig(pad_token_id=32000), "pad_token_id must be None or within the vocabulary"),
        (lambda: TitansConfig(variant="mag", attention_conv_size=4), "attention_conv_size must be 1 for variant 'mag'"),
        (lambda: TitansConfig(variant="attention", attention_conv_size=0), "attention_conv_size must be an integer of"),
        (lambda: TitansConfig(memory=4), "memory must be a MemoryConfig, a dict of its fields or None, got 4"),
        (lambda: TitansConfig(memory={"dept": 3}), "memory has no option 'dept'; did you mean 'depth'"),
        (lambda: TitansConfig(memory={"depth": 0}), "memory_depth must be an integer of at least 1, got 0"),
        (lambda: TitansConfig(memry={}), "unknown field 'memry'.*did you mean 'memory'"),
        (lambda: TitansConfig(rms_norm_eps=0), "rms_norm_eps must be a positive number"),
    ],
)  # fmt: skip
def test_errors_name_the_field(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "field", ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_memory_heads",
              "memory_depth", "memory_expansion", "conv_size", "chunk_size", "segment_len", "window_size"]
)  # fmt: skip
@pytest.mark.parametrize("value", [0, -3, 2.5, True, "8"])
def test_sizes_must_be_positive_integers(field, value):
    with pytest.raises(ValueError, match=f"{field} must be an integer of at least 1, got {value!r}"):
        TitansConfig(**{field: value})


def test_round_trip_through_json(tmp_path):
    from transformers import AutoConfig

    config = TitansConfig.preset("tiny", variant="mal", memory_half_lives=(32.0, 256.0), eos_token_id=3)
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "titans"
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is TitansConfig
    for name in ("variant", "memory_half_lives", "eos_token_id", "rope_parameters", "intermediate_size"):
        assert getattr(loaded, name) == getattr(config, name)
    assert loaded.to_json_string() == config.to_json_string()


def test_the_write_gate_starts_where_the_config_says() -> None:
    config = TitansConfig.preset("tiny", variant="mac", memory_theta_bias=-3.0)
    bias = TitansForCausalLM(config).model.layers[1].mixer.memory.theta_proj.bias
    assert bool((bias == -3.0).all())


@pytest.mark.parametrize(("chunk_size", "theta"), [(1, 0.5), (16, 0.5 / 16)])
def test_the_limit_of_theta_counts_the_tokens_of_a_chunk(chunk_size, theta) -> None:
    config = TitansConfig.preset("tiny", variant="lmm", chunk_size=chunk_size, memory_depth=1)
    memory = TitansForCausalLM(config).model.layers[0].mixer.memory
    assert memory.gate_limits == pytest.approx((theta,))


@pytest.mark.parametrize("nested", [True, False])
def test_a_config_of_before_the_chunk_coherence_keeps_its_function(tmp_path, nested) -> None:
    TitansConfig.preset("tiny").save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    values = json.loads(file.read_text())
    del values["memory"]["chunk_coherence"]
    if not nested:  # the form before `memory` was there
        memory = values.pop("memory")
        values |= {name: memory[option] for name, option in MEMORY_OPTIONS.items() if option in memory}
    file.write_text(json.dumps(values))
    assert AutoConfig.from_pretrained(tmp_path).memory.chunk_coherence == 0
    assert TitansConfig.from_pretrained(tmp_path, memory_chunk_coherence=0.3).memory.chunk_coherence == 0.3
    assert TitansConfig.preset("tiny").memory.chunk_coherence == 1.0


OPTIONS = {
    "num_heads": 2, "depth": 3, "expansion": 1, "chunk_size": 5, "head_dim": 6, "residual": False, "norm": False,
    "grad_clip": None, "conv_size": 2, "gates_per_layer": False, "momentum": False, "forgetting": False,
    "half_lives": (3.0, 7.0), "theta_bias": -1.0, "gate_keys": True, "read_before_write": True, "forget_to": "start",
    "backend": "chunked", "chunk_coherence": 0.5,
}  # fmt: skip


def test_an_option_of_the_memory_has_one_meaning_under_both_names(tmp_path) -> None:
    """Every option differs from its default, so that the test fails if one is lost."""
    default, want = MemoryConfig(4), MemoryConfig(**OPTIONS)
    assert not [name for name in OPTIONS if getattr(want, name) == getattr(default, name)]
    assert set(MEMORY_OPTIONS.values()) == set(OPTIONS)
    flat = {name: OPTIONS[option] for name, option in MEMORY_OPTIONS.items()}
    configs = [
        TitansConfig.preset("tiny", memory=want),
        TitansConfig.preset("tiny", memory=want.to_dict()),
        TitansConfig.preset("tiny", **flat),
        TitansConfig.preset("tiny"),
    ]
    for name, value in flat.items():
        setattr(configs[-1], name, value)
    configs[0].save_pretrained(tmp_path / "nested")
    configs.append(TitansConfig.from_pretrained(tmp_path / "nested"))
    saved = json.loads((tmp_path / "nested" / "config.json").read_text())
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "config.json").write_text(json.dumps(saved | {"memory": None} | flat))
    configs.append(TitansConfig.from_pretrained(tmp_path / "flat"))
    for config in configs:
        assert config.memory == want
        for name, value in flat.items():
            assert getattr(config, name) == value
        memory = TitansForCausalLM(config).model.layers[0].mixer.memory
        assert memory.config == want
        assert TitansConfig(**json.loads(json.dumps(config.to_dict()))).memory == want


def test_a_saved_config_with_flat_names_loads_and_can_be_changed(tmp_path) -> None:
    """The config has the flat names of a config.json without `memory`, with None among its values."""
    old = {
        "model_type": "titans", "variant": "lmm", "hidden_size": 24, "num_attention_heads": 2, "num_memory_heads": 3,
        "memory_depth": 1, "memory_half_lives": None, "memory_grad_clip": None, "conv_size": 1, "chunk_size": 8,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(old))
    config = TitansConfig.from_pretrained(tmp_path)
    kept = {"chunk_size": 8, "conv_size": 1, "grad_clip": None, "chunk_coherence": 0.0}
    assert config.memory == MemoryConfig(3, 1, **kept)
    changed = TitansConfig.from_pretrained(tmp_path, memory_forgetting=False, memory={"norm": False})
    assert changed.memory == MemoryConfig(3, 1, **kept, forgetting=False, norm=False)
    with pytest.raises(ValueError, match="memory_depth must be an integer of at least 1, got 0"):
        TitansConfig.from_pretrained(tmp_path, memory_depth=0)


def test_a_keyword_wins_over_memory() -> None:
    config = TitansConfig.preset("tiny", memory=MemoryConfig(2, depth=3, norm=False), memory_depth=1)
    assert config.memory == MemoryConfig(2, depth=1, norm=False)
    assert TitansConfig.preset("tiny", memory={"norm": False}).memory == MemoryConfig(4, norm=False)


@pytest.mark.parametrize("load", [TitansConfig.from_pretrained, TitansForCausalLM.from_pretrained])
def test_a_model_of_another_architecture_is_named(load, tmp_path):
    LlamaConfig(hidden_size=32, num_attention_heads=2).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"model_type is 'llama', not 'titans': .* AutoModelForCausalLM"):
        load(tmp_path)
