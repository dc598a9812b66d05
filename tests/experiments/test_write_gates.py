"""Gates are averaged over the tokens of the places that carry their names."""

import math

import pytest
import torch

from titanslab import TitansConfig, TitansForCausalLM
from titanslab.data import byte_tokenizer
from titanslab.data.encode import TokenCounter
from titanslab.evaluation.trace import memories_of
from titanslab.experiments import write_gates
from titanslab.tasks.babilong.samples import BABILong
from titanslab.tasks.niah.samples import NIAH, VARIANTS

LINE = "the river ran under an old bridge where nobody had crossed since winter came. "


@pytest.mark.parametrize("task", ["qa1", *VARIANTS])
def test_places_are_those_of_the_text(task, monkeypatch, tmp_path):
    tokenizer = byte_tokenizer()
    counter = TokenCounter(tokenizer)
    if task == "qa1":
        (tmp_path / "qa1_x_test.txt").write_text("1 Mary moved to the attic.\n2 Where is Mary? \tattic\t1\n")
        made = BABILong(task, tmp_path, counter, background=[LINE * 50])
        texts = list(write_gates.babilong_texts(made, 900, 2, 0))
    else:
        made = NIAH(task, counter, haystack=None if task == "single_1" else [LINE * 50])
        texts = list(write_gates.niah_texts(made, 1600, 2, 0))
    for text, places in texts:
        found = {name: [text[low:high] for low, high in spans] for name, spans in places.items()}
        if task == "qa1":
            assert found["facts"] == ["Mary moved to the attic."]
            assert not any("Mary" in part for part in found["background"])
        else:
            assert found["needle"][0].startswith("One of the special magic")
            assert set(found["value"][0]) <= set("0123456789abcdef-")
            assert f"is: {found['value'][0]}." in text
            assert not any("magic" in part for part in found["background"])

    def by_letter(model, ids):  # a gate of 1 on every e, of 0 elsewhere; a second memory the other way round
        gates = torch.tensor([float(i == ord("e")) for i in ids])
        return [gates, 1 - gates], [torch.tensor([[0.25, 0.5]]), torch.zeros(1, 2)]

    monkeypatch.setattr(write_gates, "gates_of", by_letter)
    rows = write_gates.measure(None, tokenizer, iter(texts))
    for name in texts[0][1]:
        letters = "".join(text[low:high] for text, places in texts for low, high in places[name])
        assert rows[0][name] == pytest.approx(letters.count("e") / len(letters))
        assert rows[1][name] == pytest.approx(1 - letters.count("e") / len(letters))
    written = sum(text[low:high].count("e") for text, places in texts for low, high in places["background"])
    assert rows[0]["background_sum"] == pytest.approx(written / len(texts))

    assert rows[0]["half_lives"] == [[pytest.approx(4 * math.log(2)), pytest.approx(2 * math.log(2))]]
    assert rows[0]["half_life"] == pytest.approx(2 * math.log(2))
    assert rows[1]["half_life"] is None


@pytest.mark.parametrize("variant", ["lmm", "mac"])
def test_half_lives_are_those_of_the_gates(variant):
    options = {"vocab_size": 32, "hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "segment_len": 16}
    half_lives = {"num_memory_heads": 2, "memory_half_lives": [100, 10_000]}
    model = TitansForCausalLM(TitansConfig(variant=variant, **options, **half_lives)).eval()
    for memory in memories_of(model):  # the gate's bias alone
        torch.nn.init.zeros_(memory.alpha_proj.weight)
    ids = torch.randint(3, 32, (70,)).tolist()
    with torch.no_grad():
        gates, decays = write_gates.gates_of(model, ids)
    assert [g.shape for g in gates] == [(70,), (70,)]
    assert len(decays) == 2
    for memory, decay in zip(memories_of(model), decays, strict=True):
        wanted = -torch.log1p(-torch.sigmoid(memory.alpha_proj.bias.double())).view(decay.shape)
        torch.testing.assert_close(decay, wanted, rtol=1e-4, atol=0)
        assert 60 < math.log(2) / float(decay.max()) < 200

    forever = TitansForCausalLM(TitansConfig(variant=variant, memory_forgetting=False, **options)).eval()
    assert all(float(decay.max()) == 0 for decay in write_gates.gates_of(forever, ids)[1])


def test_a_missing_text_is_named(capsys):
    with pytest.raises(SystemExit):
        write_gates.main(["--text", "/nowhere.txt", "run"])
    assert "--text '/nowhere.txt' does not exist" in capsys.readouterr().err
