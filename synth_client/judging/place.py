r"""Finds where in an output the answer stands: in a box, after the word "answer", in the last line.

A box that is never closed was cut off, so what it holds may be a part of the answer.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, Literal

# A run of backslashes is read once, from its start.
_BRACES: Final = re.compile(r"(?<!\\)\\++(?:boxed|fbox|framebox)\s*\{|\\[^A-Za-z]|[{}]")
_BARE: Final = re.compile(r"(?<!\\)\\++(?:boxed|fbox|framebox)\s*([^\s{}$\\][^\s{}$]*)")
_TAGGED: Final = re.compile(
    r"<answer>((?:(?!</?answer>).){1,2000})</answer>", re.DOTALL | re.IGNORECASE
)
_VERB: Final = (
    r"(?:\s[-\u2013\u2014]\s|\b(?:is|are|was|be|equals?)\b(?:\s+(?:therefore|thus|then|simply))?\s*:?"
    r"|[:=])"
)
_CHINESE: Final = "\u7b54\u6848\\s*(?:\u662f|\u4e3a|[:\uff1a])"
_MARKS: Final = r"(?:\s|[*_])*"
_LABELS: Final = {
    name: re.compile(f"(?:{pattern}){_MARKS}", re.IGNORECASE)
    for name, pattern in (
        (
            "answer",
            rf"\banswers?\b[^.\n:=?]{{0,60}}?{_VERB}|####|\banswer\b[*_\s]*\n|{_CHINESE}",
        ),
        ("option", rf"\b(?:answer|option|choice)s?\b[^.\n:=?]{{0,60}}?{_VERB}|####|{_CHINESE}"),
        ("final", rf"\bfinal answers?\b[^.\n:=?]{{0,60}}?{_VERB}"),
    )
}
# It praises the answer, and does not give it.
_PRAISE: Final = re.compile(
    r"\W*(?:indeed\s+)?(?:helpful|correct|clear|useful|right|verified|consistent|reasonable|valid"
    r"|complete|boxed|below|above|as follows)\b",
    re.IGNORECASE,
)
_JOINT: Final = re.compile(r"[\s$()\\*.]*(?:,|;|&)?[\s$()\\*]*(?:and|or)?[\s$()\\*]*")
_NEAR: Final = re.compile(r"[^A-Za-z=]{0,9}")
_JOINS: Final = re.compile(r"\b(?:and|or)\b|,|;")
_TAKES_BACK: Final = re.compile(
    r"\b(?:no|not|but|wait|actually|instead|correct|correction|wrong|mistake)\b", re.IGNORECASE
)
_SET_OFF: Final = (
    re.compile(r"\$\$[^$]{1,2000}\$\$"),
    re.compile(r"\\\[(?:[^\\]|\\(?![\[\]])){1,2000}\\\]"),
)
_DENIES: Final = re.compile(
    r"(?:n['\u2019]t|\bcannot|\bnot|\bnever)\s(?:be|is|are|was|equals?)\b[\s:*_]*$", re.IGNORECASE
)
_GUESSES: Final = re.compile(r"\b(?:might|may|could)\s(?:well\s)?be\b[\s:*_]*$", re.IGNORECASE)
_GREATER: Final = re.compile(r"^>\s+")
# The number of a list item ends no sentence.
_SENTENCE: Final = re.compile(
    r"(?:(?<=[.!?])(?<!^\d\.)(?<!^\d\d\.)|(?<=[.!?]\$)|(?<=[.!?]\$\$))\s+(?=[A-Z\\$(*<])"
)
_TOUCHING: Final = re.compile(
    r"((?:\\\$\s?)?[-\u2212+\u00b1*/^]|\\\$\s?|\d[\d.,]*)(?:\\[(\[]|[$*_`])*$"
)
# Bounds on what is read, because outputs are hostile texts of any length.
_LONGEST: Final = 2000
_MOST_BOXES, _MOST_LABELS, _MAX_JOINT = 50, 20, 70
_LABELLED_CHARS: Final = 50_000


@dataclass(frozen=True, slots=True)
class Box:
    """The content of a box, and where the whole of the box is in the text.

    `before` and `after` are what touches it and may belong to its number.
    """

    content: str
    start: int
    end: int
    is_closed: bool = True
    before: str = ""
    after: str = ""


def boxes(text: str) -> list[Box]:
    """Return the outermost boxes that hold something, in order."""
    found = [*_braced(text), *(Box(one[1], *one.span()) for one in _BARE.finditer(text))]
    found += [Box(one[1], *one.span()) for one in _TAGGED.finditer(text)]
    found.sort(key=lambda box: (box.start, -box.end))
    outermost: list[Box] = []
    for box in found:
        is_inside = bool(outermost) and box.end <= outermost[-1].end
        if box.content.strip() and not is_inside:
            outermost.append(box)
    return outermost


def _braced(text: str) -> list[Box]:
    """Return the outermost boxes. What is in them is read only once, however deep they nest."""
    opened: list[tuple[int, int] | None] = []
    found: list[tuple[int, int, int]] = []
    for brace in _BRACES.finditer(text):
        if brace[0].endswith("{") and brace[0] != "\\{":
            opened.append(brace.span() if brace[0] != "{" else None)
        elif brace[0] == "}" and opened:
            span = opened.pop()
            if span is not None:
                while found and found[-1][0] > span[0]:
                    found.pop()
                found.append((*span, brace.end()))
    closed = [Box(text[begin : end - 1], start, end) for start, begin, end in found]
    last = max((span for span in opened if span is not None), default=None)
    if last is not None and all(box.end <= last[0] for box in closed):
        closed.append(Box(text[last[1] :], last[0], len(text), is_closed=False))
    return closed


def last_boxes(text: str) -> list[Box]:
    r"""Return the boxes that are the answer together: `\boxed{1}` and `\boxed{2}`.

    They are the last box and those before it that a comma or an "and" joins to it. Equal neighbours
    are one.
    """
    chosen: list[Box] = []
    for box in reversed(boxes(text)):
        if len(chosen) == _MOST_BOXES or (chosen and not _are_joined(text, box, chosen[-1])):
            break
        if not chosen or chosen[-1].content.strip() != box.content.strip():
            chosen.append(box)
    if len(chosen) == 1:
        return [_with_surroundings(text, chosen[0])]
    return chosen[::-1]


def _with_surroundings(text: str, box: Box) -> Box:
    before = _TOUCHING.search(text[max(box.start - 20, 0) : box.start])
    after = text[box.end : box.end + 40].partition("\n")[0]
    after = re.sub(r"^(?:\\[)\]]|[$*_`])+", "", after)
    return replace(box, before=before[1] if before else "", after=after)


def _are_joined(text: str, box: Box, after: Box) -> bool:
    between = text[box.end : after.start]
    if box.content.strip() == after.content.strip():
        return True
    if len(between) >= _MAX_JOINT or _TAKES_BACK.search(between):
        return False
    is_near = _NEAR.fullmatch(between) or _JOINT.fullmatch(between)
    return bool(is_near or _JOINS.search(between))


def labelled(text: str, *, by: Literal["answer", "option", "final"] = "answer") -> Iterator[str]:
    """Yield what the labels announce ("the answer is"), the last first, each up to its line's end.

    By "option", the words "option" and "choice" announce an answer, too; by "final", only "final
    answer" does.
    """
    text = text[-_LABELLED_CHARS:]
    found = list(_LABELS[by].finditer(text))
    for label in found[: -_MOST_LABELS - 1 : -1]:
        announced = text[label.end() : label.end() + _LONGEST]
        if not label[0].endswith("\n"):  # in the middle of a line no quotation begins
            announced = _GREATER.sub(">", announced)
        if _DENIES.search(label[0]):
            announced = f"not {announced}"
        elif _GUESSES.search(label[0]):
            announced = f"maybe {announced}"
        for opening, closing in (("$$", "$$"), ("\\[", "\\]")):
            end = announced.find(closing, 2) if announced.startswith(opening) else -1
            if end >= 0:
                line_end = announced.find("\n", end)
                announced = announced if line_end < 0 else announced[:line_end]
                break
        else:
            announced = announced.partition("\n")[0]
        if announced.strip() and not _PRAISE.match(announced):
            yield announced


def sentences_from_the_end(text: str) -> Iterator[str]:
    """Yield the sentences, the last first. A line ends a sentence."""
    for line in lines_from_the_end(text):
        yield from reversed(_SENTENCE.split(line))


def lines_from_the_end(text: str) -> Iterator[str]:
    """Yield the lines that hold something, the last first, of a long line its end.

    A formula that is set off in lines of its own is a part of one line.
    """
    text = text[-_LABELLED_CHARS:]
    for pattern in _SET_OFF:
        text = pattern.sub(lambda found: found[0].replace("\n", " "), text)
    end = len(text)
    while end > 0:
        start = text.rfind("\n", 0, end) + 1
        line = text[start:end].strip()
        if len(line) > _LONGEST:
            line = line[-_LONGEST:].partition(" ")[2]
        if line:
            yield line
        end = start - 1
