"""A small random base with the byte tokenizer in a folder, and documents to train its memory on."""

import random
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM
from transformers.models.llama.configuration_llama import LlamaConfig

from titanslab.data import byte_tokenizer

MEMORY = {"layers": "all", "num_heads": 2, "head_dim": 8, "chunk_size": 8}


def save_base(folder: Path) -> Path:
    """Write the base and its tokenizer; returns the folder."""
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, max_position_embeddings=64, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_documents(folder: Path, count: int = 5) -> Path:
    """Write documents of 150 to 290 bytes, each of a few letters of its own."""
    folder.mkdir(parents=True)
    for number in range(count):
        draw = random.Random(number)
        letters = draw.sample("abcdefghijklmnopqrstuvwxyz", 3)
        (folder / f"{number}.txt").write_text("".join(draw.choice(letters) for _ in range(150 + 35 * number)))
    return folder


def graft_recipe(base: Path, documents: Path, **graft: object) -> dict[str, dict[str, object]]:
    """A recipe as nested values whose steps take milliseconds."""
    return {
        "graft": {"base": str(base), "window_size": 16} | MEMORY | graft,
        "data": {"train": str(documents), "sequence_length": 24},
        "training": {
            "steps": 8, "batch_size": 2, "warmup_steps": 2, "save_every": 3, "log_every": 1, "learning_rate": 3e-3,
            "cpu": True,
        },
    }  # fmt: skip
