"""Puts prefix, flawed attempt, revise token and correction together (Eq. 9 and 10)."""

from dataclasses import dataclass

from proxy.core.params import Params
from proxy.core.types import Role, Span


@dataclass(frozen=True, slots=True)
class Stitched:
    """The output's text and the spans that cover it."""

    text: str
    spans: tuple[Span, ...]


def blank_line_after(text: str) -> str:
    """The newlines that `text` needs to end in a blank line; its own are never touched."""
    return "\n" * max(0, 2 - (len(text) - len(text.rstrip("\n"))))


def blank_line_before(text: str) -> str:
    """The newlines that `text` needs to begin with a blank line."""
    return "\n" * max(0, 2 - (len(text) - len(text.lstrip("\n"))))


def stitch(prefix: str, flawed: str, correction: str, params: Params) -> Stitched:
    """Eq. 9 and 10: `prefix` is a_1..a_{t*-1}, `flawed` is a_{t*}..a_t.

    Under `stitch: clean` the flawed attempt and the revise token are left out.
    """
    if params.stitch == "clean":
        return cover(("student", prefix), ("teacher", correction))
    revise = blank_line_after(prefix + flawed) + params.revise + blank_line_before(correction)
    return cover(
        ("student", prefix), ("flawed", flawed), ("revise", revise), ("teacher", correction)
    )


def cover(*parts: tuple[Role, str]) -> Stitched:
    """Join the parts; an empty part has no span."""
    spans: list[Span] = []
    end = 0
    for role, text in parts:
        start, end = end, end + len(text)
        if text:
            spans.append(Span(role, start, end))
    return Stitched("".join(text for _, text in parts), tuple(spans))
