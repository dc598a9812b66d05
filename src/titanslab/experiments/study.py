"""A study: one TOML file that describes the models of one table, their training, and the questions they answer.

    title = "..."
    [ask]                 the task, its lengths and samples (`Ask`)
    [files]               the files from the command line, and the settings that receive their paths (`FileUse`)
    [tokenizer]           the tokenizer, trained on the training text (`TokenizerPlan`)
    [paper]               the paper's figures (`Paper`)
    [base]                a recipe: the sections [model], [data] and [training] that all rows share
    [rows.NAME]           a model of the table: its differences from the base (`Row`)
    [stages.NAME]         a later training stage, which starts from the model of the stage before it (`Stage`)
    [sets.NAME]           another set with its own base, rows and stages; its base changes the base above

The rows, stages and base at the top level form the set `main`. Tables are merged key by key, with one exception: the
`task_options` of a stage replace those of the base.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from titanslab.documents import checked, read_toml
from titanslab.models.config import nearest
from titanslab.training.recipe import SECTIONS, Recipe, parse_recipe
from titanslab.training.settings import build_settings, read_assignment

STUDIES = Path(__file__).parent / "studies"
MAIN = "main"  # name of the set at the top level of the file
FIRST = "base"  # name of the first stage, which trains the base with the changes of a row
FILES = ("train_text", "test_text", "facts", "train_facts", "nouns", "adjectives")


@dataclass
class Ask:
    """[ask]: the samples that each trained model answers. Without `task`, models are trained and answer nothing.

    Args:
        task: a task of `titans evaluate`, such as `niah`.
        names: variants or sub-tasks, separated by commas.
        lengths: lengths in tokens, such as `2k,4k`.
        samples: number of samples per name and length.
        far, far_samples: longer lengths, and the number of samples at them.
        frozen, frozen_samples: the same for the control with frozen memories. None = `lengths` and `samples`; an empty
            `frozen` = no control.
        max_new_tokens: most tokens of an answer.
        seed: seed of the samples.
        batch_size, batch_tokens: most prompts, and most prompt tokens, in one batch.
        piece: number of tokens read in one call.
        tokenizer_for_length: tokenizer in whose tokens lengths are counted; None = the model's.
        options: options of the task itself, such as `haystack`.
    """

    task: str = ""
    names: str = ""
    lengths: str = ""
    samples: int = 100
    far: str = ""
    far_samples: int = 10
    frozen: str | None = None
    frozen_samples: int | None = None
    max_new_tokens: int = 128
    seed: int = 42
    batch_size: int = 16
    batch_tokens: int = 1 << 16
    piece: int = 4096
    tokenizer_for_length: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class FileUse:
    """A file or folder from the command line: the settings that receive its path, and whether it is required."""

    to: list[str] = field(default_factory=list)
    needed: bool = False


@dataclass
class TokenizerPlan:
    """[tokenizer]: a byte-level BPE, trained on the training text.

    Args:
        vocabulary: number of tokens.
        stories: also train on stories in the style of bAbI, or on the files of `train_facts` if they are given.
        phrases: also train on the sentences that all samples of S-NIAH share.
    """

    vocabulary: int = 2048
    stories: bool = False
    phrases: bool = False


@dataclass
class Paper:
    """[paper]: published figures; `rows` maps row -> name -> percent at each of `lengths`."""

    source: str = ""
    lengths: str = ""
    rows: dict[str, Any] = field(default_factory=dict)


@dataclass
class Row:
    """[rows.NAME]: a model. The differences of row `like` apply first. With `far` = False it skips the far lengths."""

    about: str = ""
    like: str | None = None
    far: bool = True
    model: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)


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
    """Rows with the recipe that they share, and the later stages."""

    about: str
    base: dict[str, Any]
    rows: dict[str, Row]
    stages: dict[str, Stage]

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
            if "task_options" in stage["data"]:
                later["data"] = {k: v for k, v in later.get("data", {}).items() if k != "task_options"}
            found.append(merged(later, stage))
        return found


@dataclass
class Study:
    """A study as `load_study` reads it. The set `main` is the first of `sets`."""

    path: Path
    title: str
    ask: Ask
    files: dict[str, FileUse]
    tokenizer: TokenizerPlan | None
    paper: Paper
    sets: dict[str, RowSet]

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def placeholders(self) -> list[str]:
        """Changes that stand in for the required files, for checks without the command line."""
        return [f"{key}={name}" for name, use in self.files.items() if use.needed for key in use.to]

    def recipes(
        self, set_name: str, row: str, stages: Sequence[str], changes: Sequence[str] = (), seed: int = 0
    ) -> list[Recipe]:
        """The checked recipe of each stage of a row.

        Args:
            set_name, row, stages: see `RowSet.stages_of`.
            changes: `[ROW:|STAGE:]section.key=value`. A change with a stage's name applies to that stage. Any other
                change applies to all stages, but one of the model to the first stage alone, because later stages
                continue that model.
            seed: number that is added to the seed of every stage.
        """
        found = []
        for stage, table in zip(stages, self.sets[set_name].tables(row, stages), strict=True):
            own_seed = checked(table.get("training", {}).get("seed", 0), int, f"{self.path}: training.seed") + seed
            table = merged(table, {"training": {"seed": own_seed}})
            wanted = [
                assignment
                for prefix, assignment in map(split_change, changes)
                if _reaches(prefix, assignment, row, stage)
            ]
            found.append(parse_recipe(table, wanted, origin=f"{self.path}, set {set_name}, row {row}, stage {stage}"))
        return found

    def asked(self, changes: Sequence[str] = ()) -> Ask:
        """[ask] with those changes from the command line that begin with `ask.`."""
        table = {f.name: getattr(self.ask, f.name) for f in fields(Ask)}
        table["options"] = dict(table["options"])
        texts = {f.name for f in fields(Ask) if f.type in ("str", "str | None")}
        for _, assignment in map(split_change, changes):
            if assignment.startswith("ask."):
                _, key, value = read_assignment(assignment)
                name, _, option = key.partition(".")
                if name in texts or option:
                    value = assignment.split("=", 1)[1]
                if option:
                    table["options"][option] = value
                else:
                    table[name] = value
        return build_settings(Ask, table, "ask", "--set")


def load_study(name: str) -> Study:
    """Read a study. `name` is that of a study in the package, or the path of a TOML file.

    Raises ValueError for an error in the file, with the file and the key.
    """
    known = sorted(path.stem for path in STUDIES.glob("*.toml"))
    path = STUDIES / f"{name}.toml" if name in known else Path(name)
    if not path.is_file():
        raise ValueError(
            f"study {name!r} is neither a study of this package nor a file; "
            f"give {', '.join(known)} or the path of a TOML file"
        )
    return _parse(read_toml(path, "study"), path)


def split_change(change: str) -> tuple[str, str]:
    """Split `[PREFIX:]section.key=value` into the prefix (a row, a stage, or empty) and the assignment."""
    left, equals, value = change.partition("=")
    prefix, colon, key = left.rpartition(":")
    if not equals or "." not in key:
        raise ValueError(
            f"--set {change!r} is not of the form [ROW:]section.key=value, "
            "such as training.steps=200 or mac:model.chunk_size=8"
        )
    return prefix.strip() if colon else "", f"{key.strip()}={value}"


def _reaches(prefix: str, assignment: str, row: str, stage: str) -> bool:
    """Whether a change applies to the recipe of this stage of this row."""
    if assignment.startswith("ask."):
        return False
    later_model = stage != FIRST and assignment.startswith("model.")
    return prefix == stage or (prefix in ("", row) and not later_model)


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Nested tables with the values of `above` in place of those of `below`. Neither input is changed."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        result[key] = merged(old if isinstance(old, Mapping) else {}, value) if isinstance(value, Mapping) else value
    return result


def _parse(table: dict[str, Any], path: Path) -> Study:
    origin = str(path)
    top = ("title", "ask", "files", "tokenizer", "paper", "base", "rows", "stages", "sets")
    _known_keys(table, top, origin, "")
    files = {
        name: build_settings(FileUse, use, f"files.{name}", origin) for name, use in _tables(table, "files", origin)
    }
    _known_keys(files, FILES, origin, "files")
    parts = {key: table.get(key, {}) for key in ("base", "rows", "stages")}
    sets = {MAIN: _row_set({"about": table.get("title", ""), **parts}, {}, MAIN, origin)} if parts["rows"] else {}
    for name, part in _tables(table, "sets", origin):
        _known_keys(part, ("about", "base", "rows", "stages"), origin, f"sets.{name}")
        sets[name] = _row_set(part, parts["base"], name, origin)
    if not sets:
        raise ValueError(f"{origin} has no rows; describe one model or more, each in a section [rows.NAME]")
    tokenizer = table.get("tokenizer")
    if tokenizer is not None and not (files.get("train_text") or FileUse()).needed:
        raise ValueError(
            f"{origin}: the [tokenizer] is trained on --train-text, which [files] does not require; add "
            "train_text = { needed = true, to = [...] } or leave [tokenizer] out"
        )
    study = Study(
        path=path.absolute(),
        title=str(table.get("title", path.stem)),
        ask=build_settings(Ask, table.get("ask", {}), "ask", origin),
        files=files,
        tokenizer=None if tokenizer is None else build_settings(TokenizerPlan, tokenizer, "tokenizer", origin),
        paper=build_settings(Paper, table.get("paper", {}), "paper", origin),
        sets=sets,
    )
    for name, rows in sets.items():
        for row in rows.rows:
            study.recipes(name, row, rows.all_stages_of(row), study.placeholders)  # raises for a wrong value
    return study


def _row_set(part: dict[str, Any], below: dict[str, Any], name: str, origin: str) -> RowSet:
    where = "" if name == MAIN else f"sets.{name}."
    base = merged(below, checked(part.get("base", {}), dict[str, dict[str, Any]], f"{origin}: {where}base"))
    _known_keys(base, tuple(SECTIONS), origin, f"{where}base")
    rows = {row: build_settings(Row, own, f"{where}rows.{row}", origin) for row, own in _tables(part, "rows", origin)}
    stages = {
        stage: build_settings(Stage, own, f"{where}stages.{stage}", origin)
        for stage, own in _tables(part, "stages", origin)
    }
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
    return RowSet(str(part.get("about", "")), base, rows, stages)


def _sections(part: Row | Stage) -> dict[str, Any]:
    return {"model": part.model, "data": part.data, "training": part.training}


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
