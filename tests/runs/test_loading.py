"""A model is opened by one call; what is wrong is said before anything is read."""

import json

import pytest
import torch

from titanslab import TitansConfig, TitansForCausalLM
from titanslab.data import byte_tokenizer
from titanslab.runs.loading import load_model, open_model


@pytest.fixture
def folder(tmp_path):
    tokenizer = byte_tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = TitansForCausalLM(TitansConfig.preset("tiny", variant="lmm", vocab_size=len(tokenizer), **sizes))
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_model_and_tokenizer_come_together(folder):
    model, tokenizer = open_model(folder, "cpu")
    assert not model.training
    assert model.device == torch.device("cpu")
    assert len(tokenizer) == model.config.vocab_size
    assert load_model(folder, memory_forgetting=False).config.memory_forgetting is False
    assert json.loads((folder / "config.json").read_text()).get("memory_forgetting", True) is True
    with torch.no_grad():
        assert open_model(str(folder))[0](torch.tensor([[1, 2]])).logits.shape == (1, 2, 259)


def test_a_wrong_name_device_or_folder_is_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="model 'nowhere' does not exist"):
        open_model("nowhere", "nosuch")
    with pytest.raises(ValueError, match="--device 'nosuch' cannot be used; here: auto, cpu"):
        open_model(folder, "nosuch")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match="holds no tokenizer"):
        open_model(folder)
