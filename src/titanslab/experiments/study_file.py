"""The file of a study: TOML with the models of one table, their training, and how they are measured.

    title = "..."
    run = ["main"]        the sets that run without --sets; missing = `main`, or the first set
    [ask] [size] [sweep] [perplexity] [language] [speed]   how rows become equal, are tuned and measured
    [files]               the files from the command line, and the settings that receive their paths (`FileUse`)
    [texts]               the settings that receive the texts of --data and --validation (`Texts`)
    [tokenizer]           the tokenizer, trained on the training text (`TokenizerPlan`)
    [paper]               the paper's figures (`Paper`)
    [folder]              the settings that name files in the folder of --data (`Folder`)
    [base]                a recipe: the sections [model], [data] and [training] that all rows share; [series] or
                          [sequences] in the place of [data] for forecasting and for DNA
    [rows.NAME]           a model of the table: its differences from the base (`Row`)
    [stages.NAME]         a later training stage, which starts from the model of the stage before it (`Stage`)
    [sets.NAME]           another set with its own base, rows and stages; its base changes the base above
    [scales.NAME]         any of the above with other values, for --scale NAME; without it the file itself holds

The rows, stages and base at the top level form the set `main`. Tables are merged key by key, with one exception: the
`task_options` of a stage replace those of the base. A set may have its own [sets.NAME.ask] and so on, which change
those above. With `study` a set begins from the base and the questions of another study of the package, at the same
scale where that has it; with `rows_of` it has the rows of another set, and with neither `rows_of` nor rows those of
that study.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from titanslab.documents import checked, read_toml
from titanslab.experiments.sections import (
    MEASURES,
    PERPLEXITY,
    Ask,
    FileUse,
    Folder,
    Paper,
    Perplexity,
    Texts,
    TokenizerPlan,
)
from titanslab.experiments.study import CPU, FILES, FIRST, MAIN, Row, RowSet, Stage, Study, merged
from titanslab.models.config import nearest
from titanslab.training.recipe import SECTIONS
from titanslab.training.settings import build_settings

STUDIES = Path(__file__).parent / "studies"


def load_study(name: str, scale: str = CPU, budget: float = 1.0) -> Study:
    """Read a study.

    Args:
        name: of a study in the package, or the path of a TOML file.
        scale: a name in its [scales]; `cpu` is the file as it is, unless [scales.cpu] says otherwise.
        budget: share of the steps, samples and tokens.

    Raises:
        ValueError: an error in the file, with the file and the key, or a scale that the file does not have.
    """
    known = sorted(path.stem for path in STUDIES.glob("*.toml"))
    path = STUDIES / f"{name}.toml" if name in known else Path(name)
    if not path.is_file():
        raise ValueError(
            f"study {name!r} is neither a study of this package nor a file; "
            f"give {', '.join(known)} or the path of a TOML file"
        )
    table = read_toml(path, "study")
    scales = dict(_tables(table, "scales", str(path)))
    names = tuple(dict.fromkeys((CPU, *scales)))
    if scale not in names:
        raise ValueError(f"--scale {scale!r} is not a scale of {path.name}; it has {', '.join(names)}")
    if not 0 < budget <= 1:
        raise ValueError(f"--budget {budget} must be above 0 and at most 1, the share of the full budget, such as 0.01")
    study = _parse(_at_scale(table, scale), path, scale)
    study.scale, study.scales, study.budget = scale, names, budget
    return study


def _at_scale(table: dict[str, Any], scale: str) -> dict[str, Any]:
    """The content of a study with the values of a scale, or as it is where it does not have the scale."""
    rest = {key: value for key, value in table.items() if key != "scales"}
    return merged(rest, table.get("scales", {}).get(scale, {}))


def _parse(table: dict[str, Any], path: Path, scale: str) -> Study:
    origin = str(path)
    top = (
        "title",
        "run",
        "files",
        "texts",
        "folder",
        "tokenizer",
        "paper",
        "base",
        "rows",
        "stages",
        "sets",
        *MEASURES,
    )
    _known_keys(table, top, origin, "")
    files = {
        name: build_settings(FileUse, use, f"files.{name}", origin) for name, use in _tables(table, "files", origin)
    }
    _known_keys(files, FILES, origin, "files")
    texts = None if "texts" not in table else build_settings(Texts, table["texts"], "texts", origin)
    parts = {key: table.get(key, {}) for key in ("base", "rows", "stages")}
    measures = {name: table.get(name, {}) for name in MEASURES}
    above = {"base": parts["base"], **measures}
    sets: dict[str, RowSet] = {}
    if parts["rows"]:
        sets[MAIN] = _row_set({"about": table.get("title", ""), **parts}, {"base": {}, **measures}, MAIN, origin)
    for name, part in _tables(table, "sets", origin):
        known = ("about", "group", "base", "rows", "stages", "study", "rows_of", *MEASURES)
        _known_keys(part, known, origin, f"sets.{name}")
        below = above
        if "study" in part:
            other = _borrowed(part["study"], scale, f"{origin}: [sets.{name}] study")
            below = {"base": other.get("base", {}), "ask": other.get("ask", {}), "size": above["size"]}
            if "rows_of" not in part and "rows" not in part:
                part = {**part, "rows": other["rows"]}
                below |= {"size": other.get("size", {})}
        if "rows_of" in part:
            if part["rows_of"] not in sets:
                raise ValueError(
                    f"{origin}: [sets.{name}] rows_of = {part['rows_of']!r} is not a set before it; "
                    f"there are {', '.join(sets) or 'none'}"
                )
            part = {**part, "rows": merged(_rows_of(table, part["rows_of"]), part.get("rows", {}))}
        sets[name] = _row_set(part, below, name, origin)
    if not sets:
        raise ValueError(f"{origin} has no rows; describe one model or more, each in a section [rows.NAME]")
    tokenizer = table.get("tokenizer")
    if tokenizer is not None and texts is None and not (files.get("train_text") or FileUse()).needed:
        raise ValueError(
            f"{origin}: the [tokenizer] is trained on --train-text, which [files] does not require; add "
            "train_text = { needed = true, to = [...] } or leave [tokenizer] out"
        )
    run = checked(table.get("run", [MAIN if MAIN in sets else next(iter(sets))]), list[str], f"{origin}: run")
    for name in run:
        if name not in sets:
            raise ValueError(f"{origin}: run has {name!r}, which is not a set; there are {', '.join(sets)}")
    study = Study(
        path=path.absolute(),
        title=str(table.get("title", path.stem)),
        ask=build_settings(Ask, table.get("ask", {}), "ask", origin),
        files=files,
        tokenizer=None if tokenizer is None else build_settings(TokenizerPlan, tokenizer, "tokenizer", origin),
        paper=build_settings(Paper, table.get("paper", {}), "paper", origin),
        sets=sets,
        run=run,
        texts=texts,
        folder=None if "folder" not in table else build_settings(Folder, table["folder"], "folder", origin),
    )
    for name, rows in sets.items():
        for row in rows.rows:
            study.recipes(name, row, rows.all_stages_of(row), study.placeholders)  # raises for a wrong value
    return study


def _rows_of(table: dict[str, Any], name: str) -> dict[str, Any]:
    """The rows of a set as the file has them, with those of the set that it names itself."""
    if name == MAIN:
        return table["rows"]
    part = table["sets"][name]
    return merged(_rows_of(table, part["rows_of"]) if "rows_of" in part else {}, part.get("rows", {}))


def _borrowed(name: str, scale: str, where: str) -> dict[str, Any]:
    """The content of a study of the package, from which a set of another study begins."""
    known = sorted(path.stem for path in STUDIES.glob("*.toml"))
    if name not in known:
        raise ValueError(f"{where} = {name!r} is not a study of this package; there are {', '.join(known)}")
    return _at_scale(read_toml(STUDIES / f"{name}.toml", "study"), scale)


def _row_set(part: dict[str, Any], below: dict[str, Any], name: str, origin: str) -> RowSet:
    where = "" if name == MAIN else f"sets.{name}."
    base = merged(below["base"], checked(part.get("base", {}), dict[str, dict[str, Any]], f"{origin}: {where}base"))
    _known_keys(base, tuple(SECTIONS), origin, f"{where}base")
    rows = {row: build_settings(Row, own, f"{where}rows.{row}", origin) for row, own in _tables(part, "rows", origin)}
    stages = {
        stage: build_settings(Stage, own, f"{where}stages.{stage}", origin)
        for stage, own in _tables(part, "stages", origin)
    }
    _check_names(rows, stages, where, origin)
    measures = {}
    for section, kind in MEASURES.items():
        own = merged(
            below.get(section, {}), checked(part.get(section, {}), dict[str, Any], f"{origin}: {where}{section}")
        )
        measures[section] = build_settings(kind, own, f"{where}{section}", origin)
    for section in ("score", PERPLEXITY):
        measures[section].check(f"{origin}, {where.rstrip('.') or 'main'}")
    for row, settings in rows.items():
        build_settings(
            Perplexity, asdict(measures[PERPLEXITY]) | settings.perplexity, f"{where}rows.{row}.perplexity", origin
        )
    if measures["size"].like and measures["size"].like not in rows:
        like = measures["size"].like
        raise ValueError(f"{origin}: [{where}size] like = {like!r} is not a row{nearest(like, tuple(rows))}")
    return RowSet(str(part.get("about", "")), base, rows, stages, measures, str(part.get("group", "")))


def _check_names(rows: dict[str, Row], stages: dict[str, Stage], where: str, origin: str) -> None:
    """ValueError for a row that is like no row or like itself, and for the stage of a row that is not there."""
    for row, settings in rows.items():
        seen, like = [row], settings.like
        while like is not None:
            if like not in rows or like in seen:
                wrong = "is not a row" if like not in rows else "leads back to itself"
                raise ValueError(
                    f"{origin}: [{where}rows.{row}] like = {like!r} {wrong}; "
                    f"name another row of the same set{nearest(like, tuple(rows))}"
                )
            seen.append(like)
            like = rows[like].like
    for stage, wanted in stages.items():
        if stage == FIRST or stage in rows:
            raise ValueError(
                f"{origin}: the stage [{where}stages.{stage}] has the name of a row or of the base; rename it"
            )
        for row in wanted.rows or ():
            if row not in rows:
                hint = nearest(row, tuple(rows))
                raise ValueError(f"{origin}: [{where}stages.{stage}] rows has {row!r}, which is not a row{hint}")


def _tables(table: Mapping[str, Any], key: str, origin: str) -> list[tuple[str, Any]]:
    inner = table.get(key, {})
    if not isinstance(inner, dict) or not all(isinstance(value, dict) for value in inner.values()):
        raise ValueError(f"{origin}: [{key}] must hold sections, such as [{key}.NAME]")
    return list(inner.items())


def _known_keys(table: Mapping[str, Any], known: Sequence[str], origin: str, section: str) -> None:
    for key in table:
        if key not in known:
            where = f" in [{section}]" if section else ""
            raise ValueError(
                f"{origin}: unknown key {key!r}{where}; allowed: {', '.join(known)}{nearest(key, tuple(known))}"
            )
