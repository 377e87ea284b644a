"""Defines the colours of the pages, in light and dark."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Colour:
    """One colour as it looks under either `prefers-color-scheme`."""

    light: str
    dark: str


# Plots are drawn in light colours and the page translates them, so each light colour is unique.
PALETTE: Final[Mapping[str, Colour]] = {
    "page": Colour("#f6f6f3", "#131517"),
    "card": Colour("#fffffe", "#1b1e21"),
    "ink": Colour("#1c1f23", "#e7e6e2"),
    "soft": Colour("#5d646b", "#a3a9af"),
    "line": Colour("#e2e2dc", "#33383d"),
    "focus": Colour("#2457a6", "#8ab4f0"),
    "student": Colour("#216d57", "#5fbf9f"),
    "flawed": Colour("#a83b33", "#ee8d83"),
    "revise": Colour("#7a570d", "#dcb65c"),
    "teacher": Colour("#35679f", "#7fb1e4"),
    "soft-band": Colour("rgba(93,100,107,0.16)", "rgba(163,169,175,0.18)"),
    "student-band": Colour("rgba(33,109,87,0.16)", "rgba(95,191,159,0.18)"),
    "flawed-band": Colour("rgba(168,59,51,0.12)", "rgba(238,141,131,0.18)"),
    "revise-band": Colour("rgba(122,87,13,0.16)", "rgba(220,182,92,0.18)"),
    "teacher-band": Colour("rgba(53,103,159,0.15)", "rgba(127,177,228,0.18)"),
}
