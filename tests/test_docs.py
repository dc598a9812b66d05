"""All that the documentation names exists, and it names every page, public name, option, recipe key and variable."""

import inspect
import re
from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

import titanslab
from titanslab.memory import MemoryConfig
from titanslab.models.config import MEMORY_OPTIONS, TitansConfig
from titanslab.tasks.babilong.rows import BabilongRows
from titanslab.tasks.mixture import Mixture
from titanslab.tasks.niah.rows import niah_rows
from titanslab.tasks.recall.kv import make_kv_recall
from titanslab.tasks.recall.samples import RecallTask, recall_rows
from titanslab.training.recipe import KINDS, SEQUENCES, SERIES, DataRecipe, GraftRecipe, ModelRecipe, TrainingRecipe

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
MAPS = [ROOT / "docs" / name for name in ("paper.md", "exact_form.md")]


def find(name: str) -> list[Path]:
    """Files and folders that a page means by `name`: a path from the root or from the package, maybe with a pattern."""
    return [path for base in (ROOT, ROOT / "src" / "titanslab") for path in base.glob(name)]


def code(line: str) -> tuple[list[str], list[str]]:
    """The paths and the names of functions and classes among the words in code type of a line."""
    words = re.findall(r"`([^`]+)`", line)
    paths = [w.rstrip("/") for w in words if re.fullmatch(r"[\w./*-]+(\.py|/)", w)]
    return paths, [w for w in words if re.fullmatch(r"[A-Za-z_][\w.]*", w) and w not in paths]


@pytest.mark.parametrize("page", MAPS, ids=lambda p: p.name)
def test_named_files_exist(page: Path) -> None:
    missing = [path for path in code(page.read_text())[0] if not find(path)]
    assert not missing


def test_rows_of_the_paper_map_name_functions_of_their_files_and_tests() -> None:
    rows = [line.strip("|").split("|") for line in MAPS[0].read_text().splitlines() if re.match(r"\| (Eq|§|App)", line)]
    assert len(rows) > 10
    for paper, here, tested in rows:
        paths, names = code(here)
        files = [
            f for path in paths or ["memory"] for p in find(path) for f in ([p] if p.is_file() else p.rglob("*.py"))
        ]
        text = "\n".join(f.read_text() for f in files if f.suffix == ".py")
        for name in names:
            for part in name.split("."):
                assert re.search(rf"(def|class) {part}\b", text), f"{paper}: {name} is not in {', '.join(paths)}"
        assert code(tested)[0], f"{paper}: no test is named"


@pytest.mark.parametrize("page", DOCS, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#\s]*)(?:#[^)]*)?\)", page.read_text()):
        assert not link or link.startswith("http") or (page.parent / link).exists(), link


def test_anchors_exist() -> None:
    for page in DOCS:
        for link, anchor in re.findall(r"\]\(([\w./-]*\.md)?#([\w-]+)\)", page.read_text()):
            target = (page.parent / link if link else page).read_text()
            headings = [
                re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-")
                for h in re.findall(r"^#+ (.*)$", target, re.M)
            ]
            assert anchor in [*headings, *re.findall(r'<a id="([\w-]+)">', target)], f"{page.name}: {link}#{anchor}"


def test_the_index_leads_to_every_page() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    pages = [
        page for folder in ("", "api") for page in (ROOT / "docs" / folder).glob("*.md") if page.name != "index.md"
    ]
    names = [str(page.relative_to(ROOT / "docs")) for page in pages]
    assert not [name for name in (*names, "log/README.md") if f"({name}" not in index]


def test_the_site_leads_to_every_page() -> None:
    site = (ROOT / "mkdocs.yml").read_text()
    assert not [page for page in DOCS if f": {page.relative_to(ROOT / 'docs')}\n" not in site]


def test_cells_of_the_choices_are_short() -> None:
    for line in (ROOT / "docs" / "choices.md").read_text().splitlines():
        for cell in line.strip("|").split("|") if line.startswith("|") else ():
            assert len(re.sub(r"\]\(.*?\)", "]", cell).split()) <= 15, cell


API = "\n".join(page.read_text() for page in sorted((ROOT / "docs" / "api").glob("*.md")))


def named(path: str) -> Any:
    """The object at a dotted path, such as `titanslab.models.cost.Cost`."""
    place, _, name = path.rpartition(".")
    return getattr(import_module(place), name)


@pytest.mark.parametrize(
    "room", ["titanslab", "titanslab.memory", "titanslab.layers", "titanslab.graft", "titanslab.data"]
)
def test_every_public_name_has_an_entry(room: str) -> None:
    entries = [named(path) for path in re.findall(r"^::: ([\w.]+)$", API, re.MULTILINE)]
    names = set(import_module(room).__all__) - {"__version__"}
    assert not [name for name in names if not any(named(f"{room}.{name}") is entry for entry in entries)]
    assert f"`titanslab.{'__version__'}`" in API
    assert titanslab.__version__


def tables(page: str, heading: str) -> list[list[list[str]]]:
    """The cells of the tables of one section of a page, without their two first lines."""
    text = (ROOT / "docs" / page).read_text()
    part = re.split(rf"^{re.escape(heading)}$", text, flags=re.MULTILINE)[1]
    part = re.split(rf"^#{{1,{heading.index(' ')}}} ", part, flags=re.MULTILINE)[0]
    found = re.findall(r"(?:^\|.*\n)+", part, re.MULTILINE)
    return [[[cell.strip() for cell in row.strip("|").split(" | ")] for row in t.splitlines()[2:]] for t in found]


def kinds(annotation: Any) -> str:
    """A type as the tables write it."""
    text = annotation.__name__ if inspect.isclass(annotation) and not get_args(annotation) else str(annotation)
    text = re.sub(r"^typing\.Optional\[(.*)\]$", r"\1", text)
    text = text.replace("tuple[float, float]", "two floats").replace(" | None", "").replace(" | ", " or ")
    return re.sub(r"(\w+\.)+|\[.*?\]+", "", text).replace("Sequence", "list")


def shown(value: Any) -> str:
    """A default as the tables write it: in Python, but with the quotes of TOML."""
    return repr(value).replace("'", '"')


def check_table(rows: list[list[str]], kind: Any, skipped: tuple[str, ...] = ()) -> None:
    """Assert that the rows name every field of a dataclass, or parameter of a function, with type and default."""
    wanted = {name: p for name, p in inspect.signature(kind).parameters.items() if name not in skipped}
    assert [row[0].strip("`") for row in rows] == list(wanted)
    recipe = kind.__module__.startswith("titanslab.training")
    hints = get_type_hints(kind) if recipe else {}  # without the bounds of `Annotated`
    for row, parameter in zip(rows, wanted.values(), strict=True):
        name, kind_of, default, meaning = row
        value = parameter.default
        factories = {f.name: f.default_factory for f in fields(kind)} if is_dataclass(kind) else {}
        if factories.get(parameter.name, MISSING) is not MISSING:
            value = factories[parameter.name]()
        expected = {"required"} if value is parameter.empty else {f"`{shown(value)}`", f"`{shown(value).lower()}`"}
        assert default in expected | {"see the code"}, name
        assert kind_of.replace("table", "dict") == kinds(hints.get(parameter.name, parameter.annotation)), name
        assert meaning.endswith("."), name


def test_every_recipe_key_is_described() -> None:
    for heading, kind in (("## `[model]`", ModelRecipe), ("## `[training]`", TrainingRecipe)):
        check_table(tables("recipe.md", heading)[0], kind, ("options",))
    check_table(tables("recipe.md", "## `[data]`")[0], DataRecipe)
    check_table(tables("recipe.md", "## `[graft]`")[0], GraftRecipe, ("options",))
    for section in (SERIES, SEQUENCES):
        of_data, of_model = tables("recipe.md", f"## `[{section}]`")
        model, data = KINDS[section]
        check_table(of_data, data)
        check_table(of_model, model, ("options",))


def test_every_task_option_is_described() -> None:
    every, niah, babilong, recall, kv = tables("recipe.md", "### Task options")
    check_table(every, Mixture, ("name", "tokenizer", "sequence_length", "seed", "options"))
    check_table(niah, niah_rows, ("tokenizer",))
    check_table(babilong, BabilongRows, ("tokenizer",))
    check_table(recall[:2], recall_rows, ("tokenizer", "options"))
    check_table(recall[2:], RecallTask, ("tokenizer", "background"))
    check_table(kv, make_kv_recall, ("batch_size", "length", "generator"))


def test_every_option_of_a_model_and_its_memory_is_described() -> None:
    own = [f.name for f in fields(TitansConfig) if f.name in inspect.get_annotations(TitansConfig)]
    other = tuple(f.name for f in fields(TitansConfig) if f.name not in own)
    check_table(tables("models.md", "## Options")[0], TitansConfig, (*other, "kwargs"))
    memory = tables("layer.md", "## Options")[0]
    check_table([[row[0], *row[2:]] for row in memory], MemoryConfig)
    assert {row[0].strip("`"): row[1].strip("`") for row in memory} == {v: k for k, v in MEMORY_OPTIONS.items()}


def test_every_environment_variable_is_described() -> None:
    page = (ROOT / "docs" / "install.md").read_text()
    code = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    read = re.findall(r"environ(?:\.\w+\(|\[)\"(\w+)", code)
    names = {*read, *re.findall(r"(?<!-D)\bTITANS_[A-Z]\w*", code)}
    assert {"TITANS_CACHE", "TITANS_NATIVE", "TITANS_DEBUG", "CXX"} <= names
    assert not [name for name in sorted(names) if f"| `{name}`" not in page]
