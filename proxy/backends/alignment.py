"""Which tokens stand for a step, so that every token counts once and none shifts at a seam."""

import re
from collections.abc import Sequence

from proxy.backends.base import Decoded, Segment

# Stands for "more text follows" while a step is tokenised.
FOLLOWED_BY = "a"
DUMMY_PREFIX = (
    "its tokenizer puts a space before every text that it is given, so steps cannot be tokenised "
    "one by one through this server; set the upstream's `tokenizer` to the model's Hugging Face "
    "name or folder"
)

# What a decoder writes for bytes that are no whole character.
REPLACEMENT = "\ufffd"

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


def decoded(text: str, rows: Sequence[tuple[str, int, float | None]]) -> Decoded:
    """A written `text` with a piece for each of its tokens: string, id, log-probability.

    It ends before the first token whose string is not the text that it stands for: one that ends
    inside a character, an end token, or a special one in between. Raises ValueError where a
    log-probability before that is missing or impossible.
    """
    pieces: list[Segment] = []
    logprobs: list[tuple[float, ...]] = []
    start = 0
    for token, token_id, logprob in rows:
        if not token or REPLACEMENT in token or not text.startswith(token, start):
            break
        if logprob is None:
            raise ValueError(f"the log-probability of the written token {token!r} is missing")
        start += len(token)
        pieces.append(Segment(token, (token_id,)))
        logprobs.append((logprob,))
    return Decoded(tuple(pieces), tuple(logprobs))
