"""The tasks of `titanslab.tasks` in lm-eval, such as `titans_niah_single_1` and `titans_babilong_qa10`.

The samples are made here and offline. Their options come as lm-eval's metadata, and one run has one length:

    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager
    from titanslab.evaluation.lm_eval_tasks import INCLUDE_PATH

    metadata = {"tokenizer": RUN, "length": "4k", "haystack": PATH}
    manager = TaskManager(include_path=INCLUDE_PATH, metadata=metadata)
    simple_evaluate(model=..., tasks=["titans_niah_single_2"], task_manager=manager)

On the command line this is `lm_eval --include_path ... --metadata '{...}'`.
"""

import json
from pathlib import Path
from typing import Any

import datasets

from titanslab.data.encode import load_counter, tokenizer_identity
from titanslab.tasks.sample import TaskSample, parse_length
from titanslab.tasks.table import TASKS

INCLUDE_PATH = str(Path(__file__).parent / "lm_eval_configs")
NEW_TOKENS = 128  # `max_gen_toks` of the configs; lm-eval leaves room for them in the model's length


def dataset(
    *,
    family: str,
    part: str,
    tokenizer: str = "",
    pretrained: str = "",
    length: str | int | None = None,
    samples: int | None = None,
    seed: int = 42,
    **metadata: Any,
) -> dict[str, Any]:
    """Samples of one sub-task as the `datasets` of lm-eval.

    Args:
        family, part: names of the task in the table and of the sub-task.
        tokenizer: measures the length, see `load_counter`; `pretrained` if it is missing.
        pretrained: lm-eval's name of the model.
        length: such as `4k`; None = the task's default in lm-eval.
        samples: number of samples; None = the task's default in lm-eval.
        seed: of the samples.
        metadata: the task's own options, and `max_length`, the tokens that the model takes at most; None = as the
            config of `pretrained` says. Other entries, which lm-eval passes on, have no effect.

    Raises:
        ValueError: an option that is missing or wrong, or prompts that lm-eval would cut to fit the model, which
            takes the sought text away.
    """
    task = TASKS[family]
    bridge = task.lm_eval
    if bridge is None or task.cells is None:
        raise ValueError(f"family is {family!r}, which has no tasks in lm-eval")
    for name in bridge.needs:
        if not metadata.get(name):
            raise ValueError(f"{name} is missing; titans_{family}_{part} needs it in lm-eval's metadata")
    count = bridge.samples if samples is None else samples
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"samples must be a whole number of at least 1 in lm-eval's metadata, got {samples!r}")
    name = tokenizer or pretrained
    if not isinstance(name, str) or not name:
        raise ValueError("tokenizer is missing; name the one that measures lengths in lm-eval's metadata")
    counter = load_counter(name)
    own = {o.name: metadata[o.name] for o in task.options if o.name in metadata and part in (o.parts or task.parts)}
    (cell,) = task.cells(
        lengths=[parse_length(bridge.length if length is None else length, task.kilo)],
        counter=counter,
        counter_name=tokenizer_identity(counter.tokenizer),
        seed=seed,
        **own | {task.parts_option: part},
    )
    rows = [{**vars(sample), "info": json.dumps(sample.info)} for sample in map(cell.make, range(count))]
    limit = _model_length(metadata.get("max_length"), pretrained)
    longest = max(counter.count(row["prompt"]) for row in rows) + NEW_TOKENS
    if limit is not None and longest > limit:
        raise ValueError(
            f"length {length or bridge.length!r} of titans_{family}_{part} needs {longest:,} tokens with the answer, "
            f"and the model takes {limit:,}: lm-eval would cut the prompts; ask a shorter length, or give max_length "
            "in the model's arguments if it takes more"
        )
    return {"test": datasets.Dataset.from_list(rows)}


def _model_length(max_length: Any, pretrained: str) -> int | None:
    """The longest text that lm-eval gives to the model; None where its name leads to no config."""
    if max_length is not None:
        return int(max_length)
    from lm_eval.models.utils import resolve_max_length
    from transformers import AutoConfig, AutoTokenizer

    try:
        return resolve_max_length(AutoConfig.from_pretrained(pretrained), AutoTokenizer.from_pretrained(pretrained))
    except (OSError, ValueError, TypeError):
        return None


def results(doc: dict[str, Any], outputs: list[str]) -> dict[str, float]:
    """lm-eval's scores of one answer, under the names that `LmEval.metrics` gives them."""
    task = next(task for task in TASKS.values() if doc["task"].startswith(f"{task.name}_"))
    assert task.score is not None and task.lm_eval is not None  # noqa: PT018
    sample = TaskSample(doc["task"], 0, 0, "", doc["target"], json.loads(doc["info"]))
    metrics = task.lm_eval.metrics
    return {metrics.get(name, name): value for name, value in task.score(sample, outputs[0]).items()}
