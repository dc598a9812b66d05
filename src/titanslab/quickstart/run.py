"""The quickstart from start to end: train both models, measure both, draw, and write a folder to generate from."""

from __future__ import annotations

import json
import math
import tempfile
import time
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from titanslab.documents import read_json
from titanslab.evaluation.pictures import plot_recall, plot_trace
from titanslab.evaluation.trace import trace_memory
from titanslab.files import check_writable, naming, put_in_place
from titanslab.locks import only_writer
from titanslab.models.modeling import TitansForCausalLM
from titanslab.progress import Progress, bar
from titanslab.quickstart.corpus import Facts
from titanslab.quickstart.fit import Fit, fastest_threads, fit, token_losses
from titanslab.quickstart.settings import TEMPLATE, Settings
from titanslab.runs.versions import versions
from titanslab.tasks.recall.samples import answers_right

RESULTS = "results.json"
MADE_BY = "titans quickstart"
VARIANTS = {"titans": "lmm", "window": "attention"}
NAMES = {"titans": "Titans (LMM)", "window": "window alone"}
TOKENS_AT_ONCE = 1 << 15  # of a batch whose logits are formed
VALIDATION_SEED = 10_000  # added to the seed, so that no row is one of training


def check_output(folder: Path, overwrite: bool = False) -> None:
    """Raise a ValueError if `folder` is a file, cannot be written, or holds files of others, or of a quickstart without
    `overwrite`.
    """
    check_writable(folder, "output folder")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"output {str(folder)!r} is a file; give --output another name")
    try:
        mine = read_json(folder / RESULTS, dict[str, Any], finite=False).get("made_by") == MADE_BY
    except (OSError, ValueError):
        mine = False
    if not mine and any(folder.iterdir()):
        raise ValueError(
            f"output folder {str(folder)!r} holds files that are not of a quickstart; give --output another name"
        )
    if mine and not overwrite:
        raise ValueError(
            f"output folder {str(folder)!r} holds a finished quickstart; give --output another name, or --overwrite to "
            "replace it"
        )


def quickstart(settings: Settings, output: Path, seed: int, overwrite: bool = False) -> dict[str, Any]:
    """Train, measure and write; returns the contents of results.json.

    Args:
        settings: sizes of the run.
        output: folder for the model, its tokenizer, results.json and the pictures; checked by `check_output`.
        seed: of the weights, the rows and the sample.
        overwrite: replace the files of an earlier quickstart.
    """
    check_output(output, overwrite)
    start = time.perf_counter()
    with ExitStack() as at_end:
        at_end.enter_context(only_writer(output, "output folder"))
        check_output(output, overwrite)  # another process may have written it meanwhile
        at_end.callback(torch.set_num_threads, torch.get_num_threads())
        with _bar("getting ready"):
            facts = Facts(settings)
            torch.set_num_threads(fastest_threads(lambda: _model(settings, "lmm", seed), facts, seed))
        models = {kind: _model(settings, variant, seed) for kind, variant in VARIANTS.items()}
        fits: dict[str, Fit] = {}
        for kind, model in models.items():
            with _bar(f"training: {NAMES[kind]}") as show:
                fits[kind] = fit(model, facts, seed, follow=fits.get("titans"), show=show)
        chance = 10.0**-settings.value_digits
        results: dict[str, Any] = {"made_by": MADE_BY, "seed": seed, "settings": asdict(settings), "chance": chance}
        results["window_reach"] = settings.reach
        for kind, model in models.items():
            with _bar(f"asking: {NAMES[kind]}") as show:
                measured = _measure(model, fits[kind], facts, seed + VALIDATION_SEED, show)
                results[kind] = {"variant": VARIANTS[kind], **measured}
        recall = {kind: results[kind]["recall_beyond_window"] for kind in VARIANTS}
        # a share below chance is bad luck and counts as chance
        results["times_the_window"] = recall["titans"] / max(recall["window"], chance)
        results["versions"] = versions()
        with _bar("writing a sample and the pictures") as show:
            results["sample"] = _sample(models["titans"], facts, seed)
            show(0.5, 1.0)
            results["seconds"] = round(time.perf_counter() - start, 1)
            _write(output, results, models["titans"], facts)
            show(1.0, 1.0)
    return results


def _bar(title: str) -> AbstractContextManager[Progress]:
    return bar(f"{title:34}", keep=True)


def _model(settings: Settings, variant: str, seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TitansForCausalLM(settings.config(variant))


@torch.inference_mode()
def _measure(model: Any, run: Fit, facts: Facts, seed: int, show: Progress) -> dict[str, Any]:
    """The size of a model, its training `run`, and its measurements on unseen rows.

    The bits per byte are those of all bytes except values at their first mention, which cannot be predicted.
    """
    recall = recall_by_distance(model, facts, seed, show)
    batch = facts.validation_batch(seed)
    loss = token_losses(_logits(model, batch.input_ids), batch).sum() / (batch.labels[:, 1:] != -100).sum()
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "bytes_read": len(run.losses) * facts.settings.batch_size * facts.settings.length,
        "steps": len(run.losses),
        "training_seconds": round(run.seconds, 1),
        "last_loss": run.losses[-1],
        "bits_per_byte": float(loss) / math.log(2),
        "recall": recall,
        "recall_within_window": mean_recall(recall, within=facts.settings.reach),
        "recall_beyond_window": mean_recall(recall, beyond=facts.settings.reach),
    }


@torch.inference_mode()
def recall_by_distance(model: Any, facts: Facts, seed: int, show: Progress = lambda *_: None) -> dict[int, float]:
    """The share of questions that are answered right in every digit, for each distance in bytes."""
    distances = facts.settings.distances
    found: dict[int, float] = {}
    for distance in distances:
        batch = facts.questions(distance, seed)
        predicted = torch.nn.functional.pad(_logits(model, batch.input_ids).argmax(-1)[:, :-1], (1, 0), value=-1)
        found[distance] = float(answers_right(predicted, batch).float().mean())
        show(sum(found), sum(distances), f"{distance} bytes back")
    return found


def mean_recall(recall: dict[int, float], *, beyond: float = 0, within: float = math.inf) -> float:
    """The mean recall over the distances of more than `beyond` and at most `within` bytes."""
    values = [share for distance, share in recall.items() if beyond < distance <= within]
    return sum(values) / len(values)


def _logits(model: Any, ids: Tensor) -> Tensor:
    rows = max(1, TOKENS_AT_ONCE // ids.shape[1])
    return torch.cat([model(input_ids=part, use_cache=False).logits for part in ids.split(rows)])


@torch.inference_mode()
def _sample(model: Any, facts: Facts, seed: int) -> dict[str, str]:
    prompt, tokenizer = demonstration(facts), facts.tokenizer
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(prompt)["input_ids"]]])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        new = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=facts.settings.sample_bytes,
            do_sample=True,
            temperature=0.7,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=None,
        )[0, ids.shape[1] :]
    return {"prompt": prompt, "text": str(tokenizer.decode(new, skip_special_tokens=True))}


def demonstration(facts: Facts) -> str:
    """A passage of the validation text with two facts; it ends with the question for the first."""
    words = facts.validation_text[2000:].split(" ")[1:]
    first, second = TEMPLATE.format(key="Elmira", value="47"), TEMPLATE.format(key="Jasken", value="82")
    parts = [" ".join(words[:6]), first, " " + " ".join(words[6:12]), second, " " + " ".join(words[12:24])]
    return "".join(parts).replace("\n", " ") + first.partition("=")[0] + "="


def _write(output: Path, results: dict[str, Any], model: Any, facts: Facts) -> None:
    """Write all files into a folder beside `output`, then put them in place, results.json last."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with naming(output), tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as temporary:
        made = Path(temporary) / "made"
        model.save_pretrained(made)
        facts.tokenizer.save_pretrained(made)
        recall = {NAMES[kind]: results[kind]["recall"] for kind in VARIANTS}
        plot_recall(recall, made / "recall.png", facts.settings.reach, results["chance"])
        passage = demonstration(facts)
        ids = torch.tensor([facts.tokenizer(passage)["input_ids"]])
        title = "surprise and gates of the memory at each byte of a passage"
        plot_trace(trace_memory(model, ids), made / "surprise.png", title, tokens=list(passage))
        (made / RESULTS).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        put_in_place(made, output, last=RESULTS)
