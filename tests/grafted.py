"""Small random bases for the tests of the graft, one for each architecture."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.cohere.configuration_cohere import CohereConfig
from transformers.models.deepseek_v3.configuration_deepseek_v3 import DeepseekV3Config
from transformers.models.falcon.configuration_falcon import FalconConfig
from transformers.models.gemma3.configuration_gemma3 import Gemma3TextConfig
from transformers.models.glm.configuration_glm import GlmConfig
from transformers.models.gpt2.configuration_gpt2 import GPT2Config
from transformers.models.gpt_neox.configuration_gpt_neox import GPTNeoXConfig
from transformers.models.lfm2.configuration_lfm2 import Lfm2Config
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.mistral.configuration_mistral import MistralConfig
from transformers.models.olmo2.configuration_olmo2 import Olmo2Config
from transformers.models.qwen2.configuration_qwen2 import Qwen2Config
from transformers.models.qwen3.configuration_qwen3 import Qwen3Config
from transformers.models.qwen3_next.configuration_qwen3_next import Qwen3NextConfig

import titanslab
from titanslab import GraftConfig, MemoryConfig
from titanslab.graft.states import STATES_ARE_KEPT

VOCABULARY = 64
TOKENS = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0}
SIZE = TOKENS | {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
ROTARY = SIZE | {"num_key_value_heads": 2, "max_position_embeddings": 128}
LATENT = {
    "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 16, "moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
    "topk_group": 1,
}  # fmt: skip
DELTA = {
    "head_dim": 8, "linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}  # fmt: skip
MEMORY = MemoryConfig(2, head_dim=8, chunk_size=4)


def configs() -> dict:
    """The config of each base by its name; those after gpt2 are bases that the code was not written for."""
    layers = ["sliding_attention", "full_attention"]
    return {
        "llama": LlamaConfig(**ROTARY),
        "mistral": MistralConfig(**ROTARY, sliding_window=8),
        "qwen2": Qwen2Config(**ROTARY),
        "qwen3": Qwen3Config(**ROTARY, head_dim=8),
        "gemma3": Gemma3TextConfig(**ROTARY, head_dim=8, sliding_window=8, layer_types=layers),
        "gpt2": GPT2Config(**TOKENS, n_embd=32, n_layer=2, n_head=4, n_positions=128),
        "gpt_neox": GPTNeoXConfig(**SIZE, max_position_embeddings=128),
        "olmo2": Olmo2Config(**ROTARY),
        "cohere": CohereConfig(**ROTARY),
        "glm": GlmConfig(**ROTARY, head_dim=8),
        "falcon": FalconConfig(**SIZE, max_position_embeddings=128),
        "lfm2": Lfm2Config(**ROTARY, layer_types=["conv", "full_attention"]),
        "qwen3_next": Qwen3NextConfig(**ROTARY, **DELTA, layer_types=["linear_attention", "full_attention"]),
        "deepseek_v3": DeepseekV3Config(**SIZE, **LATENT, max_position_embeddings=128, first_k_dense_replace=1),
    }


NAMES = tuple(configs())
HYBRIDS = ("lfm2", "qwen3_next")  # bases with layers of another kind beside attention


def base(name: str = "llama", attention: str = "sdpa", dtype: torch.dtype = torch.float32, **options) -> nn.Module:
    """A random base in evaluation mode, the same one for the same arguments."""
    if name in HYBRIDS and not STATES_ARE_KEPT:
        pytest.skip("this version of transformers is older than 5.17")
    torch.manual_seed(0)
    config = configs()[name]
    for option, value in options.items():
        setattr(config, option, value)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype).eval()


def grafted(model: nn.Module, trained: bool = True, **options) -> nn.Module:
    """The model with a memory in every layer; `trained` gives the memories outputs other than 0."""
    model = titanslab.graft(model, GraftConfig(**{"layers": "all", "memory": MEMORY} | options))
    if trained:
        torch.manual_seed(1)
        for memory in model.graft.memories:
            nn.init.normal_(memory.output_projection.weight, std=0.3)
    return model


def text(rows: int = 2, tokens: int = 20, seed: int = 2) -> torch.Tensor:
    """Random tokens `[rows, tokens]`, none of which is padding."""
    return torch.randint(3, VOCABULARY, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def left_padded(rows: int = 2, tokens: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and their mask; the first row has five columns of padding on the left."""
    ids, mask = text(rows, tokens), torch.ones(rows, tokens, dtype=torch.int64)
    ids[0, :5] = mask[0, :5] = 0
    return ids, mask
