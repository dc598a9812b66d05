"""A hook of mkdocs: files outside `docs/` to which a page links become files of the site, Markdown becomes pages."""

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
AS_TEXT = (".py", ".toml", ".sh", ".hpp", ".cpp", ".jsonl")  # a browser then shows them
LINK = re.compile(r"(?<=\]\()([^)#:\s]+)(#[^)]*)?(?=\))")


def target(page: str, link: str) -> str:
    """The path from the root of the project to which a link of a page leads; a folder stands for its README."""
    origin = page.removeprefix("files/") if page.startswith("files/") else f"docs/{page}"
    path = normpath(str(PurePosixPath(origin).parent / link))
    return f"{path}/README.md" if (ROOT / path / "README.md").is_file() else path


def place(path: str) -> str:
    """The path on the site of a file of the project."""
    if path.startswith("docs/") and (ROOT / path).is_file():
        return path.removeprefix("docs/")
    return f"files/{path}" + (".txt" if path.endswith(AS_TEXT) or (ROOT / path).is_dir() else "")


def content(path: str) -> bytes:
    """The bytes of a file, or the names in a folder."""
    where = ROOT / path
    return "\n".join(sorted(p.name for p in where.iterdir())).encode() if where.is_dir() else where.read_bytes()


def on_files(files: Files, config: Any) -> Files:
    """Add each linked file once, also those to which an added page links."""
    pages = [file for file in files if file.src_uri.endswith(".md")]
    for page in pages:
        for link, _ in LINK.findall(page.content_string):
            path = target(page.src_uri, link)
            if (ROOT / path).exists() and files.get_file_from_path(place(path)) is None and path != "docs":
                files.append(file := File.generated(config, place(path), content=content(path)))
                pages += [file] if path.endswith(".md") else []
    return files


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """Lead the links of a page to the added files."""

    def changed(found: re.Match[str]) -> str:
        where = place(target(page.file.src_uri, found[1]))
        if files.get_file_from_path(where) is None:
            return found[0]
        anchor = found[2] if found[2] and where.endswith(".md") else ""
        return relpath(where, PurePosixPath(page.file.src_uri).parent) + anchor

    return LINK.sub(changed, markdown)
