"""The pages keep their word: links lead somewhere, paths exist, tables stay readable."""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.support.paths import ROOT

PAGES = (
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
)
MAX_CELL = 200
_FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`[^`]+`")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} +(.+)$", re.MULTILINE)
_PATH = re.compile(
    r"(?<![\w./:@-])"
    r"((?:(?:proxy|synth_client|trainer|benchmarks|tests|configs|docs)/|motab/(?=\w+\.py))"
    r"[\w./{},*-]*)"
)


def prose_of(page: Path) -> str:
    """Return the page without its blocks of code."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors_of(page: Path) -> list[str]:
    """Return the anchors that GitHub gives the page's headings, in order."""
    found: list[str] = []
    for heading in _HEADING.findall(prose_of(page)):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        anchor = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        repeats = sum(
            re.fullmatch(rf"{re.escape(anchor)}(-\d+)?", one) is not None for one in found
        )
        found.append(f"{anchor}-{repeats}" if repeats else anchor)
    return found


def broken_links(page: Path) -> list[str]:
    """Return the relative links of the page that lead to no file, or to no heading."""
    broken = []
    for link in _LINK.findall(_CODE.sub("", prose_of(page))):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = unquote(link).partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors_of(target)):
            broken.append(link)
    return broken


def missing_paths(page: Path) -> list[str]:
    """Return the paths of the repository that the page names and that do not exist.

    A name in capitals, such as NEW.py, stands for a file that the reader makes.
    """
    missing = []
    for found in _PATH.findall(page.read_text(encoding="utf-8")):
        named = found.rstrip(".,/")
        if re.search(r"/(?:test_)?[A-Z]{2,}", named) and not named.endswith("README.md"):
            named = named.rpartition("/")[0]
        if not all(any(ROOT.glob(path)) for path in alternatives_of(named)):
            missing.append(found)
    return missing


def alternatives_of(path: str) -> Iterator[str]:
    """Return what a path with `{a,b}` stands for."""
    braces = re.search(r"\{([^{}]*)\}", path)
    if braces is None:
        yield path
        return
    for choice in braces[1].split(","):
        yield from alternatives_of(path[: braces.start()] + choice + path[braces.end() :])


def long_cells(page: Path) -> list[str]:
    """Return the cells of the page's tables that are too long to read."""
    rows = [line for line in prose_of(page).splitlines() if line.startswith("|")]
    cells = [cell.strip() for row in rows for cell in re.split(r"(?<!\\)\|", row)]
    return [cell for cell in cells if len(cell) > MAX_CELL]


def first_paragraph(page: Path) -> str:
    """Return what follows the page's title."""
    title, _, rest = page.read_text(encoding="utf-8").partition("\n")
    assert title.startswith("# "), title
    return rest.strip().partition("\n\n")[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
class TestPage:
    def test_its_links_lead_somewhere(self, page: Path) -> None:
        assert broken_links(page) == []

    def test_the_paths_that_it_names_exist(self, page: Path) -> None:
        assert missing_paths(page) == []

    def test_its_tables_have_no_long_cells(self, page: Path) -> None:
        assert long_cells(page) == []

    def test_it_opens_with_a_sentence(self, page: Path) -> None:
        opening = first_paragraph(page)
        assert opening[:1].isalnum()
        assert "." in opening


def test_every_decision_is_in_the_index() -> None:
    index = ROOT / "docs" / "design" / "README.md"
    listed = _LINK.findall(prose_of(index))
    for page in index.parent.glob("*.md"):
        if page.read_text(encoding="utf-8").startswith("# Decisions:"):
            assert f"{page.name}#{anchors_of(page)[0]}" not in listed
            for anchor in anchors_of(page)[1:]:
                assert f"{page.name}#{anchor}" in listed


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("# T\n\nSee [a](gone.md).\n", "gone.md"),
        ("# T\n\nSee [a\nb](#gone).\n", "#gone"),
        ("# T\n\nSee [a](page.md#t-1).\n\n## T", None),
        ("# T\n\nSee `proxy/core/gone.py`.\n", "proxy/core/gone.py"),
        ("# T\n\nSee proxy/core/{gone,types}.py.\n", "proxy/core/{gone,types}.py."),
        ("# T\n\nSee proxy/core/{monitor,types}.py and proxy/core/NEW.py.\n", None),
        (f"# T\n\n| {'x' * 201} | a |\n", "x" * 201),
        ("# T\n\n```\n[a](gone.md)\n```\n", None),
    ],
)
def test_a_fault_of_a_page_is_found(tmp_path: Path, content: str, fault: str | None) -> None:
    page = tmp_path / "page.md"
    page.write_text(content, encoding="utf-8")
    found = broken_links(page) + missing_paths(page) + long_cells(page)
    assert found == ([] if fault is None else [fault])
