"""Makes the jobs of a study from the options of the command line, and checks all of them before the first runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from titanslab.documents import read_json
from titanslab.experiments import asking
from titanslab.experiments.job import Job
from titanslab.experiments.size import Fitted, fit_size, parameters
from titanslab.experiments.study import CPU, FIRST, Study
from titanslab.files import write_whole
from titanslab.models.config import nearest

if TYPE_CHECKING:
    from titanslab.experiments.texts import Split
    from titanslab.training.recipe import Recipe

TOKENIZER = "tokenizer"  # folder of the tokenizer in the work folder
LEAST_CHARS, CHARS_PER_TOKEN = 1_000_000, 8  # of the text for a part of the budget; a token has fewer characters
SCALE = "scale.json"  # scale and budget of the work folder


@dataclass
class Choice:
    """The options of the command line for a study.

    Args:
        work: folder for tokenizer, runs, samples, answers and results.
        files: paths; the keys are names in `study.FILES`.
        sets, rows: names separated by commas; None = the set `main` (or the first set), and all rows.
        seeds: whole numbers separated by commas.
        until: the last stage to train, whose model answers; None = the last required stage.
        far_rows: rows that answer at the far lengths; None = as the study says.
        changes: changes of the form `[SET:|ROW:|STAGE:]section.key=value`.
        tokenizer: a tokenizer that replaces the study's own.
        device: device on which models are trained and answer.
        data, validation: files or folders of a study with [texts], see `split_texts`.
        scale, budget: of the study.
    """

    work: Path
    files: dict[str, str] = field(default_factory=dict)
    sets: str | None = None
    rows: str | None = None
    seeds: str = "0"
    until: str | None = None
    far_rows: str | None = None
    changes: list[str] = field(default_factory=list)
    tokenizer: str | None = None
    device: str = "cpu"
    data: list[str] = field(default_factory=list)
    validation: list[str] = field(default_factory=list)
    scale: str = CPU
    budget: float = 1.0


def make_jobs(study: Study, choice: Choice, need_test_files: bool = True, fitted: bool = False) -> list[Job]:
    """One job for each set, row and seed; all rows of the first seed come first.

    With `need_test_files` = False, files that are used by the questions alone may be missing. With `fitted` the work
    folder and its tokenizer are there, and the widths of [size] are chosen. Raises ValueError for wrong names, lengths,
    files and changes.
    """
    sets = chosen_sets(study, choice.sets)
    work = choice.work if fitted else None
    rows = _chosen(choice.rows, [row for name in sets for row in study.sets[name].rows], "rows", sets)
    far_rows = _chosen(choice.far_rows, [row for name in sets for row in study.sets[name].rows], "far-rows", sets)
    _check_until(study, sets, choice.until)
    made = _made_changes(study, choice, need_test_files, work)
    _check_prefixes(study, sets, choice.changes)
    jobs = []
    changes = {}
    for name in sets:
        chosen = [row for row in study.sets[name].rows if not rows or row in rows]
        given = [*made, *choice.changes]
        changes[name] = (*made, *(width_changes(study, name, chosen, given, work) if work else ()), *choice.changes)
        asking.check(study.asked(changes[name], name))
    for seed in _seeds(choice.seeds):
        for name in sets:
            for row, settings in study.sets[name].rows.items():
                if rows and row not in rows:
                    continue
                job = Job(
                    study=str(study.path),
                    work=str(choice.work.absolute()),
                    set=name,
                    row=row,
                    seed=seed,
                    until=choice.until,
                    changes=changes[name],
                    far=row in far_rows if far_rows else settings.far,
                    device=choice.device,
                    scale=study.scale,
                    budget=study.budget,
                )
                job.recipes()  # raises for a wrong --set before the first run
                for section in ("perplexity", "speed"):
                    job.lengths(section)
                jobs.append(job)
    return jobs


def chosen_sets(study: Study, names: str | None) -> list[str]:
    """Names of the chosen sets; without --sets those of `run` in the study, or `main`, or the first set."""
    if names is None:
        return study.run
    return _chosen(names, study.sets, "sets", [study.name])


def width_changes(
    study: Study, set_name: str, rows: Sequence[str], changes: Sequence[str], work: Path
) -> dict[str, Fitted]:
    """The widths with which the rows of a set have the size of its row `like`, as changes of their recipes.

    The keys are the changes, such as `main/llama:model.intermediate_size=512`, without the set.
    """
    part = study.sets[set_name]
    fit = [row for row in rows if part.widths_of(row)]
    if not fit:
        return {}
    vocabulary = _vocabulary(study, work)
    size = study.measured("size", set_name, changes=changes)

    def first(row: str) -> Recipe:
        return study.recipes(set_name, row, [FIRST], changes)[0]

    wanted = parameters(first(size.like), vocabulary)
    found = {}
    for row in fit:
        fitted = fit_size(first(row), wanted, part.widths_of(row), vocabulary, size.within, row)
        for key, value in fitted.options.items():
            found[f"{row}:model.{key}={value}"] = fitted
    return found


def _vocabulary(study: Study, work: Path | None) -> int:
    """Number of tokens of the study's tokenizer; the planned one before it is made."""
    from titanslab.data.tokenizer import BYTE, DNA, load_tokenizer

    if work is not None and (work / TOKENIZER).exists():
        return len(load_tokenizer(str(work / TOKENIZER)))
    if study.tokenizer is not None:
        return study.tokenizer.vocabulary
    named = next(iter(study.sets.values())).base.get("data", {}).get("tokenizer", BYTE)
    return len(load_tokenizer(named if named in (BYTE, DNA) else BYTE))


def open_work(study: Study, choice: Choice) -> Study:
    """Make the work folder with a copy of the study, its texts and its tokenizer; return the study read from the copy.

    The jobs read the copy, so that a change of the file has no effect on them. Raises ValueError if the folder belongs
    to another study, or to the same one at another scale or budget.
    """
    from titanslab.experiments.study_file import load_study

    copy = choice.work / study.path.name
    others = [path.name for path in choice.work.glob("*.toml") if path.name != copy.name]
    if others:
        raise ValueError(
            f"--work {str(choice.work)!r} holds the study {others[0]}; give another folder for {copy.name}"
        )
    _check_scale(study, choice.work)
    choice.work.mkdir(parents=True, exist_ok=True)
    if not copy.exists() or not copy.samefile(study.path):
        write_whole(copy, study.path.read_bytes())
    write_whole(choice.work / SCALE, json.dumps({"scale": study.scale, "budget": study.budget}) + "\n")
    texts: Sequence[str] = ()
    if study.texts is not None:
        split = _texts(study, choice, choice.work)
        print(f"{study.name}: {split.about}", file=sys.stderr, flush=True)
        texts = split.train
    if study.tokenizer is not None and choice.tokenizer is None:
        from titanslab.experiments.tokenizer import make_tokenizer

        make_tokenizer(study.tokenizer, choice.files, choice.work / TOKENIZER, texts)
    return load_study(str(copy), study.scale, study.budget)


def _check_scale(study: Study, work: Path) -> None:
    """ValueError if the work folder was made at another scale or budget."""
    if not (work / SCALE).exists():
        return
    before = read_json(work / SCALE, dict[str, Any], fix="delete it")
    for name, now in (("scale", study.scale), ("budget", study.budget)):
        if before.get(name) != now:
            raise ValueError(
                f"--work {str(work)!r} was made with --{name} {before.get(name)}, now it is {now}; give another folder"
            )


def write_recipes(jobs: Iterable[Job]) -> list[tuple[Path, Path]]:
    """Write the recipe of every stage beside its run folder; return pairs (path of the recipe, run folder)."""
    written = []
    for job in jobs:
        job.folder.mkdir(parents=True, exist_ok=True)
        for stage, recipe in zip(job.stages, job.recipes(), strict=True):
            path = job.folder / f"{stage}.toml"
            write_whole(path, recipe.to_toml())
            written.append((path, job.folder / stage))
    return written


def listing(study: Study, names: str | None) -> list[tuple[str, str, int, str, str]]:
    """Set, row, parameters, stages and description of every row. Optional stages are in parentheses."""
    vocabulary = _vocabulary(study, None)
    found = []
    for name in list(study.sets) if names is None else chosen_sets(study, names):
        part = study.sets[name]
        widths = width_changes(study, name, list(part.rows), study.placeholders, Path())
        for row, settings in part.rows.items():
            required = part.stages_of(row)
            (first,) = study.recipes(name, row, required[:1], [*study.placeholders, *widths])
            shown = [stage if stage in required else f"({stage})" for stage in part.all_stages_of(row)]
            found.append((name, row, parameters(first, vocabulary), ", ".join(shown), settings.about))
    return found


def _made_changes(study: Study, choice: Choice, need_test_files: bool, work: Path | None) -> list[str]:
    """The changes of the recipes that follow from files, texts, tokenizer and device."""
    made = _text_changes(study, choice, work) if study.folder is None else _folder_changes(study, choice)
    for name, path in choice.files.items():
        if name not in study.files:
            raise ValueError(f"{_flag(name)} is not used by the study {study.name}; leave it out")
        if not Path(path).exists():
            raise ValueError(f"{_flag(name)} {path!r} does not exist; name a file or folder")
        made += [f"{key}={Path(path).absolute()}" for key in study.files[name].to]
    for name, use in study.files.items():
        only_asked = all(key.startswith("ask.") for key in use.to)
        if use.needed and name not in choice.files and (need_test_files or not only_asked):
            raise ValueError(f"{_flag(name)} is missing; the study {study.name} needs it: name a file or folder")
    if choice.tokenizer is not None:
        folder = Path(choice.tokenizer)
        made.append(f"data.tokenizer={folder.absolute() if folder.exists() else choice.tokenizer}")
    elif study.tokenizer is not None:
        made.append(f"data.tokenizer={choice.work.absolute() / TOKENIZER}")
    if choice.device == "cpu":
        made.append("training.cpu=true")
    return made


def _text_changes(study: Study, choice: Choice, work: Path | None) -> list[str]:
    """The changes that give [texts] their files; without the work folder, names of files that are made there later."""
    from titanslab.experiments.texts import FOLDER, excerpt

    for name in ("data", "validation"):
        if study.texts is None and getattr(choice, name):
            raise ValueError(f"--{name} is not used by the study {study.name}; leave it out")
    if study.texts is None:
        return []
    split = _texts(study, choice, work)
    made = []
    for part in ("train", "validation"):
        files = getattr(split, part)
        made += [f"{key}={json.dumps(files)}" for key in getattr(study.texts, part)]
        if keys := getattr(study.texts, f"{part}_excerpt"):
            path = (work or Path()).absolute() / FOLDER / f"{part}_excerpt.txt"
            made += [f"{key}={excerpt(files, path) if work else path}" for key in keys]
    return made


def _folder_changes(study: Study, choice: Choice) -> list[str]:
    """The changes that give each set its files in the folder of --data."""
    assert study.folder is not None
    if choice.validation:
        raise ValueError(f"--validation is not used by the study {study.name}; leave it out")
    if len(choice.data) != 1 or not Path(choice.data[0]).is_dir():
        raise ValueError(f"--data must be the folder with the files of the study {study.name}; got {choice.data}")
    made = []
    for name in chosen_sets(study, choice.sets):
        for key in study.folder.to:
            section, _, option = key.partition(".")
            held = study.sets[name].base.get(section) or {}
            if file := held.get(option) or getattr(study.sets[name].measures.get(section), option, None):
                made.append(f"{name}:{key}={_inside(Path(choice.data[0]), file, name)}")
    return made


def _inside(folder: Path, file: str, name: str) -> Path:
    """The path of a file in a folder, plain, compressed or as a table; FileNotFoundError where it is not there."""
    for ending in ("", ".gz", ".xz", ".zst", ".tsv", ".tsv.gz", ".csv", ".csv.gz"):
        if (path := folder.absolute() / f"{file}{ending}").exists():
            return path
    raise FileNotFoundError(
        f"--data {str(folder)!r} holds no {file!r}, which the set {name} needs; --sets chooses others"
    )


def _texts(study: Study, choice: Choice, work: Path | None) -> Split:
    """The texts of a study; for a part of the budget, a part of the training text."""
    from titanslab.experiments.texts import part_of, split_texts

    split = split_texts(choice.data, choice.validation, work)
    if study.budget == 1:
        return split
    most = 0
    for name, part in study.sets.items():
        (first,) = study.recipes(name, next(iter(part.rows)), [FIRST], study.placeholders)
        settings = first.training
        most = max(most, settings.steps * settings.batch_size * settings.accumulation * first.data.sequence_length)
    return part_of(split, max(LEAST_CHARS, most * CHARS_PER_TOKEN), work)


def _check_until(study: Study, sets: list[str], until: str | None) -> None:
    known = ["base", *dict.fromkeys(stage for name in sets for stage in study.sets[name].stages)]
    if until is not None and until not in known:
        raise ValueError(f"--stage {until!r} is not a stage of {', '.join(sets)}; {_there(until, known)}")


def _check_prefixes(study: Study, sets: list[str], changes: Iterable[str]) -> None:
    from titanslab.experiments.study import FIRST, split_change

    parts = [study.sets[name] for name in sets]
    known = list(dict.fromkeys(name for part in parts for name in (FIRST, *part.stages, *part.rows)))
    for change in changes:
        prefix, _ = split_change(change)
        if prefix and prefix not in (*known, *sets):
            raise ValueError(f"--set {change!r}: {prefix!r} is not a row or stage; {_there(prefix, known)}")


def _chosen(names: str | None, known: Iterable[str], option: str, where: list[str]) -> list[str]:
    if names is None:
        return []
    chosen = [name.strip() for name in names.split(",") if name.strip()]
    known = list(dict.fromkeys(known))
    for name in chosen:
        if name not in known:
            raise ValueError(f"--{option} has {name!r}, which is not one of {', '.join(where)}; {_there(name, known)}")
    if not chosen:
        raise ValueError(f"--{option} is empty; {_there('', known)}")
    return list(dict.fromkeys(chosen))


def _seeds(text: str) -> list[int]:
    try:
        return list(dict.fromkeys(int(seed) for seed in text.split(",")))
    except ValueError:
        raise ValueError(f"--seeds {text!r} must be whole numbers separated by commas, such as 0,1,2") from None


def _there(name: str, known: Iterable[str]) -> str:
    """Text with the allowed names, and with the one nearest to `name`."""
    known = tuple(known)
    return f"there are {', '.join(known)}{nearest(name, known)}"


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
