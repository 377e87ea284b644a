r"""Rewrites LaTeX, Markdown and Unicode signs as the plain signs that numbers are read from.

`\$1{,}250`, `**1250**` and `1 250` with a narrow space mean the same number; only after this
rewriting one grammar can read them all. A sign keeps its meaning: nothing that belongs to a number
is left out, and what is not understood stays as it is.
"""

import re
import unicodedata
from dataclasses import dataclass
from typing import Final

from synth_client.judging.numbers.rewrites import rewrites, rewritten

_SUPERSCRIPTS: Final = {ord(a): b for a, b in zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾", "0123456789+-()", strict=True)}
_SUPERSCRIPT: Final = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾]+")
_SUBSCRIPTS: Final = {ord(a): b for a, b in zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True)}
_SUBSCRIPT: Final = re.compile("[₀₁₂₃₄₅₆₇₈₉]+")
_BASES: Final = {
    "two": 2,
    "three": 3,
    "four": 4,
    "five": 5,
    "six": 6,
    "seven": 7,
    "eight": 8,
    "nine": 9,
    "ten": 10,
    "eleven": 11,
    "twelve": 12,
    "sixteen": 16,
}
_UPRIGHT: Final = r"\\(?:text(?:rm|tt)?|math(?:rm|tt))\s{0,4}\{\s{0,4}"
_WORD_BASE: Final = re.compile(
    rf"_\s{{0,4}}\{{?\s{{0,4}}(?:{_UPRIGHT})?({'|'.join(_BASES)})\s{{0,4}}\}}{{1,2}}", re.IGNORECASE
)
_SET_DIGITS: Final = re.compile(rf"{_UPRIGHT}([0-9A-Fa-f]{{1,64}})\s{{0,4}}\}}(?=\s{{0,4}}_)")
_VULGAR: Final = re.compile("(\\d?)([\u00bc-\u00be\u2150-\u215e\u2189])")
_SIGNS: Final = str.maketrans(
    {
        **dict.fromkeys("\u2010\u2011\u2012\u2212\ufe63\uff0d", "-"),
        **dict.fromkeys("\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008", " "),
        **dict.fromkeys("\u2009\u200a\u202f\u205f\u3000\u2061\t\r", " "),
        **dict.fromkeys("\u200b\u200c\u200d\u200e\u200f\u2060\ufeff\u00ad", ""),
        **dict.fromkeys("\u2044\u2215\u00f7", "/"),
        **dict.fromkeys("\u00d7\u2715\u2a2f\u22c5\u00b7\u2217\u2219", "*"),
        **dict.fromkeys("\u2018\u2019\u201b", "'"),
        "\u221a": "sqrt",
        "\u03c0": "pi",
        "\u221e": "infty",
        "\u2245": "≈",
        "\u223c": "≈",
        "\u2243": "≈",
        "\u2264": "≤",
        "\u2a7d": "≤",
        "\u2a7e": "≥",
    }
)
# A pair of dollars is mathematics if it could be so in Markdown; other dollars are money.
_DISPLAY: Final = re.compile(r"\$\$([^$]{1,2000})\$\$")
_INLINE: Final = re.compile(
    r"(?<![\\$])\$(?:(?!\s)([^$\n]{0,1999}[^\s$\\])\$(?![\d$])|[ ]([^$\n]{1,1999}[ ]?)\$(?!\d))"
)
_BRACKETED: Final = re.compile(r"\\[(\[]((?:[^\\]|\\(?![)\]])){1,2000})\\[)\]]")
_PROSE: Final = re.compile(r"(?<![\\A-Za-z{])(?!and\b|or\b|text)[A-Za-z]{3,}\b(?![({])")
_TEXT: Final = re.compile(
    r"\\(?:text(?:normal|bf|it|rm|tt|sf|up)?|math(?:rm|bf|it|sf|tt|bb|cal)|mbox|hbox|operatorname\*?"
    r"|emph|underline|bm|boldsymbol|boxed|fbox|framebox|displaystyle|tag)\s*\{([^{}]*)\}"
)
_FRACTION: Final = re.compile(
    r"\\[dtc]?frac\s*(?:\{([^{}]*)\}|(\d))\s*(?:\{([^{}]*)\}|(\d))(?=(.?))"
)
_ROOT: Final = re.compile(r"\\sqrt\s*(?:\[([^\[\]{}]*)\]\s*)?(?:\{([^{}]*)\}|(\w))")
_SIMPLE: Final = re.compile(r"\s*(-?)\s*([\d.,]+)\s*")
_SETS: Final = str.maketrans("⦃⦄", "{}")
_NUM_NESTED: Final = 8

_ROWS: Final = re.compile(
    r"\\begin\{(?:align|aligned|gather|gathered|split|eqnarray)\*?\}(.*)\\end\{[a-z]+\*?\}[\s.]*",
    re.DOTALL,
)
# What only sets the type, and stands for nothing.
SETTING: Final = rewrites(
    (r"\\(?:text|f)?color(?:box)?\s{0,4}(?:\[\w{1,20}\]\s{0,4})?\{[\w!.,# -]{0,40}\}", " "),
    (r"\\[hv]space\*?\{[^{}]{0,20}\}|\\[hv]?phantom\{[^{}]{0,40}\}", " "),
    (r"\\(?:tiny|scriptsize|small|normalsize|large|Large|LARGE|huge|Huge)(?![A-Za-z])", " "),
    (r"\\(?:bf|rm|it|sf|tt|bfseries|boldmath|centering|therefore|ensuremath)(?![A-Za-z])", " "),
    (r"\\math(?:bf|rm|it|sf|tt)(?=\s{0,4}[-\d])", " "),
    (r"(?m)^\s{0,4}={1,3}>|-{1,3}>", " "),
    (r":=", "="),
)
_REPLACED: Final = rewrites(
    # GSM8K's own sums, `<<9*2=18>>`, repeat what stands beyond them.
    (r"<<[^<>\n]{0,200}>>", ""),
    (r"(?<=\d)~(?=\d{3}(?!\d))", " "),
    (r"(?<=\d) and (?:a|one) half\b", " 1/2"),
    (
        r"</?(?:b|i|u|em|strong|code|span|p|div|mark|center|answer|final|final_answer|result|solution|br)\b[^<>]{0,80}>",
        " ",
    ),
    (r"&nbsp;|&thinsp;|\\(?:quad|qquad|space|thinspace|enspace)\b|\\[,;: ]", " "),
    (r"(?<=\d)\{,\}\s?(?=\d)", ","),
    (r"\\!|\\(?:left|right|big|Big|bigg|Bigg|displaystyle|textstyle|limits)(?![A-Za-z])", ""),
    (r"\\(?:left|right)(?=[\\()\[\]|.])", ""),
    (r"\\[\[\]()]", " "),
    (r"\\text(?:dollar)\b", "$"),
    (r"\\([%#&_])", r"\1"),
    (r"\\\{", "⦃"),
    (r"\\\}", "⦄"),
    (r"\\(?:times|cdot|ast)(?![A-Za-z])", "*"),
    (r"\\div(?![A-Za-z])", "/"),
    (r"\\[pb]?mod(?![A-Za-z])", " mod "),
    (r"\\pm(?![A-Za-z])", "±"),
    (r"\\(?:leq?|leqslant)(?![A-Za-z])", "≤"),
    (r"\\(?:geq?|geqslant)(?![A-Za-z])", "≥"),
    (r"\\lt(?![A-Za-z])", "<"),
    (r"\\gt(?![A-Za-z])", ">"),
    (r"(?<=[\d)])!=", "! ="),
    (r"\\neq?(?![A-Za-z])|!=", "≠"),
    (r"(?<=[\w}])~(?=\\?\w)", " "),
    (r"\\(?:approx|sim|simeq|cong|equiv|doteq)(?![A-Za-z])", "≈"),
    (r"\\(?:ldots|cdots|dots)(?![A-Za-z])", "..."),
    (r"(?<=[A-Za-z])\\(pi|infty|sin|cos|tan|log|ln|exp)(?![A-Za-z])", r" \1"),
    (r"\\(pi|infty|sin|cos|tan|log|ln|exp)(?![A-Za-z])", r"\1"),
    (r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\degree(?![A-Za-z])", "°"),
    (r"(?<=\d)\.(\d*)\\(?:overline|bar|dot)\s*\{?(\d+)\}?", r".\1(\2)"),
    (r"\\[$]", "$"),
    (r"(?<![A-Za-z])([ap])\.\s?m\b\.?", r"\1m"),
)
_MARKDOWN: Final = rewrites(
    # Two stars between two numbers are a power.
    (r"(?<=\d)\*\*(?=\d)|(?<=[\w)])\*\*(?=[-+]?[\d(])(?![^*\n]{0,200}\*\*)", "^"),
    (r"(?m)^[^\S\n]*[-*+]\s+(?=\*\*|[`A-Za-z])", " "),
    (r"\*\*+|__+|`+|~~", " "),
    (r"(?<![\w*)])\*(?=\S)([^*\n]{1,200})(?<=\S)\*(?![\w*(])", r" \1 "),
    (r"(?<![\w_)])_(?=\S)([^_\n]{1,200})(?<=\S)_(?![\w_(])", r" \1 "),
    (r"(?m)^\s{0,3}(?:#{1,6}\s+|>\s+)", " "),
)


def plain(text: str) -> str:
    """Return the text with plain signs; it still has its words, and its lines."""
    text = plain_signs(text)
    text = rewritten(text, _MARKDOWN)
    text = without_dollars(text)
    return _without_latex(text)


def plain_signs(text: str) -> str:
    """Return the text with ASCII for the Unicode signs of numbers, LaTeX and Markdown as it was."""
    text = _SUPERSCRIPT.sub(lambda found: f"^({found[0].translate(_SUPERSCRIPTS)})", text)
    text = _SUBSCRIPT.sub(lambda found: f"_{found[0].translate(_SUBSCRIPTS)}", text)
    text = _VULGAR.sub(_written_out, text)
    text = _WORD_BASE.sub(lambda found: f"_{{{_BASES[found[1].lower()]}}}", text)
    text = _SET_DIGITS.sub(r"\1", text)
    text = "".join(map(_plain_sign, text)) if not text.isascii() else text
    return text.translate(_SIGNS)


def without_dollars(text: str) -> str:
    """Return the text without the dollars that mark mathematics; those of money stay."""
    text = _DISPLAY.sub(_unmarked, text)
    return _INLINE.sub(_unmarked, text).replace("$$", " ")


def last_row(content: str) -> str:
    """Return the last row of formulas that are set below each other."""
    rows = _ROWS.fullmatch(content)
    if rows is None:
        return content
    return rows[1].replace("\\\\[", "\\\\ [").rpartition("\\\\")[2].replace("&", " ").strip()


@dataclass(frozen=True, slots=True)
class Formula:
    """Text that is marked as mathematics, in one part or several, and its place with the marks."""

    parts: tuple[str, ...]
    start: int
    end: int

    @property
    def content(self) -> str:
        return ", ".join(self.parts)


def formulas(text: str) -> list[Formula]:
    r"""Return what is marked as mathematics, in order: `$x$`, `$$x$$`, `\(x\)` and `\[x\]`."""
    found = [
        Formula(((one[1] or one[one.lastindex or 1]).strip(),), *one.span())
        for pattern in (_DISPLAY, _INLINE, _BRACKETED)
        for one in pattern.finditer(text)
        if _is_mathematics(one[1] or "x")
    ]
    return sorted(found, key=lambda formula: formula.start)


def _is_mathematics(content: str) -> bool:
    """Return False for the text between two amounts of money."""
    return not (content[:1].isdigit() and _PROSE.search(content))


def _unmarked(found: re.Match[str]) -> str:
    content = found[1] if found.re is _DISPLAY else (found[1] or found[2])
    if not _is_mathematics(content):
        return found[0]
    before = found.string[max(found.start() - 1, 0) : found.start()]
    after = found.string[found.end() : found.end() + 1]
    left = " " if before.isalnum() or before in {")", "}"} else ""
    return f"{left}{content}{' ' if after.isalnum() else ''}"


def _written_out(found: re.Match[str]) -> str:
    fraction = unicodedata.normalize("NFKC", found[2]).replace("\u2044", "/")
    return f"{found[1]} {fraction}" if found[1] else fraction


def _plain_sign(sign: str) -> str:
    if sign.isascii() or sign in "\u2212\u2013\u2014√π∞\u00d7÷·≤≥≠≈°…€£¥₹\u2019\u2018":
        return sign
    if sign == "\u2044":
        return "/"
    digit = unicodedata.decimal(sign, None)
    if digit is not None:
        return str(digit)
    return unicodedata.normalize("NFKC", sign)


def _without_latex(text: str) -> str:
    text = rewritten(rewritten(text, SETTING), _REPLACED)
    if "\\" in text or "{" in text:
        for _ in range(_NUM_NESTED):
            before = text
            text = _TEXT.sub(r" \1 ", text)
            text = _FRACTION.sub(_slashed, text)
            text = _ROOT.sub(_rooted, text)
            text = re.sub(r"\^\s*\{([^{}]*)\}", r"^(\1)", text)
            text = re.sub(r"_\s*\{\s*([^{}]*?)\s*\}", r"_\1", text)
            if text == before:
                break
        text = text.replace("{", "").replace("}", "").translate(_SETS)
    text = re.sub(r"\^\((\d+)\)", r"^\1", text)
    text = re.sub(r"°\s+(?=[CF](?![A-Za-z]))", "°", text)
    return re.sub(r" {2,}", " ", text)


def _slashed(found: re.Match[str]) -> str:
    over, under = found[1] or found[2] or "", found[3] or found[4] or ""
    before, after = found.string[max(found.start() - 9, 0) : found.start()].rstrip()[-1:], found[5]
    top, bottom = _SIMPLE.fullmatch(over), _SIMPLE.fullmatch(under)
    if top is None or bottom is None:
        return f"(({over})/({under}))"
    sign = "-" if top[1] != bottom[1] else ""
    slashed = f"{sign}{top[2]}/{bottom[2]}"
    if sign and before.strip(" =$([{"):
        return f"({slashed})"
    if before.isalpha() or before in {")", "]", "/"} or after.isalnum() or after in {"(", "^", "/"}:
        return f"({slashed})"
    return f" {slashed}" if before.isdigit() else slashed


def _rooted(found: re.Match[str]) -> str:
    of = found[2] or found[3] or ""
    return f"root({found[1]},{of})" if found[1] else f"sqrt({of})"
