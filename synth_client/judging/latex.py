"""Prepares a formula for math-verify, which reads LaTeX and little else."""

import re
from typing import Final

from synth_client.judging.numbers.plain_text import SETTING, plain_signs
from synth_client.judging.numbers.rewrites import rewrites, rewritten

_FUNCTIONS: Final = re.compile(
    r"(?<![\\A-Za-z{])(pi|infty|arcsin|arccos|arctan|sin|cos|tan|cot|sec|csc|log|ln|exp)(?![A-Za-z])"
)
_ROOT: Final = re.compile(r"(?<!\\)sqrt\s*(?:\(([^()]*)\)|(\d+|[A-Za-z]))")
_MIXED: Final = re.compile(r"(?<![\d.,/^\w])(\d+)[ ]+(\d+)\s?/\s?(\d+)(?![\d/.])")
_MIXED_LATEX: Final = re.compile(
    r"(?<![\d.,/^\w])(\d+)\s*\\[dtc]?frac\s*(?:\{\s*(\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d))"
)
_DEGREES: Final = re.compile(
    r"(\\(?:sin|cos|tan|cot|sec|csc)\s{0,4}[({]?)\s{0,4}(\d+(?:\.\d+)?)\s{0,4}\^\s{0,4}\{?\s{0,4}"
    r"\\circ(?![A-Za-z])\s{0,4}\}?"
)
_REPLACED: Final = rewrites(
    (r"\*\*(?=[\d({-])", "^"),
    (r"`+|\*\*+|__+", " "),
    (r"\*", r" \\cdot "),
    (r"\\fbox(?![A-Za-z])", r"\\boxed"),
    (r"(?<=\d)(?:\\[,; ]|\{,\})(?=\d{3}(?!\d))", ""),
    (r"(?<![A-Za-z\d])0x|\\(?:left|right)\s*\.", ""),
    (r"≤", r" \\le "),
    (r"≥", r" \\ge "),
    (r"≠", r" \\ne "),
    (r"±", r" \\pm "),
    (r"°", r"^{\\circ}"),
    (r"≈", r" \\approx "),
    (r"\^\((-?[\w+*/ -]{1,40})\)", r"^{\1}"),
)


def latex_of(text: str) -> str:
    """Return the formula as LaTeX, without the dollars that mark it."""
    latex = plain_signs(text)
    latex = rewritten(rewritten(latex, SETTING), _REPLACED)
    latex = _ROOT.sub(lambda found: rf"\sqrt{{{found[1] or found[2]}}}", latex)
    latex = _FUNCTIONS.sub(r"\\\1 ", latex)
    latex = _MIXED.sub(r"(\1+\\frac{\2}{\3})", latex)
    latex = _MIXED_LATEX.sub(_sum, latex)
    latex = _DEGREES.sub(r"\1 \\frac{\2 \\pi}{180}", latex)
    return latex.replace("\\$", "").replace("$", "").strip()


def _sum(found: re.Match[str]) -> str:
    over, under = found[2] or found[3], found[4] or found[5]
    return rf"({found[1]}+\frac{{{over}}}{{{under}}})"
