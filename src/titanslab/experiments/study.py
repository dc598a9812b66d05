"""A study: the models of one table, the recipes of their training, and how they are measured.

`titanslab.experiments.study_file` reads it from its TOML file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from titanslab.documents import checked
from titanslab.experiments.sections import (
    COUNTS,
    MEASURES,
    PERPLEXITY,
    Ask,
    FileUse,
    Folder,
    Paper,
    Texts,
    TokenizerPlan,
)
from titanslab.training.recipe import SECTIONS, Recipe, parse_recipe
from titanslab.training.settings import build_settings, read_assignment

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


def _sections(part: Row | Stage) -> dict[str, Any]:
    names = (name for name in SECTIONS if getattr(part, name, None) or name == "training")
    return {name: getattr(part, name) for name in names}
