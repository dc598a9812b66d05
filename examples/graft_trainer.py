"""A memory for a language model of transformers, trained with a plain `Trainer`; it goes on from piece to piece.

Each document is written with four letters of 32. Attention sees 8 tokens and is not trained, so that the memory alone
can know the letters. The base here is small and random; in its place stands any
`AutoModelForCausalLM.from_pretrained(...)`, and `titans graft` does the same from the command line.
"""

import tempfile

import numpy as np
import torch
from torch.utils.data import SequentialSampler, Subset
from transformers import AutoModelForCausalLM, LlamaConfig, Trainer, TrainingArguments

import titanslab
from titanslab import GraftConfig, MemoryConfig
from titanslab.data.documents import DocumentRows, collate_documents
from titanslab.data.tokens import Tokens
from titanslab.evaluation.graft.controls import OFF, ON, OTHER, measure_controls
from titanslab.evaluation.graft.verdict import verdict
from titanslab.training.graft_carry import GraftCarry

LETTERS, PIECE, ROWS, STEPS = 32, 32, 8, 80


class InOrder(Trainer):
    """A Trainer whose rows go on with the memory of the batch before."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.carry = GraftCarry(self.model)

    def _get_train_sampler(self, *args):
        return SequentialSampler(self.train_dataset)

    def compute_loss(self, model, inputs, *args, **kwargs):
        loss = super().compute_loss(model, self.carry.enter(inputs), *args, **kwargs)
        self.carry.leave()  # keeps the states without their graph
        return loss


def documents(count: int, seed: int) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    return [draw.choice(draw.choice(LETTERS, 4, replace=False), 3 * PIECE) for _ in range(count)]


torch.manual_seed(0)
sizes = {
    "vocab_size": LETTERS,
    "hidden_size": 64,
    "intermediate_size": 64,
    "initializer_range": 0.1,
    "tie_word_embeddings": True,
}
base = AutoModelForCausalLM.from_config(LlamaConfig(**sizes, num_hidden_layers=1, num_attention_heads=4))
memory = MemoryConfig(num_heads=2, depth=1, chunk_size=8)
model = titanslab.graft(base, GraftConfig(layers="all", window_size=8, memory=memory))

texts = documents(ROWS * STEPS // 3, seed=1)
tokens = Tokens(np.concatenate(texts), np.arange(len(texts) + 1) * 3 * PIECE, text_bytes=0)
rows = DocumentRows(tokens, PIECE, ROWS)  # row b of a batch is the next piece of row b of the batch before
with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        folder, max_steps=STEPS, per_device_train_batch_size=ROWS, learning_rate=1e-2, save_strategy="no",
        logging_steps=40, report_to="none", disable_tqdm=True, remove_unused_columns=False, use_cpu=True,
        dataloader_pin_memory=False,
    )  # fmt: skip
    InOrder(model, arguments, train_dataset=Subset(rows, range(ROWS * STEPS)), data_collator=collate_documents).train()
    model.save_pretrained(folder)  # the memories alone; titanslab.load_graft(folder, base) opens them
found = measure_controls(model, documents(8, seed=2))
print(verdict(found))
on, off, other = (found.losses[name][:, 2 * PIECE :].mean() for name in (ON, OFF, OTHER))
print(f"loss in the last piece: memory on {on:.2f} nats, off {off:.2f}, that of another document {other:.2f}")
