"""Docs, docstrings, comments and messages keep to plain English."""

import ast
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.architecture import PACKAGES, modules
from tests.support.paths import ROOT

# Words of a dialect that newcomers had to decode.
DIALECT = re.compile(
    r"\b(told(?! apart)|anew|aside|besides?|so many|go(?:es)? on)\b", re.IGNORECASE
)
# A docstring begins with a verb or a noun, not with half a question.
FRAGMENT = re.compile(r"(Of|What|Whether|Where|Which|How|Why|Likewise)\b")
# A prompt for models, recorded with the answers of real servers.
PROMPT = "Go on from exactly where it stops"
CODE = re.compile(r"```.*?```|`[^`]*`", re.DOTALL)
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]


def prose_of(path: Path) -> Iterator[tuple[int, str]]:
    """Every comment and string of a module, with the line on which it starts."""
    with tokenize.open(path) as file:
        for token in tokenize.generate_tokens(file.readline):
            if token.type in {tokenize.COMMENT, tokenize.STRING}:
                yield token.start[0], CODE.sub("", token.string).replace(PROMPT, "")


def docstrings_of(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text is not None:
                yield node.body[0].lineno, text


def dialect_of(package: str) -> list[str]:
    return [
        f"{module.path.relative_to(ROOT)}:{line} says {found[0]!r}"
        for module in modules(ROOT, package)
        for line, text in prose_of(module.path)
        if (found := DIALECT.search(text)) is not None
    ]


@pytest.mark.parametrize("package", [*PACKAGES, "tests"])
def test_code_is_written_in_plain_english(package: str) -> None:
    found = dialect_of(package)
    assert [one for one in found if Path(__file__).name not in one] == []


@pytest.mark.parametrize("package", [*PACKAGES, "tests"])
def test_no_docstring_begins_with_half_a_question(package: str) -> None:
    assert [
        f"{module.path.relative_to(ROOT)}:{line} begins with {found[0]!r}"
        for module in modules(ROOT, package)
        for line, text in docstrings_of(module.tree)
        if (found := FRAGMENT.match(text)) is not None
    ] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_is_written_in_plain_english(page: Path) -> None:
    text = CODE.sub("", page.read_text(encoding="utf-8"))
    assert DIALECT.findall(text) == []


@pytest.mark.parametrize(
    "text", ["it was told", "Besides, it", "so many tokens", "the run goes on"]
)
def test_dialect_is_found(text: str) -> None:
    assert DIALECT.search(text) is not None


def test_names_in_code_are_no_prose() -> None:
    assert DIALECT.search(CODE.sub("", "`beside` ends with the run")) is None
