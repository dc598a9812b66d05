"""A hook of mkdocs: files outside `docs/` that a page links to become files of the site."""

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
AS_TEXT = (".md", ".py", ".toml", ".sh", ".hpp", ".cpp")  # a browser then shows them
LINK = re.compile(r"(\]\()(\.\./[^)#\s]*)(#[^)]*)?(\))")


def target(page: str, link: str) -> str | None:
    """The path from the root of the file that a link of a page names; None for a page or a file inside `docs/`."""
    path = normpath(str(PurePosixPath("docs", page).parent / link))
    if path.startswith("docs/") or path == "docs":
        return None
    readme = ROOT / path / "README.md"
    return f"{path}/README.md" if readme.is_file() else path


def place(path: str) -> str:
    """The file of the site that shows the file `path` of the project."""
    return f"files/{path}" + (".txt" if path.endswith(AS_TEXT) or (ROOT / path).is_dir() else "")


def content(path: str) -> bytes:
    """The bytes of a file, or the names in a folder."""
    where = ROOT / path
    return "\n".join(sorted(p.name for p in where.iterdir())).encode() if where.is_dir() else where.read_bytes()


def on_files(files: Files, config: Any) -> Files:
    """Add each linked file once."""
    pages = [file for file in files if file.src_uri.endswith(".md")]
    links = {target(p.src_uri, link[1]) for p in pages for link in LINK.findall(p.content_string)}
    for path in sorted(link for link in links if link is not None):
        files.append(File.generated(config, place(path), content=content(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead the links of a page to the added files."""

    def changed(found: re.Match[str]) -> str:
        path = target(page.file.src_uri, found[2])
        where = str(PurePosixPath(page.file.src_uri).parent)
        return found[0] if path is None else f"{found[1]}{relpath(place(path), where)}{found[4]}"

    return LINK.sub(changed, markdown)
