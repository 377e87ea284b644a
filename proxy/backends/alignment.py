"""Which tokens stand for a step, so that every token counts once and none shifts at a seam."""

import re
from collections.abc import Sequence

# Stands for "more text follows" while a step is tokenised.
FOLLOWED_BY = "a"
DUMMY_PREFIX = (
    "its tokenizer puts a space before every text that it is given, so steps cannot be tokenised "
    "one by one through this server; set the upstream's `tokenizer` to the model's Hugging Face "
    "name or folder"
)

_CONTROL = re.compile(r"<(?=\|[^|<>\s]+\|>|/?s>|(?:bos|eos|pad|unk|(?:start|end)_of_turn)>)")


def as_in_running_text(text: str) -> str:
    r"""What to tokenise so that a step gets the ids it has when more text follows.

    Tokenizers of the GPT-2 kind cut trailing newlines differently at the end of a text: alone,
    `".\n\n"` is `[".", "\n\n"]`, but before a word it is `[".", "\n", "\n"]`, which is what
    the models write. A step that ends in a newline is therefore tokenised with a letter after it,
    and `without_follower` takes the letter's token away again.
    """
    return text + FOLLOWED_BY if text.endswith("\n") else text


def without_follower(text: str, ids: list[int], follower: int) -> tuple[int, ...]:
    """The ids of `text` from those of `as_in_running_text(text)`; `follower` is the letter's id.

    Raises ValueError where the letter did not come out as a token of its own.
    """
    if not text.endswith("\n"):
        return tuple(ids)
    if ids[-1:] != [follower]:
        raise ValueError(f"the tokens of {text[-40:]!r} do not end where it ends")
    return tuple(ids[:-1])


def split_control(text: str) -> list[str]:
    """Parts that spell `text`, none of which holds a control token such as `<|im_end|>`.

    For servers whose tokenizer reads such text as the token itself: what a student writes is text,
    whatever it looks like.
    """
    parts: list[str] = []
    start = 0
    for match in _CONTROL.finditer(text):
        parts.append(text[start : match.end()])
        start = match.end()
    return [*parts, text[start:]] if start < len(text) else parts


def pieces_of(text: str, tokens: Sequence[str]) -> tuple[str, ...]:
    """The text of several tokens cut into one piece a token, as far as their own strings spell it.

    They do not where a server holds text back (half a character, a stop string in the making) and
    for special tokens, which have a string but no text; the rest of the text is the last token's.
    """
    if not tokens:
        return (text,) if text else ()
    pieces, start = [""] * len(tokens), 0
    for index, token in enumerate(tokens[:-1]):
        if not text.startswith(token, start):
            break
        pieces[index] = token
        start += len(token)
    pieces[-1] = text[start:]
    return tuple(pieces)
