"""The quickstart from start to end: train both models, ask both, draw, and leave a folder to generate from."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from titanslab.files import put_in_place
from titanslab.progress import Progress
from titanslab.quickstart.corpus import Facts
from titanslab.quickstart.fit import Fit, fastest_threads, fit
from titanslab.quickstart.measure import beyond, bits_per_byte, recall_by_distance
from titanslab.quickstart.settings import TEMPLATE, Settings

RESULTS = "results.json"
MADE_BY = "titans quickstart"
VARIANTS = {"titans": "lmm", "window": "attention"}
NAMES = {"titans": "Titans (LMM)", "window": "window alone"}
VALIDATION_SEED = 10_000  # far from the training rows' seed + step

Bar = Callable[[str], AbstractContextManager[Progress]]


def check_output(folder: Path) -> None:
    """Raise a ValueError where `folder` holds something that a quickstart did not make."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"output {str(folder)!r} is a file; give --output another name")
    if not any(folder.iterdir()):
        return
    try:
        mine = json.loads((folder / RESULTS).read_text(encoding="utf-8"))["made_by"] == MADE_BY
    except (OSError, ValueError, KeyError, TypeError):
        mine = False
    if not mine:
        raise ValueError(
            f"output folder {str(folder)!r} holds files that are not of a quickstart; give --output another name"
        )


def quickstart(settings: Settings, output: Path, seed: int, bar: Bar) -> dict[str, Any]:
    """Train, measure and write; returns what results.json holds.

    Args:
        settings: sizes of the run.
        output: folder for the model, its tokenizer, results.json and the pictures; checked by `check_output`.
        seed: of the weights, the rows and the sample.
        bar: from the title of one piece of work to a context that opens its `titanslab.progress.bar`.
    """
    check_output(output)
    threads = torch.get_num_threads()
    try:
        return _quickstart(settings, output, seed, bar)
    finally:
        torch.set_num_threads(threads)


def _quickstart(settings: Settings, output: Path, seed: int, bar: Bar) -> dict[str, Any]:
    start = time.perf_counter()
    with bar("getting ready"):
        facts = Facts(settings)
        torch.set_num_threads(fastest_threads(lambda: _model(settings, "lmm", seed), facts, seed))
    models: dict[str, Any] = {}
    fits: dict[str, Fit] = {}
    measured: dict[str, dict[str, Any]] = {}
    for kind, variant in VARIANTS.items():
        models[kind] = _model(settings, variant, seed)
        with bar(f"training: {NAMES[kind]}") as show:
            follow = None if kind == "titans" else fits["titans"]
            fits[kind] = fit(models[kind], facts, seed, follow=follow, show=show)
    for kind, model in models.items():
        with bar(f"asking: {NAMES[kind]}") as show:
            measured[kind] = _measure(model, facts, seed + VALIDATION_SEED, show)
    results = _results(settings, seed, models, fits, measured)
    with bar("writing a sample and the pictures") as show:
        results["sample"] = _sample(models["titans"], facts, seed)
        show(0.5, 1.0)
        results["seconds"] = round(time.perf_counter() - start, 1)
        _write(output, results, models["titans"], facts, settings, seed)
        show(1.0, 1.0)
    return results


def _model(settings: Settings, variant: str, seed: int) -> Any:
    from titanslab.models.modeling import TitansForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TitansForCausalLM(settings.config(variant))


def _measure(model: Any, facts: Facts, seed: int, show: Progress) -> dict[str, Any]:
    recall = recall_by_distance(model, facts, seed, show)
    return {
        "bits_per_byte": bits_per_byte(model, facts, seed),
        "recall": recall,
        "recall_beyond_window": beyond(recall, facts.settings.reach),
    }


def _results(
    settings: Settings,
    seed: int,
    models: dict[str, Any],
    fits: dict[str, Fit],
    measured: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    from dataclasses import asdict

    from titanslab.runs.versions import versions

    chance = 10.0**-settings.value_digits
    window = measured["window"]["recall_beyond_window"]
    report: dict[str, Any] = {
        "made_by": MADE_BY,
        "seed": seed,
        "settings": asdict(settings),
        "chance": chance,
    }
    report["window_reach"] = settings.reach
    for kind, model in models.items():
        report[kind] = {
            "variant": VARIANTS[kind],
            "parameters": sum(p.numel() for p in model.parameters()),
            "bytes_read": len(fits[kind].losses) * settings.batch_size * settings.length,
            "steps": len(fits[kind].losses),
            "training_seconds": round(fits[kind].seconds, 1),
            "last_loss": fits[kind].losses[-1],
            **measured[kind],
        }
    # a window that answers less often than chance by luck is counted as chance
    report["times_the_window"] = measured["titans"]["recall_beyond_window"] / max(window, chance)
    report["versions"] = versions()
    return report


@torch.inference_mode()
def _sample(model: Any, facts: Facts, seed: int) -> dict[str, str]:
    prompt = demonstration(facts)
    tokenizer = facts.tokenizer
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
    """A passage of the validation text with two facts, one of which is asked for at its end."""
    words = facts.validation_text[2000:].split(" ")[1:]
    first, second = TEMPLATE.format(key="Elmira", value="47"), TEMPLATE.format(key="Jasken", value="82")
    parts = [" ".join(words[:6]), first, " " + " ".join(words[6:12]), second, " " + " ".join(words[12:24])]
    return "".join(parts).replace("\n", " ") + first.partition("=")[0] + "="


def _write(output: Path, results: dict[str, Any], model: Any, facts: Facts, settings: Settings, seed: int) -> None:
    """All files into a folder beside `output`, then into place; results.json comes last."""
    from titanslab.quickstart.pictures import draw_recall, draw_surprise
    from titanslab.quickstart.surprise import memory_stats

    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as temporary:
        made = Path(temporary) / "made"
        model.save_pretrained(made)
        facts.tokenizer.save_pretrained(made)
        recall = {NAMES[kind]: results[kind]["recall"] for kind in VARIANTS}
        draw_recall(made / "recall.png", recall, settings.reach, results["chance"])
        passage = demonstration(facts)
        ids = torch.tensor([facts.tokenizer(passage)["input_ids"]])
        draw_surprise(made / "surprise.png", memory_stats(model, ids), passage)
        (made / RESULTS).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        put_in_place(made, output, last=RESULTS)
