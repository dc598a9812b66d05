"""Configurations: presets, and errors that name the field."""

import json

import pytest

from titanslab import TitansConfig, TitansForCausalLM

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
        (lambda: TitansConfig(memory_grad_clip=-1.0), "memory_grad_clip must be a positive number"),
        (lambda: TitansConfig(memory_norm=1), "memory_norm must be True or False, got 1"),
        (lambda: TitansConfig(pad_token_id=32000), "pad_token_id must be None or within the vocabulary"),
        (lambda: TitansConfig(variant="mag", attention_conv_size=4), "attention_conv_size must be 1 for variant 'mag'"),
        (lambda: TitansConfig(variant="attention", attention_conv_size=0), "attention_conv_size must be an integer of"),
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
