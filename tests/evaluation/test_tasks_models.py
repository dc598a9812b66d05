"""Tasks on tiny untrained models: reading in pieces, batches, lm-eval, the command line."""

import json
import shutil

import pytest
import torch

from titanslab import TitansConfig, TitansForCausalLM
from titanslab.data import byte_tokenizer
from titanslab.evaluation.decode import GreedyAnswerer, end_tokens, position_table


def _titans(variant, **options):
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    config = TitansConfig.preset(
        "tiny", variant=variant, vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_memory_heads=2, segment_len=32, window_size=32, num_persistent_tokens=2, **options,
    )  # fmt: skip
    return TitansForCausalLM(config).eval()


def _llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=259, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, bos_token_id=256, eos_token_id=257, pad_token_id=258,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def _prompts(*sizes):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 256, (size,), generator=generator).tolist() for size in sizes]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    _titans("mac").save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("variant", ["mac", "lmm"])
def test_reading_in_pieces_gives_the_answer_of_reading_whole(variant):
    model = _titans(variant).double()
    (prompt,) = _prompts(150)
    whole = model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, 150, dtype=torch.int64), max_new_tokens=6,
        do_sample=False, eos_token_id=None, pad_token_id=258,
    )[0, 150:].tolist()  # fmt: skip
    for piece in (7, 64, 1000):
        read = []
        answer = GreedyAnswerer(model, max_new_tokens=6, piece=piece, pad_token_id=258)
        assert answer([prompt], read.append) == [whole]
        assert sum(read) == 150
        assert max(read) == min(piece, 149)  # the last token is a separate step


@pytest.mark.parametrize("kind", ["mac", "mal", "llama"])
def test_a_batch_answers_as_its_rows_alone(kind):
    model = (_llama() if kind == "llama" else _titans(kind)).double()
    prompts = _prompts(90, 61, 7)
    answer = GreedyAnswerer(model, max_new_tokens=5, piece=40, pad_token_id=258, eos_token_ids=[257])
    assert answer(prompts) == [answer([prompt])[0] for prompt in prompts]


@pytest.mark.parametrize("kind", ["mac", "llama"])
def test_an_answer_ends_at_the_end_token(kind):
    model = _llama() if kind == "llama" else _titans(kind)
    prompts = _prompts(30)
    free = GreedyAnswerer(model, max_new_tokens=8, pad_token_id=258)(prompts)[0]
    end = free[3]
    cut = GreedyAnswerer(model, max_new_tokens=8, pad_token_id=258, eos_token_ids=[end])(prompts)[0]
    assert cut == free[: free.index(end)]


def test_a_position_table_that_is_too_short_is_said():
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=259, n_positions=64, n_embd=16, n_layer=1, n_head=2))
    answer = GreedyAnswerer(model, max_new_tokens=8, pad_token_id=258)
    with pytest.raises(ValueError, match="table ends at 64"):
        answer(_prompts(60))


def test_a_table_of_any_name_is_found():
    from transformers import GPTJConfig, GPTJForCausalLM, LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

    small = dict(vocab_size=259, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    opt = OPTForCausalLM(OPTConfig(**small, ffn_dim=16, word_embed_proj_dim=16, max_position_embeddings=64)).eval()
    assert position_table(opt) == 64
    assert position_table(LlamaForCausalLM(LlamaConfig(**small, intermediate_size=16))) is None
    gptj = GPTJConfig(vocab_size=259, n_positions=64, n_embd=16, n_layer=1, n_head=2, rotary_dim=4)
    assert position_table(GPTJForCausalLM(gptj)) == 64  # GPT-J computes its table once for n_positions
    answer = GreedyAnswerer(opt, max_new_tokens=8, pad_token_id=1)
    assert len(answer(_prompts(56))[0]) == 8
    with pytest.raises(ValueError, match="table ends at 64"):
        answer(_prompts(57))


def test_answers_are_greedy_whatever_a_model_says_of_itself():
    from transformers import GenerationConfig

    model, prompts = _llama().double(), _prompts(30, 20)
    expected = GreedyAnswerer(model, max_new_tokens=12, pad_token_id=258)(prompts)
    own = GenerationConfig(suppress_tokens=[expected[0][0]], repetition_penalty=1.5, eos_token_id=[257, 5])
    model.generation_config = own
    assert GreedyAnswerer(model, max_new_tokens=12, pad_token_id=258)(prompts) == expected
    assert model.generation_config is own
    assert end_tokens(byte_tokenizer(), model) == [5, 257]


def _titans_command(arguments, capsys):
    from titanslab.cli import main

    with pytest.raises(SystemExit) as end:
        main(arguments)
    captured = capsys.readouterr()
    return end.value.code, captured.out, captured.err


def test_evaluate_niah_on_the_command_line(model_folder, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["evaluate", "niah", "--model", str(model_folder), "--lengths", "1k", "--output", str(out)]
    command += ["--max-new-tokens", "3", "--device", "cpu"]
    code, shown, _ = _titans_command([*command, "--samples", "2"], capsys)
    assert code == 0
    assert "niah_single_1" in shown
    assert len((out / "results.jsonl").read_text().splitlines()) == 2
    assert json.loads((out / "summary.json").read_text())[0]["samples"] == 2
    assert (out / "heat_map.png").exists()
    assert len(list((out / "samples").iterdir())) == 1
    before = (out / "results.jsonl").read_text()
    assert _titans_command([*command, "--samples", "3"], capsys)[0] == 0
    assert (out / "results.jsonl").read_text().startswith(before)
    code, _, error = _titans_command([*command, "--seed", "7"], capsys)
    assert code == 2
    assert "another seed (42, now 7)" in error
    assert error.count("\n") == 1


def put_in_lower_case(tokenizer):
    """Change the tokenizer: the vocabulary stays, and texts get other ids."""
    whole = json.loads(tokenizer.read_text())
    tokenizer.write_text(json.dumps(whole | {"normalizer": {"type": "Lowercase"}}))


def test_another_model_in_the_same_folder_is_not_gone_on_with(tmp_path, capsys):
    folder, out = tmp_path / "model", tmp_path / "out"
    _llama().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    command = ["evaluate", "niah", "--model", str(folder), "--lengths", "1k", "--output", str(out)]
    command += ["--max-new-tokens", "2", "--device", "cpu", "--samples"]
    assert _titans_command([*command, "1"], capsys)[0] == 0
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(json.dumps(json.loads(config) | {"rms_norm_eps": 0.1}))
    code, _, error = _titans_command([*command, "2"], capsys)
    assert code == 2
    assert "made with another config" in error
    (folder / "config.json").write_text(config)
    put_in_lower_case(folder / "tokenizer.json")
    code, _, error = _titans_command([*command, "2"], capsys)
    assert code == 2
    assert "made with another tokenizer" in error


def test_what_counts_lengths_is_known_by_what_it_does(model_folder, tmp_path, capsys):
    counter, out = tmp_path / "counter", tmp_path / "out"
    byte_tokenizer().save_pretrained(counter)
    command = ["evaluate", "niah", "--model", str(model_folder), "--lengths", "1k", "--output", str(out)]
    command += ["--max-new-tokens", "2", "--device", "cpu", "--tokenizer-for-length"]
    assert _titans_command([*command, str(counter), "--samples", "1"], capsys)[0] == 0
    counter.rename(tmp_path / "moved")  # the same tokenizer in another folder
    assert _titans_command([*command, str(tmp_path / "moved"), "--samples", "2"], capsys)[0] == 0
    put_in_lower_case(tmp_path / "moved" / "tokenizer.json")
    code, _, error = _titans_command([*command, str(tmp_path / "moved"), "--samples", "3"], capsys)
    assert code == 2
    assert "another tokenizer_for_length" in error


def test_a_haystack_asks_all_three_and_everything_in_the_folder_is_summed_up(model_folder, tmp_path, capsys):
    out, text = tmp_path / "out", tmp_path / "essays.txt"
    text.write_text("A long road led past the mill and over the old bridge to town. " * 200)
    command = ["evaluate", "niah", "--model", str(model_folder), "--output", str(out), "--max-new-tokens", "2"]
    command += ["--device", "cpu", "--samples", "1", "--lengths"]
    assert _titans_command([*command, "1k"], capsys)[0] == 0
    code, shown, error = _titans_command([*command, "2k", "--haystack", str(text)], capsys)
    assert code == 0, error
    assert all(f"niah_single_{n}" in shown for n in (1, 2, 3))
    assert "1k" not in shown
    summary = json.loads((out / "summary.json").read_text())
    assert [(row["task"], row["length"]) for row in summary] == [
        ("niah_single_1", 1024), *((f"niah_single_{n}", 2048) for n in (1, 2, 3)),
    ]  # fmt: skip


def test_evaluate_babilong_on_the_command_line(model_folder, tmp_path, capsys):
    (tmp_path / "qa1_x_test.txt").write_text("1 John went to the office.\n2 Where is John? \toffice\t1\n")
    out = tmp_path / "out"
    command = ["evaluate", "babilong", "--model", str(model_folder), "--facts", str(tmp_path)]
    command += ["--samples", "1", "--output", str(out), "--max-new-tokens", "2", "--device", "cpu"]
    code, shown, _ = _titans_command([*command, "--tasks", "qa1", "--lengths", "0k"], capsys)
    assert code == 0
    assert "BABILong: bAbI's stories, right by the official metric (corrected: the same), 1 sample" in shown
    assert set(json.loads((out / "results.jsonl").read_text())["scores"]) == {"official", "corrected"}


def test_babilong_without_files_asks_stories_of_our_own(model_folder, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["evaluate", "babilong", "--model", str(model_folder), "--samples", "1"]
    command += ["--output", str(out), "--max-new-tokens", "2", "--device", "cpu"]
    code, shown, error = _titans_command(command, capsys)
    assert code == 0, error
    assert "Only 0k was asked: longer lengths need --background." in shown
    heading = "BABILong: own stories, right answers (corrected: the same), 1 sample a cell; k is 1,000 tokens"
    assert [line for line in shown.splitlines() if "BABILong" in line] == [heading]
    assert "official" not in shown
    code, _, error = _titans_command([*command, "--lengths", "1k"], capsys)
    assert code == 2
    assert "give --background FILE" in error
    records = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert sorted(record["task"] for record in records) == [f"babilong_qa{i}" for i in range(1, 6)]


def test_no_forget_is_the_model_without_alpha(tmp_path, capsys):
    forgets = _titans("lmm", memory_chunk_coherence=0)  # full writes, so that the answers depend on them
    memory = forgets.model.layers[0].mixer.memory
    with torch.no_grad():
        memory.alpha_proj.bias.fill_(0.0)  # forget half of the memory at every token
        memory.o_proj.weight.normal_()  # answers depend on the retrieved values
        forgets.model.embed_tokens.weight.normal_()
    keeps = TitansForCausalLM(TitansConfig(**(forgets.config.to_dict() | {"memory_forgetting": False})))
    keeps.load_state_dict({k: v for k, v in forgets.state_dict().items() if "alpha_proj" not in k})

    def answers(folder, *options):
        shape = ("--lengths", "640", "--samples", "3", "--max-new-tokens", "8", "--device", "cpu")
        command = ["evaluate", "niah", "--model", str(folder), "--output", str(tmp_path / "out"), *shape, *options]
        code, _, error = _titans_command(command, capsys)
        assert code == 0, error
        read = [json.loads(line)["output"] for line in (tmp_path / "out/results.jsonl").read_text().splitlines()]
        shutil.rmtree(tmp_path / "out")
        return read

    for name, model in (("forgets", forgets), ("keeps", keeps)):
        model.save_pretrained(tmp_path / name)
        byte_tokenizer().save_pretrained(tmp_path / name)
    assert answers(tmp_path / "forgets", "--no-forget") == answers(tmp_path / "keeps") != answers(tmp_path / "forgets")

    _llama().save_pretrained(tmp_path / "llama")
    byte_tokenizer().save_pretrained(tmp_path / "llama")
    code, _, error = _titans_command(["evaluate", "niah", "--model", str(tmp_path / "llama"), "--no-forget"], capsys)
    assert code == 2
    assert "forget=False keeps a memory from fading, and this model has none" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["niah", "--model", "/nowhere"], "does not exist"),
        (["niah", "--model", "MODEL", "--lengths", "4q"], "such as 4096, 4k or 1M"),
        (["niah", "--model", "MODEL", "--lengths", "100"], "too short"),
        (["niah", "--model", "MODEL", "--variant", "single_2"], "haystack is missing"),
        (["niah", "--model", "MODEL", "--variant", "single_2", "--haystack", "/nowhere"], "does not exist"),
        (["niah", "--model", "MODEL", "--nouns", "/nowhere"], "does not exist"),
        (["babilong", "--model", "MODEL", "--facts", "/nowhere", "--lengths", "0k"], "does not exist"),
        (["babilong", "--model", "MODEL", "--facts", "OUT", "--tasks", "qa11"], "qa10"),
        (["babilong", "--model", "MODEL", "--tasks", "qa6", "--lengths", "0k"], "qa6 needs bAbI's folder"),
    ],
)
def test_a_wrong_command_is_one_line_and_leaves_nothing(arguments, message, model_folder, tmp_path, capsys):
    swap = {"MODEL": str(model_folder), "OUT": str(tmp_path)}
    out = tmp_path / "out"
    command = ["evaluate", *(swap.get(word, word) for word in arguments), "--output", str(out)]
    code, _, error = _titans_command([*command, "--device", "cpu"], capsys)
    assert code == 2
    assert message in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_tasks_run_in_lm_eval(model_folder, tmp_path):
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from titanslab.data.encode import load_counter
    from titanslab.evaluation.lm_eval_tasks import INCLUDE_PATH
    from titanslab.tasks.niah.samples import NIAH
    from titanslab.tasks.table import TASKS

    (tmp_path / "qa7_x_test.txt").write_text("1 Mary got the milk.\n2 How many objects is Mary carrying? \tone\t1\n")
    metadata = {"tokenizer": "byte", "length": "1k", "samples": 2, "facts": str(tmp_path)}
    metadata["background"] = str(tmp_path / "book.txt")
    (tmp_path / "book.txt").write_text("A long road led past the mill and over the old bridge to town. " * 40)
    manager = TaskManager(include_path=INCLUDE_PATH, include_defaults=False, metadata=metadata)
    names = [f"titans_{task.name}_{part}" for task in TASKS.values() if task.lm_eval for part in task.parts]
    assert len(names) == 13
    assert sorted(manager.all_tasks) == sorted(names)
    model = HFLM(pretrained=_titans("lmm"), tokenizer=byte_tokenizer(), max_length=4096, batch_size=2, device="cpu")
    results = simple_evaluate(
        model=model, tasks=["titans_niah_single_1", "titans_babilong_qa7"], task_manager=manager,
        gen_kwargs={"max_gen_toks": 3}, bootstrap_iters=0, log_samples=True,
    )  # fmt: skip
    assert results["results"]["titans_niah_single_1"]["acc,none"] == 0.0
    assert results["results"]["titans_babilong_qa7"]["corrected,none"] == 0.0
    prompts = [s["arguments"][0][0] for s in results["samples"]["titans_niah_single_1"]]
    assert prompts == [s.prompt for s in [NIAH("single_1", load_counter("byte")).sample(1024, n) for n in range(2)]]


def test_lm_eval_scores_are_ours():
    from titanslab.evaluation.lm_eval_tasks import dataset, results

    doc = dataset(family="niah", part="single_1", tokenizer="byte", length="1k", samples=1)["test"][0]
    assert results(doc, [f" {doc['target']}."]) == {"acc": 1.0}
    question = {"info": json.dumps({"question": "How many objects is Mary carrying?"})}
    doc = {"task": "babilong_qa7", "target": "none", **question}
    assert results(doc, ["None"]) == {"official": 0.0, "corrected": 1.0}
    with pytest.raises(ValueError, match="tokenizer is missing"):
        dataset(family="niah", part="single_1")
    for wrong in (0, "2", True):
        with pytest.raises(ValueError, match="samples must be a whole number"):
            dataset(family="niah", part="single_1", tokenizer="byte", samples=wrong)


def test_lm_eval_takes_the_length_of_a_model_and_refuses_to_cut(model_folder, tmp_path):
    from lm_eval.models.huggingface import HFLM
    from transformers import LlamaConfig

    from titanslab.evaluation.lm_eval_tasks import dataset

    model = HFLM(pretrained=_titans("lmm"), tokenizer=byte_tokenizer(), batch_size=1, device="cpu")
    assert model.max_length >= 1_000_000
    asked = {"family": "niah", "part": "single_1", "tokenizer": "byte", "length": "1k", "samples": 1}
    with pytest.raises(ValueError, match=r"length '1k' of titans_niah_single_1 needs [\d,]+ tokens .* takes 900"):
        dataset(**asked, max_length=900)
    LlamaConfig(max_position_embeddings=512).save_pretrained(tmp_path / "llama")
    byte_tokenizer().save_pretrained(tmp_path / "llama")
    with pytest.raises(ValueError, match="the model takes 512"):
        dataset(**asked, pretrained=str(tmp_path / "llama"))
    for fits in ({"max_length": 4096}, {"pretrained": str(model_folder)}, {"pretrained": "nowhere/at-all"}):
        assert len(dataset(**asked, **fits)["test"]) == 1
