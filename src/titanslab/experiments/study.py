"""A study: one TOML file that describes the models of one table, their training, and how they are measured.

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
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from titanslab.documents import checked, read_toml
from titanslab.experiments.sections import (
    COUNTS,
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
from titanslab.models.config import nearest
from titanslab.training.recipe import SECTIONS, Recipe, parse_recipe
from titanslab.training.settings import build_settings, read_assignment

STUDIES = Path(__file__).parent / "studies"
MAIN = "main"  # name of the set at the top level of the file
FIRST = "base"  # name of the first stage, which trains the base with the changes of a row
CPU = "cpu"  # name of the scale that the file itself describes
FILES = ("train_text", "test_text", "facts", "train_facts", "nouns", "adjectives", "base")


@dataclass
class Row:
    """[rows.NAME]: a model. The differences of row `like` apply first. With `far` = False it skips the far lengths.

    `widths` replace those of [size]; empty = the row keeps the number of parameters that it has. `perplexity` has keys
    of [perplexity] with values of the row's own, such as shorter `lengths` for attention over all tokens.
    """

    about: str = ""
    like: str | None = None
    far: bool = True
    widths: dict[str, int] | None = None
    model: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    series: dict[str, Any] = field(default_factory=dict)
    sequences: dict[str, Any] = field(default_factory=dict)
    graft: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    perplexity: dict[str, Any] = field(default_factory=dict)


@dataclass
class Stage:
    """[stages.NAME]: a later stage for `rows` (None = all). An `optional` stage runs only if --stage names it."""

    about: str = ""
    optional: bool = False
    rows: list[str] | None = None
    model: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)


@dataclass
class RowSet:
    """Rows with the recipe that they share, the later stages, and the measures by the name of their section.

    `group`: sets of one group share a column of a table of scores, which has their mean; empty = a column of its own.
    """

    about: str
    base: dict[str, Any]
    rows: dict[str, Row]
    stages: dict[str, Stage]
    measures: dict[str, Any] = field(default_factory=dict)
    group: str = ""

    def widths_of(self, row: str) -> dict[str, int]:
        """The widths that are chosen so that a row has its number of parameters; empty = none."""
        own, size = self.rows[row].widths, self.measures["size"]
        if not size.like or row == size.like:
            return {}
        return size.widths if own is None else own

    def all_stages_of(self, row: str) -> list[str]:
        """Names of the stages of `row`, including optional ones."""
        return [FIRST, *(name for name, stage in self.stages.items() if stage.rows is None or row in stage.rows)]

    def stages_of(self, row: str, until: str | None = None) -> list[str]:
        """Names of the stages of `row` up to stage `until`; with None, the required stages."""
        names = self.all_stages_of(row)
        if until in names:
            return names[: names.index(until) + 1]
        return [name for name in names if name == FIRST or not self.stages[name].optional]

    def tables(self, row: str, stages: Sequence[str]) -> list[dict[str, Any]]:
        """The recipe of each stage as nested tables, without the changes from the command line."""
        chain, name = list[Row](), row
        while True:
            chain.append(self.rows[name])
            if (like := self.rows[name].like) is None:
                break
            name = like
        first = self.base
        for link in reversed(chain):
            first = merged(first, _sections(link))
        found = [first]
        for name in stages[1:]:
            later = {**self.base, "model": {}}
            stage = _sections(self.stages[name])
            if "task_options" in stage.get("data", {}):
                later["data"] = {k: v for k, v in later.get("data", {}).items() if k != "task_options"}
            found.append(merged(later, stage))
        return found


@dataclass
class Study:
    """A study as `load_study` reads it. The set `main` is the first of `sets`.

    `scale` and `budget` are those of `load_study`, `scales` the names of all scales, `run` the sets of a plain command.
    """

    path: Path
    title: str
    ask: Ask
    files: dict[str, FileUse]
    tokenizer: TokenizerPlan | None
    paper: Paper
    sets: dict[str, RowSet]
    run: list[str]
    texts: Texts | None = None
    folder: Folder | None = None
    scale: str = CPU
    scales: tuple[str, ...] = (CPU,)
    budget: float = 1.0

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def placeholders(self) -> list[str]:
        """Changes that stand in for the required files, for checks without the command line."""
        made = [f"{key}={name}" for name, use in self.files.items() if use.needed for key in use.to]
        if self.texts is not None:
            made += [f'{key}=["{part}"]' for part in ("train", "validation") for key in getattr(self.texts, part)]
            excerpts = ("train_excerpt", "validation_excerpt")
            made += [f"{key}={part}" for part in excerpts for key in getattr(self.texts, part)]
        return made

    def recipes(
        self, set_name: str, row: str, stages: Sequence[str], changes: Sequence[str] = (), seed: int = 0
    ) -> list[Recipe]:
        """The checked recipe of each stage of a row.

        Args:
            set_name, row, stages: see `RowSet.stages_of`.
            changes: `[SET:|ROW:|STAGE:]section.key=value`. A change with a stage's name applies to that stage. Any
                other change applies to all stages, but one of the model to the first stage alone, because later
                stages continue that model.
            seed: number that is added to the seed of every stage.
        """
        found = []
        for stage, table in zip(stages, self.sets[set_name].tables(row, stages), strict=True):
            table = _with_budget(table, self.budget)
            own_seed = checked(table.get("training", {}).get("seed", 0), int, f"{self.path}: training.seed") + seed
            table = merged(table, {"training": {"seed": own_seed}})
            wanted = [
                assignment
                for prefix, assignment in map(split_change, changes)
                if _reaches(prefix, assignment, (set_name, row), stage)
            ]
            found.append(parse_recipe(table, wanted, origin=f"{self.path}, set {set_name}, row {row}, stage {stage}"))
        return found

    def asked(self, changes: Sequence[str] = (), set_name: str | None = None) -> Ask:
        """[ask] of a set, or of the study, with those changes from the command line that begin with `ask.`."""
        if set_name is None:
            return _changed("ask", self.ask, changes, ("",))
        return self.measured("ask", set_name, changes=changes)

    def measured(self, section: str, set_name: str, row: str = "", changes: Sequence[str] = ()) -> Any:
        """A section of a set with the changes that concern it, and its numbers as the budget allows."""
        part = self.sets[set_name]
        own = part.measures[section]
        if section == PERPLEXITY and row:
            own = replace(own, **part.rows[row].perplexity)
        found = _changed(section, own, changes, ("", set_name, *([row] * bool(row))))
        given = [split_change(change)[1].partition("=")[0] for change in changes]
        for name in COUNTS.get(section, ()):
            count = getattr(found, name)
            if count is not None and self.budget != 1 and f"{section}.{name}" not in given:
                setattr(found, name, scaled(count, self.budget))
        return found


def scaled(count: int, budget: float) -> int:
    """A number of steps, samples or tokens at a share `budget` of the budget, at least 1; 0 stays 0."""
    return count and max(1, round(count * budget))


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


def split_change(change: str) -> tuple[str, str]:
    """Split `[PREFIX:]section.key=value` into the prefix (a set, a row, a stage, or empty) and the assignment."""
    left, equals, value = change.partition("=")
    prefix, colon, key = left.rpartition(":")
    if not equals or "." not in key:
        raise ValueError(
            f"--set {change!r} is not of the form [ROW:]section.key=value, "
            "such as training.steps=200 or mac:model.chunk_size=8"
        )
    return prefix.strip() if colon else "", f"{key.strip()}={value}"


def _reaches(prefix: str, assignment: str, names: tuple[str, ...], stage: str) -> bool:
    """Whether a change applies to the recipe of this stage; `names` are those of its set and its row."""
    if assignment.startswith(tuple(f"{section}." for section in MEASURES)):
        return False
    later_model = stage != FIRST and assignment.startswith("model.")
    return prefix == stage or (prefix in ("", *names) and not later_model)


def _changed(section: str, settings: Any, changes: Sequence[str], prefixes: Sequence[str]) -> Any:
    """A section with those changes from the command line that name it, and have one of the prefixes."""
    kind = MEASURES[section]
    table = {f.name: getattr(settings, f.name) for f in fields(kind)}
    texts = {f.name for f in fields(kind) if f.type in ("str", "str | None")}
    for prefix, assignment in map(split_change, changes):
        if assignment.startswith(f"{section}.") and prefix in prefixes:
            _, key, value = read_assignment(assignment)
            name, _, option = key.partition(".")
            if name in texts or option:
                value = assignment.split("=", 1)[1]
            if option:
                table[name] = {**checked(table.get(name, {}), dict[str, Any], f"--set {section}.{name}"), option: value}
            else:
                table[name] = value
    return build_settings(kind, table, section, "--set")


def _with_budget(table: dict[str, Any], budget: float) -> dict[str, Any]:
    """A recipe with a share `budget` of its steps or epochs, and of the counts that follow them."""
    if budget == 1:
        return table
    counts = {"training": ("steps", "warmup_steps", "write_cost_warmup"), "graft": ("gate_ramp",)}
    found = merged(table, {})
    for section, names in counts.items():
        own = {name: scaled(value, budget) for name, value in table.get(section, {}).items() if name in names}
        if "epochs" in table.get(section, {}):
            own["epochs"] = table[section]["epochs"] * budget
        found = merged(found, {section: own} if own else {})
    rows = table.get("data", {}).get("task_options", {}).get("curriculum_rows")
    return (
        found if rows is None else merged(found, {"data": {"task_options": {"curriculum_rows": scaled(rows, budget)}}})
    )


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Nested tables with the values of `above` in place of those of `below`. Neither input is changed."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        result[key] = merged(old if isinstance(old, Mapping) else {}, value) if isinstance(value, Mapping) else value
    return result


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


def _sections(part: Row | Stage) -> dict[str, Any]:
    names = (name for name in SECTIONS if getattr(part, name, None) or name == "training")
    return {name: getattr(part, name) for name in names}


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
