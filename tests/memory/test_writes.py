"""The mean write gate of a model, and the write cost in its training loss."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from titanslab.memory import NeuralMemory, mean_write
from titanslab.models.config import TitansConfig
from titanslab.models.modeling import TitansForCausalLM


def small(variant, **options):
    torch.manual_seed(0)
    return TitansForCausalLM(TitansConfig.preset("tiny", variant, num_hidden_layers=2, **options)).train()


def test_counted_gate_is_the_sigmoid_of_its_projection_without_padding():
    torch.manual_seed(0)
    memory = NeuralMemory(32, 2, theta_bias=0.5)
    x = torch.randn(2, 40, 32)
    mask = torch.ones(2, 40, dtype=torch.bool)
    mask[0, :30] = False
    *_, stats = memory(x, mask=mask, return_stats=True)
    expected = torch.sigmoid(memory.theta_proj(x))[mask].mean()
    torch.testing.assert_close(mean_write([stats["write"][mask]]), expected)
    assert (stats["write"][~mask] == 0).all()


@pytest.mark.parametrize("tokens", [40, 600])  # below and above the length from which training uses the fused pass
def test_both_ways_of_training_count_the_same(tokens):
    torch.manual_seed(0)
    memory = NeuralMemory(32, 2, chunk_size=4)
    x = torch.randn(1, tokens, 32)
    *_, one = memory(x, return_stats=True)
    *_, other = memory(x, mask=torch.ones(1, tokens, dtype=torch.bool), return_stats=True)
    torch.testing.assert_close(*(mean_write([stats["write"]]) for stats in (one, other)))


@pytest.mark.parametrize("variant", ["lmm", "mal", "mag", "mac"])
@pytest.mark.parametrize(("fused", "floor"), [(True, None), (False, None), (False, 1e-3)])
def test_the_loss_holds_the_cost_in_training_alone(variant, fused, floor):
    model = small(variant, memory_write_cost=2.0, memory_write_floor=floor, fused_loss=fused)
    ids = torch.randint(0, 260, (2, 150))
    stats = model.model(input_ids=ids, output_memory_stats=True).memory_stats
    writes = [gate for block in stats for name, gate in block.items() if name.endswith("write")]
    assert len(writes) == 2 * len(stats)  # one of the tokens, one of the persistent tokens
    priced = model(input_ids=ids, labels=ids).loss
    model.config.memory_write_cost = 0.0
    free = model(input_ids=ids, labels=ids).loss
    torch.testing.assert_close(priced - free, 2 * mean_write(writes, floor), atol=1e-4, rtol=1e-4)
    model.config.memory_write_cost = 2.0
    torch.testing.assert_close(model.eval()(input_ids=ids, labels=ids).loss, free, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("tokens", [1, 15, 65, 70, 130])  # the last segment is too short for the fused pass
@pytest.mark.parametrize("depth", [1, 2])
def test_stats_of_segments_of_any_length(tokens, depth):
    model = small("mac", memory_write_cost=2.0, segment_len=64, memory_depth=depth)
    ids = torch.randint(0, 260, (2, tokens))
    given = {"input_ids": ids, "output_memory_stats": True}
    found = model.model(**given).memory_stats
    with torch.no_grad():
        wanted = model.model(**given).memory_stats
    for one, other in zip(found, wanted, strict=True):
        for name in ("theta", "eta", "alpha", "write", "loss"):
            assert one[name].shape == (2, tokens, 4) + (depth,) * (name != "loss")
            torch.testing.assert_close(one[name], other[name], atol=1e-5, rtol=1e-4)


def test_parts_of_a_batch_pay_as_the_whole():
    model = small("lmm", memory_write_cost=2.0, num_persistent_tokens=0)
    ids = torch.randint(0, 260, (4, 60))
    whole = model(input_ids=ids, labels=ids).loss
    parts = [model(input_ids=part, labels=part, num_items_in_batch=4 * 59).loss for part in ids.split(2)]
    torch.testing.assert_close(sum(parts), whole)


@pytest.mark.parametrize("checkpointing", [True, False])
def test_the_cost_closes_the_gate(checkpointing):
    model = small("mac", memory_write_cost=100.0, fused_loss=True)
    if checkpointing:
        model.gradient_checkpointing_enable()
    ids = torch.randint(0, 260, (1, 200))
    model(input_ids=ids, labels=ids).loss.backward()
    for block in model.model.layers:
        assert (block.mixer.memory.theta_proj.bias.grad > 0.1).all()


# dynamo reads the .grad of a block's input, which is not a leaf
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_blocks_pay_too():
    model = small("lmm", memory_write_cost=2.0, memory_gate_keys=True)
    ids = torch.randint(0, 260, (2, 48))
    plain = model(input_ids=ids, labels=ids).loss
    for block in model.model.layers:
        block.compile(backend="eager")
    compiled = model(input_ids=ids, labels=ids).loss
    torch.testing.assert_close(compiled, plain)
    compiled.backward()
    assert (model.model.layers[0].mixer.memory.theta_proj.bias.grad > 0).any()


def test_a_floor_closes_small_gates_as_well_as_large_ones():
    logits = torch.tensor([-9.0, -7.0, -3.0, 0.0, 3.0], requires_grad=True)
    gates = torch.sigmoid(logits)
    price = 5 * mean_write([gates[:2], gates[2:]], 1e-4)
    torch.testing.assert_close(price, (torch.log(1 + gates / 1e-4) / torch.log(torch.tensor(10_001.0))).sum())
    (slope,) = torch.autograd.grad(price, logits)
    (plain,) = torch.autograd.grad(5 * mean_write([torch.sigmoid(logits)]), logits)
    assert slope[1] > 50 * plain[1]  # a gate of 0.0009
    assert slope[4] < 0.1 * slope[1]  # an open gate
    assert mean_write([torch.ones(3)], 1e-4) == 1


def test_nothing_counted_is_an_error():
    with pytest.raises(ValueError, match="no neural memory"):
        mean_write([])


def test_a_model_without_a_memory_pays_nothing():
    ids, losses = torch.randint(0, 260, (1, 20)), []
    for cost in (0.0, 1.0):
        losses.append(small("attention", memory_write_cost=cost)(input_ids=ids, labels=ids).loss)
    assert torch.equal(*losses)


def test_threads_do_not_share_their_counts():
    model = small("lmm", memory_write_cost=0.1)
    rows = [torch.randint(0, 260, (1, 40 + i)) for i in range(4)]
    want = [model(input_ids=row, labels=row).loss.item() for row in rows]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            got = list(pool.map(lambda row: model(input_ids=row, labels=row).loss.item(), rows))
            assert got == pytest.approx(want, rel=1e-6)
