"""S-NIAH and BABILong as tasks of lm-eval: `titans_niah_single_1` to `_3`, `titans_babilong_qa1` to `_qa10`.

The samples are those of `titanslab.tasks`, made here and offline; what they need comes as lm-eval's metadata:

    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager
    from titanslab.evaluation.lm_eval_tasks import INCLUDE_PATH

    manager = TaskManager(include_path=INCLUDE_PATH, metadata={"tokenizer": RUN, "length": "4k", "haystack":
    PATH}) simple_evaluate(model=..., tasks=["titans_niah_single_2"], task_manager=manager)

or, on the command line, `lm_eval --include_path ... --metadata '{...}'`. One run is one length.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from titanslab.data.encode import load_counter
from titanslab.data.text import iter_texts, read_words
from titanslab.tasks.babilong.samples import BABILong, check_form, score_babilong
from titanslab.tasks.niah.samples import NIAH, score_niah
from titanslab.tasks.sample import TaskSample, parse_length

INCLUDE_PATH = str(Path(__file__).parent / "lm_eval_configs")


def niah_dataset(
    *,
    variant: str,
    tokenizer: str = "",
    pretrained: str = "",
    length: str | int = "4k",
    samples: int = 500,
    seed: int = 42,
    haystack: str | None = None,
    adjectives: str | None = None,
    nouns: str | None = None,
    **others: Any,
) -> dict[str, Any]:
    """S-NIAH samples as the `datasets` that lm-eval asks for.

    Args:
        variant: `single_1`, `single_2` or `single_3`.
        tokenizer: measures the length, see `load_counter`; `pretrained` where missing.
        pretrained: lm-eval's name of the model.
        length: in tokens, `4k` is 4096.
        samples: how many.
        seed: of the samples.
        haystack: path of running text; needed by single_2 and single_3.
        adjectives: path of a word list for the keys.
        nouns: path of the other.
        others: what lm-eval sends along and nobody here needs.
    """
    lists: dict[str, Any] = {
        name: read_words(path) for name, path in (("adjectives", adjectives), ("nouns", nouns)) if path
    }
    count = _count(samples)
    texts = list(iter_texts(haystack)) if haystack and variant != "single_1" else None
    task = NIAH(variant, load_counter(_tokenizer_name(tokenizer, pretrained)), haystack=texts, **lists)
    return _dataset(task.samples(parse_length(length), count, seed))


def babilong_dataset(
    *,
    task: str,
    facts: str = "",
    tokenizer: str = "",
    pretrained: str = "",
    length: str | int = "0k",
    samples: int = 100,
    seed: int = 42,
    background: str | None = None,
    form: str = "base",
    **others: Any,
) -> dict[str, Any]:
    """BABILong samples as the `datasets` that lm-eval asks for.

    Args:
        task: `qa1` to `qa10`.
        facts: folder of bAbI's files.
        tokenizer: measures the length, see `load_counter`; `pretrained` where missing.
        pretrained: lm-eval's name of the model.
        length: in tokens, `4k` is 4000.
        samples: how many.
        seed: of the samples.
        background: path of books; needed above length 0.
        form: of the prompt; `base` alone.
        others: what lm-eval sends along and nobody here needs.
    """
    if not facts:
        raise ValueError(f"facts is missing; titans_babilong_{task} needs the folder of bAbI's files in metadata")
    check_form(form)
    count = _count(samples)
    counter = load_counter(_tokenizer_name(tokenizer, pretrained))
    books = list(iter_texts(background)) if background else None
    maker = BABILong(task, facts, counter, background=books)
    return _dataset(maker.samples(parse_length(length, kilo=1000), count, seed))


def niah_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """lm-eval's scores of one S-NIAH answer."""
    return {"acc": score_niah(doc["target"], results[0])}


def babilong_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """lm-eval's scores of one BABILong answer, official and corrected."""
    task = doc["task"].removeprefix("babilong_")
    return score_babilong(task, doc["target"], results[0], json.loads(doc["info"])["question"])


def _tokenizer_name(tokenizer: str, pretrained: str) -> str:
    name = tokenizer or pretrained
    if not isinstance(name, str) or not name:
        raise ValueError("tokenizer is missing; name the one that measures lengths in lm-eval's metadata")
    return name


def _count(samples: Any) -> int:
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        raise ValueError(f"samples must be a whole number of at least 1 in lm-eval's metadata, got {samples!r}")
    return samples


def _dataset(samples: Iterable[TaskSample]) -> dict[str, Any]:
    import datasets

    rows = [{**vars(sample), "info": json.dumps(sample.info)} for sample in samples]
    return {"test": datasets.Dataset.from_list(rows)}
