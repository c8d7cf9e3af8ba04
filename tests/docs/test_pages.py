"""What the pages for successors name is there: files by their paths, pages by their links."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"])
ELSEWHERE = {"readme.md", "recipes.md", "plugins.md", "benchmarks.md", "contributing.md"}
"""Pages that the documentation takes from the repository; docs/repository_pages.py names them."""
MADE_BY_RUNS = {"manifest.json", "recipe.yaml", "state.json", "checkpoint.json", "base.json", "config.json"}
FILES = {
    path.name for folder in ("rlhf_peft", "tests", "docs", ".ci") for path in (ROOT / folder).rglob("*.*")
}


def ids(path):
    return path.relative_to(ROOT).as_posix()


def is_there(name):
    """A path from the repository's root or the package's, or the bare name of a file anywhere in them."""
    if "/" not in name:
        return name in FILES or (ROOT / name).is_file()
    return any((folder / name).exists() for folder in (ROOT, ROOT / "rlhf_peft"))


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_files_that_a_page_names_are_there(page):
    text = page.read_text(encoding="utf-8")
    names = set(re.findall(r"`([\w./-]+\.(?:py|md|yml|yaml|toml|json|svg))`", text)) - MADE_BY_RUNS
    assert [name for name in sorted(names) if not is_there(name)] == []


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_of_a_page_lead_somewhere(page):
    links = set(re.findall(r"\]\((?!https?://)([^)#\s]+)", page.read_text(encoding="utf-8")))
    lost = [link for link in sorted(links) if not (page.parent / link).exists()]
    assert [link for link in lost if Path(link).name not in ELSEWHERE] == []


def test_every_decision_is_listed_and_has_its_parts():
    folder = ROOT / "docs" / "decisions"
    listed = re.findall(r"\]\((\d{4}-[\w-]+\.md)\)", (folder / "index.md").read_text(encoding="utf-8"))
    pages = sorted(path for path in folder.glob("*.md") if path.name != "index.md")
    assert [path.name for path in pages] == listed
    parts = ["What was tried", "Figures", "What was chosen", "When to look again", "Where it stands"]
    for number, path in enumerate(pages, 1):
        assert int(path.name[:4]) == number
        assert re.findall(r"^## (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE) == parts
