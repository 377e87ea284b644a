"""Defines the simulated models' vocabulary: a word is a token, and shows how probable it is.

Both models share it. The proxy reads it from a `tokenizer.json`, as for any model; the simulated
servers, which must be cheap, cut texts with one regular expression.
"""

import json
import re
from itertools import product
from pathlib import Path
from typing import Final

_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"
_WORD = f" [{_CONSONANTS}][{_VOWELS}][{_CONSONANTS}][{_VOWELS}]"
_MARKS = (r"</s>", r"<\|user\|>", r"<\|assistant\|>")
_PATTERN = "|".join([*_MARKS, _WORD, r"\.\n\n", r"\n\n", r"[\s\S]"])

END: Final = 0
USER: Final = 1
ASSISTANT: Final = 2
DELIMITER: Final = ".\n\n"
VOCABULARY: Final[tuple[str, ...]] = (
    "</s>",
    "<|user|>",
    "<|assistant|>",
    DELIMITER,
    "\n\n",
    *map(chr, range(128)),
    *("".join((" ", *letters)) for letters in product(*[_CONSONANTS, _VOWELS] * 2)),
)
IDS: Final = {text: token for token, text in enumerate(VOCABULARY)}
DELIMITER_ID: Final = IDS[DELIMITER]

_FIRST_WORD = len(VOCABULARY) - (len(_CONSONANTS) * len(_VOWELS)) ** 2
_SHARE = (len(VOCABULARY) - _FIRST_WORD) // 5
DOUBTFUL: Final = range(_FIRST_WORD, _FIRST_WORD + _SHARE)
"""Words to which the teacher gives 0.3: low, and above every boundary."""
WRONG: Final = range(_FIRST_WORD + _SHARE, _FIRST_WORD + 2 * _SHARE)
"""Words to which the teacher gives 0.018: a step of such words is a breach."""
SURE: Final = range(_FIRST_WORD + 2 * _SHARE, len(VOCABULARY))

TOP_LOGPROBS: Final = (-0.22, *(-4.55 for _ in range(19)))
"""The 20 most probable tokens everywhere: H is 1.1, and with the defaults the boundary 0.07."""


def logprob(token: int) -> float:
    """Return the teacher's natural log-probability of a token, wherever it occurs."""
    if token in DOUBTFUL:
        return -1.2
    if token in WRONG:
        return -4.0
    return -0.1 - token % 32 / 160


_TOKEN = re.compile(_PATTERN)
_UNKNOWN = IDS["?"]


def encode(text: str) -> list[int]:
    """Return the ids of a text."""
    return [IDS.get(piece, _UNKNOWN) for piece in _TOKEN.findall(text)]


def decode(ids: list[int]) -> str:
    """Return the text of ids; the end token has no text."""
    return "".join(VOCABULARY[token] for token in ids if token != END)


_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def write_tokenizer(folder: Path) -> None:
    """Write the files that the proxy's `tokenizer: FOLDER` needs."""
    folder.mkdir(parents=True, exist_ok=True)
    special = [
        {"id": token, "content": VOCABULARY[token], "special": True, "normalized": False}
        | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        for token in (END, USER, ASSISTANT)
    ]
    split = {"type": "Split", "pattern": {"Regex": _PATTERN}, "behavior": "Isolated"}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": {**split, "invert": False},
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": IDS, "unk_token": "?"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    config = {"eos_token": VOCABULARY[END], "chat_template": _TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
