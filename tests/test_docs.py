"""Every file, function and page that the documentation names exists, and the index leads to every page."""

import re
from pathlib import Path

import pytest

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
    pages = [page.name for page in (ROOT / "docs").glob("*.md") if page.name != "index.md"]
    assert not [name for name in pages if f"({name}" not in index]
    assert "(log/README.md)" in index


def test_cells_of_the_choices_are_short() -> None:
    for line in (ROOT / "docs" / "choices.md").read_text().splitlines():
        for cell in line.strip("|").split("|") if line.startswith("|") else ():
            assert len(re.sub(r"\]\(.*?\)", "]", cell).split()) <= 15, cell
