"""Texts of any length, read piece by piece; and training with Hugging Face's Trainer."""

import pytest
import torch
from transformers import Trainer, TrainingArguments

import titanslab
from grafted import base, grafted, left_padded, text


def after(model, cache) -> torch.Tensor:
    """The next logits after a cache."""
    with torch.no_grad():
        return model(text(2, 3, seed=5), **{model.graft.decoder.cache_name: cache.fork()}).logits


@pytest.mark.parametrize("options", [{}, {"window_size": 6, "num_sink_tokens": 2}])
def test_pieces(options):
    model = grafted(base(), **options)
    ids, mask = left_padded(2, 40)
    whole = model.graft.read(ids, attention_mask=mask, piece_size=40)
    first = model.graft.read(ids[:, :13], attention_mask=mask[:, :13])
    found = model.graft.read(ids[:, 13:], first, attention_mask=mask[:, 13:], piece_size=5)
    assert (first.columns, found.columns, whole.columns) == (13, 40, 40)
    torch.testing.assert_close(after(model, found), after(model, whole), atol=1e-4, rtol=1e-4)


def test_a_text_beyond_the_positions_of_the_base():
    model = grafted(base(max_position_embeddings=32), window_size=6, num_sink_tokens=2)
    cache = model.graft.read(text(2, 300))
    assert cache.columns == 300
    assert after(model, cache).isfinite().all()


def test_frozen():
    model = grafted(base())
    cache = model.graft.read(text(2, 9))
    frozen = model.graft.read(text(2, 9, seed=6), cache, learn=False)
    weights = [c.memories[0].memory.weights[0] for c in (cache, frozen)]
    assert torch.equal(*weights)
    assert frozen.learn
    assert not torch.equal(weights[0], model.graft.read(text(2, 9, seed=6), cache).memories[0].memory.weights[0])


def test_wrong_inputs():
    model = grafted(base())
    with pytest.raises(ValueError, match=r"input_ids must be integers \[B, T\], got \[20\]"):
        model.graft.read(text()[0])
    with pytest.raises(ValueError, match=r"attention_mask must have the shape of input_ids, \[2, 20\], got \[2, 3\]"):
        model.graft.read(text(), attention_mask=torch.ones(2, 3))
    with pytest.raises(ValueError, match="piece_size must be an integer of at least 1, got 0"):
        model.graft.read(text(), piece_size=0)


def test_the_trainer_of_hugging_face_trains_and_saves_the_memories(tmp_path):
    model = grafted(base(), trained=False, window_size=6)
    before = {name: p.clone() for name, p in model.named_parameters()}
    rows = [{"input_ids": row, "labels": row} for row in text(4, 24)]
    options = TrainingArguments(
        str(tmp_path), max_steps=3, learning_rate=1e-2, save_steps=3, report_to=[], use_cpu=True, disable_tqdm=True
    )
    Trainer(model, options, train_dataset=rows).train()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert all("titans_memory" in name for name in changed)
    model.eval()
    loaded = titanslab.load_graft(tmp_path / "checkpoint-3", base())
    torch.testing.assert_close(loaded(text()).logits, model(text()).logits)
