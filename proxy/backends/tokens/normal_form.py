"""Keeps a tokenizer that rewrites text (Unicode's normal forms) from standing for another text."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, get_args
from unicodedata import is_normalized

NormalForm = Literal["NFC", "NFKC"]
FORMS: tuple[NormalForm, ...] = get_args(NormalForm)
PROBES: Mapping[NormalForm, tuple[str, str]] = MappingProxyType(
    {"NFC": ("e\u0301", "\u00e9"), "NFKC": ("\ufb01", "fi")}
)
"""For each form a text, and what a tokenizer that applies the form makes of it."""
# More than any letter has marks.
_REACH = 32


def may_be_rewritten(text: str) -> bool:
    """Return whether some normal form of the text is another text."""
    return not text.isascii() and not is_normalized("NFKC", text)


def split_for(form: NormalForm, text: str) -> list[str]:
    """Split the text where the tokenizer would join a letter with a mark, so that it joins none.

    Raises ValueError for a character that is rewritten even when it stands alone.
    """
    parts: list[str] = []
    start = 0
    for index, character in enumerate(text):
        if not is_normalized(form, character):
            raise ValueError(
                f"its tokenizer rewrites U+{ord(character):04X} ({form}), so no tokens of it stand"
                " for exactly this text; set the upstream's `tokenizer` to the model's Hugging Face"
                " name or folder"
            )
        if not is_normalized(form, text[max(start, index - _REACH) : index + 1]):
            parts.append(text[start:index])
            start = index
    return [*parts, text[start:]] if start < len(text) else parts
