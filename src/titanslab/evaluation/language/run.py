"""The tasks run on a model by lm-eval, one after the other; a stopped run goes on with the next task."""

import logging
import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib import import_module, metadata
from io import StringIO
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta, Struct

from titanslab.documents import checked, reason
from titanslab.evaluation.identity import model_identity
from titanslab.evaluation.language.local import find_local_files, write_local_task
from titanslab.evaluation.language.tasks import TASKS, LanguageTask
from titanslab.evaluation.results import FIX, Count, add_records, open_folder, read_lines
from titanslab.files import file_identity
from titanslab.progress import bar
from titanslab.runs.loading import find_model_folder, load_model, load_model_tokenizer

MISSING = "titans evaluate language runs lm-eval's tasks: pip install 'titans-lab[eval]'"
Scores = dict[str, float]


class Scored(Struct):
    """A line of results.jsonl: a task's values and standard errors under lm-eval's names of its metrics.

    `errors` lacks a metric for which lm-eval computes no standard error.
    """

    task: Annotated[str, Meta(min_length=1)]
    version: float | str
    samples: Annotated[int, Meta(ge=1, lt=1 << 62)]
    scores: Annotated[Scores, Meta(min_length=1)]
    errors: Scores
    batch_size: Count
    context_length: Count
    seconds: float


@dataclass(frozen=True)
class LanguageRun:
    """A model and the tasks for it.

    Args:
        model: folder of a run or of a Hugging Face causal model. device: of the model.
        tasks: rows of `TASKS`.
        output: folder of `settings.json`, `results.jsonl` and, with local data, of `data/`: the YAML and the converted
            rows of each task, with which lm-eval runs too.
        data: folder of local files; None = the hub's data sets.
        limit: most samples of a task, its first ones; None = all.
        batch_size: rows at once.
        context_length: most tokens of a prompt with its answer, and of a window of WikiText; None = lm-eval's choice,
            the model's own limit, or 2,048 for a model that has none.
    """

    model: str
    tasks: Sequence[LanguageTask]
    output: Path
    device: Any
    data: Path | None = None
    limit: int | None = None
    batch_size: int = 8
    context_length: int | None = None


def lm_eval_version() -> str:
    """The version of lm-eval; ImportError with the way to install it where it is missing."""
    try:
        import_module("lm_eval")
        return metadata.version("lm-eval")
    except ImportError as error:
        raise ImportError(f"{MISSING} ({reason(error)})") from error


def run_language(run: LanguageRun, settings: Mapping[str, Any] | None = None) -> dict[str, Scored]:
    """Run every task that the output folder has no result of, and show a progress bar for each.

    Args:
        run: the model, the tasks and the output folder.
        settings: further values that the results depend on; a folder that was made under other values is refused.

    Returns:
        The results of all tasks in the output folder by the task's name.
    """
    version = lm_eval_version()
    local = {task.name: find_local_files(task, run.data) for task in run.tasks} if run.data is not None else {}
    folder, tokenizer = find_model_folder(run.model), load_model_tokenizer(run.model)
    identity = {
        **model_identity(folder, tokenizer),
        "context_length": run.context_length,
        "lm_eval": version,
        **(settings or {}),
    }
    cells = {
        task.name: {"data": [file_identity(path) for path in local[task.name]] if local else "hub", "limit": run.limit}
        for task in run.tasks
    }
    with open_folder(run.output, identity, cells):
        done = read_scored(run.output, repair=True)
        left = [task for task in run.tasks if task.name not in done]
        quiet()
        loaded = {
            task.name: _load_task(
                task,
                write_local_task(task, local[task.name], _lm_eval_yaml(task), run.output / "data")
                if local
                else _lm_eval_yaml(task),
                bool(local),
            )
            for task in left
        }
        model: Any = load_model(run.model).to(run.device) if left else None
        for number, task in enumerate(left, len(run.tasks) - len(left) + 1):
            title = f"{task.name} ({number} of {len(run.tasks)})"
            record = _evaluate(run, task, loaded.pop(task.name), model, tokenizer, title)
            add_records(run.output, [record])
            done[task.name] = checked(record, Scored, task.name)
        return done


def read_scored(folder: Path, repair: bool = False) -> dict[str, Scored]:
    """The results in a folder by task; `repair` as in `read_lines`."""
    found: dict[str, Scored] = {}
    for where, record in read_lines(folder, repair):
        scored = checked(record, Scored, where, FIX)
        if scored.task not in TASKS:
            raise ValueError(f"{where}: task is {scored.task!r}, which is none of {', '.join(TASKS)}; {FIX}")
        if missing := {column.metric for column in TASKS[scored.task].columns} - scored.scores.keys():
            raise ValueError(f"{where}: scores has no {' and no '.join(sorted(missing))}; {FIX}")
        found.setdefault(scored.task, scored)
    return found


def _lm_eval_yaml(task: LanguageTask) -> Path:
    """lm-eval's own file of a task, found without its index of all tasks, which takes seconds to build."""
    path = Path(str(import_module("lm_eval.tasks").__file__)).parent / task.yaml
    if not path.is_file():
        raise FileNotFoundError(
            f"lm-eval {lm_eval_version()} has no {task.yaml} among its tasks; install lm-eval 0.4.13"
        )
    return path


def _load_task(task: LanguageTask, config: Path, local: bool) -> Any:
    """lm-eval's tasks in a YAML file, which is one, without examples in its prompts.

    Raises:
        ValueError: the hub's data set cannot be loaded.
    """
    from lm_eval.tasks import TaskManager

    try:
        loaded: Any = TaskManager(include_defaults=False).load([str(config)])
    except Exception as error:
        if local:
            raise
        raise ValueError(
            f"the hub's data set of {task.name} cannot be loaded ({type(error).__name__}: {reason(error)}); check the "
            "network, or give local files with --data"
        ) from error
    if loaded["tasks"][task.name].config.num_fewshot is None:
        loaded["tasks"][task.name].set_config(key="num_fewshot", value=0)
    return loaded


def _evaluate(
    run: LanguageRun, task: LanguageTask, loaded: Any, model: Any, tokenizer: Any, title: str
) -> dict[str, Any]:
    """The record of one task, as lm-eval's `simple_evaluate` computes it, without its report of the machine."""
    from lm_eval.evaluator import evaluate

    from titanslab.evaluation.language.model import ReportingModel

    begin = time.perf_counter()
    with bar(title, "tokens", keep=True) as progress, redirect_stdout(StringIO()), _workers_end_quietly():
        hf = ReportingModel(
            progress, pretrained=model, tokenizer=tokenizer, batch_size=run.batch_size, max_length=run.context_length
        )
        if loaded["tasks"][task.name].OUTPUT_TYPE == "loglikelihood_rolling":
            hf.fit_batch()
        try:
            results: Any = evaluate(lm=hf, task_dict=loaded, limit=run.limit, log_samples=False)
        except OverflowError as error:
            raise ValueError(f"{task.name}: the model's perplexity is beyond any number ({reason(error)})") from error
    scores, errors = _split(results["results"][task.name])
    if unusable := [name for name, value in scores.items() if not math.isfinite(value)]:
        raise ValueError(f"{task.name}: {unusable[0]} is {scores[unusable[0]]}; the model's logits are not finite")
    return {
        "task": task.name,
        "version": results["versions"][task.name],
        "samples": results["n-samples"][task.name]["effective"],
        "scores": scores,
        "errors": errors,
        "batch_size": hf.batch_size,
        "context_length": hf.max_length,
        "seconds": round(time.perf_counter() - begin, 3),
    }


@contextmanager
def _workers_end_quietly() -> Iterator[None]:
    """Let SIGTERM end the processes in which lm-eval draws its bootstrap samples, and interrupt this one as before.

    They inherit the handler, and the pool that they belong to ends them with that signal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner, before = os.getpid(), signal.getsignal(signal.SIGTERM)

    def stop(number: int, frame: Any) -> None:
        if os.getpid() != owner:
            os._exit(128 + number)
        if callable(before):
            before(number, frame)
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _split(values: Mapping[str, Any]) -> tuple[Scores, Scores]:
    """Values and standard errors by metric, from keys of lm-eval such as `acc,none` and `acc_stderr,none`."""
    numbers = {key.partition(",")[0]: v for key, v in values.items() if "," in key and isinstance(v, int | float)}
    scores = {name: float(value) for name, value in numbers.items() if not name.endswith("_stderr")}
    return scores, {name: float(numbers[f"{name}_stderr"]) for name in scores if f"{name}_stderr" in numbers}


def quiet() -> None:
    """Let lm-eval and datasets report errors alone, and show no progress bars of theirs."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # of bars that are made after tqdm was imported the first time
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    import_module("datasets").disable_progress_bars()
