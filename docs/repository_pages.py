"""Gives the documentation the pages that stand elsewhere in the repository; mkdocs.yml names this file as a hook.

README.md, the guide to plugins, the page of recipes and a few others are written for the repository. Here they become
pages of the documentation as they are, and what they link to comes along: other pages, recipes and pictures.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "readme.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "plugins/README.md": "plugins.md",
    "recipes/README.md": "recipes.md",
    "tests/benchmarks/README.md": "benchmarks.md",
}
"""A page of the repository, and its name in the documentation."""
LINK = re.compile(r"\]\((?!https?://|#|/)([^)#\s]+)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages, and all that they link to."""
    waiting, there = list(PAGES), {file.src_uri for file in files}
    while waiting:
        source = waiting.pop(0)
        name = name_of(source)
        if name in there:
            continue
        there.add(name)
        if not source.endswith(".md"):
            files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
            continue
        text = (ROOT / source).read_text(encoding="utf-8")
        waiting += [target for link in LINK.findall(text) if (target := target_of(source, link))]
        files.append(File.generated(config, name, content=with_links(text, source)))
    return files


def name_of(source: str) -> str:
    """What a file of the repository is called in the documentation, whose own folder keeps its names."""
    return PAGES.get(source, source.removeprefix("docs/"))


def target_of(source: str, link: str) -> str | None:
    """The file of the repository that a page links to: of a folder, its README; None where there is no such file."""
    path = (ROOT / source).parent / link
    path = path / "README.md" if path.is_dir() else path
    return path.resolve().relative_to(ROOT).as_posix() if path.is_file() else None


def with_links(text: str, source: str) -> str:
    """The text of a page, with links that lead to where the files are in the documentation."""
    up = "../" * (len(PurePosixPath(name_of(source)).parts) - 1)

    def replaced(match: re.Match[str]) -> str:
        target = target_of(source, match[1])
        return match[0] if target is None else f"]({up}{name_of(target)}"

    return LINK.sub(replaced, text)
