"""Finds the tokens that stand for a step, so that each counts once and none shifts at a seam."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from proxy.backends.base import Decoded, ScoredToken, Segment
from proxy.backends.tokens.normal_form import may_be_rewritten

# Stands for "more text follows" while a step is tokenised.
FOLLOWED_BY = "a"
DUMMY_PREFIX = (
    "its tokenizer puts a space before every text that it is given, so steps cannot be tokenised "
    "one by one through this server; set the upstream's `tokenizer` to the model's Hugging Face "
    "name or folder"
)

# Decoders write this for bytes that are not a whole character.
REPLACEMENT = "\ufffd"
# Strings of tokens that a server may put before a text: a beginning-of-sequence token and the like.
_OUTSIDE = re.compile(r"<[^\s>]*>|\[[^\s\]]*\]|")
_MAX_OUTSIDE = 2
# Two ways to write the bytes of a token that is not text: OpenAI's and SentencePiece's.
_ESCAPED = re.compile(r"bytes:((?:\\x[0-9a-fA-F]{2})+)|<0x([0-9a-fA-F]{2})>")
_METASPACE = "\u2581"
# The bytes of characters that are more than one byte.
_HIGH = bytes(range(0x80, 0x100))


def _byte_characters() -> dict[str, int]:
    """The characters with which vocabularies of the GPT-2 kind write bytes."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(0x100) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {
        chr(0x100 + index): byte for index, byte in enumerate(hidden)
    }


_BYTES = _byte_characters()
# The control tokens of known families.
CONTROL = re.compile(r"<(?=\|[^|<>\s]+\|>|/?s>|(?:bos|eos|pad|unk|(?:start|end)_of_turn)>)")
_CONTROL_BYTES = re.compile(CONTROL.pattern.encode() + rb"[^>]*>")


def as_in_running_text(text: str) -> str:
    r"""Return the text to tokenise so that a step gets the ids it has when more text follows.

    Tokenizers of the GPT-2 kind cut trailing newlines differently at the end of a text: alone,
    `".\n\n"` is `[".", "\n\n"]`, but before a word it is `[".", "\n", "\n"]`, which is what
    the models write. A step that ends in a newline is therefore tokenised with a letter after it,
    and `without_follower` takes the letter's token away again.
    """
    return text + FOLLOWED_BY if text.endswith("\n") else text


def without_follower(text: str, ids: list[int], follower: int) -> tuple[int, ...]:
    """The ids of `text` from those of `as_in_running_text(text)`; `follower` is the letter's id.

    Raises ValueError if the letter did not become a token of its own.
    """
    if not text.endswith("\n"):
        return tuple(ids)
    if ids[-1:] != [follower]:
        raise ValueError(f"the tokens of {text[-40:]!r} do not end where it ends")
    return tuple(ids[:-1])


def pieces_of(text: str, tokens: Sequence[str]) -> tuple[str, ...]:
    """Cut the text of several tokens into one piece per token, as far as their strings spell it.

    They do not if a server holds text back (half a character, the beginning of a stop string), nor
    for special tokens, which have a string but no text; the last token gets the rest of the text.
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
    """Cut a written `text` into a piece for each of its tokens: string, id, log-probability.

    The pieces end before the first token whose string is not its text: a token that ends inside a
    character, an end token, or a special token in between. Raises ValueError if a log-probability
    before that token is missing or impossible.
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


@dataclass(frozen=True, slots=True)
class Reach:
    """The end of a token, as an offset in a text's UTF-8 bytes.

    `least` and `most` differ if the tokens' strings leave the end open, which happens only between
    characters that each are several tokens.
    """

    least: int
    most: int


@dataclass(frozen=True, slots=True)
class Alignment:
    """Tokens that cover a text exactly; the first `num_outside` of them lie before it."""

    num_outside: int
    reaches: tuple[Reach, ...]
    """The end of every token, including the tokens outside."""

    @classmethod
    def of_lengths(cls, lengths: Iterable[int]) -> "Alignment":
        """Return the alignment of tokens whose numbers of bytes are known."""
        return cls(0, tuple(Reach(end, end) for end in accumulate(lengths)))

    def ranges(self, bounds: Sequence[int]) -> list[range]:
        """The tokens that end in each step. `bounds` are byte offsets, in order.

        Raises ValueError if a bound lies between characters whose tokens cannot be distinguished.
        """
        firsts: list[int] = []
        index = self.num_outside
        for bound in bounds:
            while index < len(self.reaches) and self.reaches[index].most <= bound:
                index += 1
            if index < len(self.reaches) and self.reaches[index].least <= bound:
                raise ValueError(f"the tokens around byte {bound} cannot be distinguished")
            firsts.append(index)
        return [range(start, end) for start, end in pairwise(firsts)]


def align(tokens: Sequence[str], offsets: Sequence[int] | None, text: str) -> Alignment:
    r"""Find each token's place in `text` by the tokens' strings, or else by the server's offsets.

    A token that ends inside a character may be written with U+FFFD for each half, as its bytes
    (`bytes:\xe2\x80`, `<0xE2>`), or as nothing. In the last case either the token that completes
    the character holds all of it, or no token does and the offsets decide. Offsets count
    characters, UTF-16 units or bytes: the unit that puts every token at its string. Raises
    ValueError if the tokens do not cover exactly `text`.
    """
    complaint = ""
    for num in range(_MAX_OUTSIDE + 1):
        if not all(_OUTSIDE.fullmatch(token) for token in tokens[:num]):
            break
        try:
            reaches = _by_strings(tokens[num:], text.encode())
        except ValueError as error:
            complaint = complaint or str(error)
            placed = None if offsets is None else _by_offsets(tokens[num:], offsets[num:], text)
            if placed is None:
                continue
            reaches = placed
        return Alignment(num, (*[Reach(0, 0)] * num, *reaches))
    if may_be_rewritten(text):
        complaint += " (the text is in no normal form of Unicode, and the tokenizer may rewrite it)"
    raise ValueError(f"the tokens do not spell the text that was sent: {complaint}")


def align_vocabulary(tokens: Sequence[str], text: str) -> Alignment:
    """As `align`, for tokens as their vocabulary spells them: often a character for each byte."""
    data = text.encode()
    spelt = [bytes(_BYTES.get(character, 0) for character in token) for token in tokens]
    if b"".join(spelt) != data:
        return align(tokens, None, text)
    return Alignment.of_lengths(map(len, spelt))


def in_parts(parts: Sequence[str], ids: Sequence[int], alignment: Alignment) -> list[Segment]:
    """Give every part of a text the ids of the tokens that end in it.

    `alignment` is that of `ids`, and of tokens after them. Raises ValueError if a part's end cannot
    be found, or if the ids do not end where the last part does.
    """
    bounds = list(accumulate((len(part.encode()) for part in parts), initial=0))
    found = alignment.ranges(bounds)
    if alignment.num_outside or found[-1].stop != len(ids):
        raise ValueError(f"the tokens of {parts[-1][-40:]!r} do not end where it ends")
    return [
        Segment(part, tuple(ids[tokens.start : tokens.stop]))
        for part, tokens in zip(parts, found, strict=True)
    ]


def scored_tokens(
    tokens: Sequence[str], logprobs: Sequence[float | None], text: str
) -> tuple[ScoredToken, ...]:
    """Each token's end in `text`. Raises ValueError if the tokens do not cover `text`."""
    alignment = align(tokens, None, text)
    if alignment.num_outside:
        raise ValueError(f"the tokens do not spell the text that was sent: {tokens[0]!r} is added")
    return tuple(
        ScoredToken(reach.least, logprob)
        for reach, logprob in zip(alignment.reaches, logprobs, strict=True)
    )


def _by_strings(tokens: Sequence[str], data: bytes) -> list[Reach]:
    """Follow every way in which the tokens can spell `data`. Raises ValueError if there is none."""
    places = [{0}]
    for index, token in enumerate(tokens):
        (start, *others) = places[-1]
        spelt = token.encode()
        is_text = REPLACEMENT not in token and _raw(token) is None
        if spelt and not others and is_text and data.startswith(spelt, start):
            places.append({start + len(spelt)})  # as for nearly all tokens
            continue
        here = {end for start in places[-1] for end in _after(data, start, token)}
        if not here:
            start = max(places[-1])
            there = data[start : start + 20].decode(errors="replace")
            raise ValueError(f"token {index} is {token!r}, where the text is {there!r}")
        places.append(here)
    if len(data) not in places[-1]:
        missing = data[max(places[-1]) :][:20].decode(errors="replace")
        raise ValueError(f"{missing!r} and the text after it are missing")
    places[-1] = {len(data)}
    for index in range(len(tokens) - 1, 0, -1):
        if len(places[index]) > 1:
            places[index] = {
                start
                for start in places[index]
                if not places[index + 1].isdisjoint(_after(data, start, tokens[index]))
            }
    reaches: list[Reach] = []
    known_end = len(data)
    for token, ends in zip(reversed(tokens), reversed(places[1:]), strict=True):
        if token or len(ends) > 1:
            reaches.append(Reach(min(ends), max(ends)))
            known_end = max(ends)
        else:
            (start,) = ends
            reaches.append(_held(data, start, known_end))
    return reaches[::-1]


def _after(data: bytes, start: int, token: str) -> Iterator[int]:
    """The possible ends of a token that begins at `start` and has this string."""
    if data.startswith(token.encode(), start):
        yield start + len(token.encode())
    if REPLACEMENT in token:
        # For bytes that are not a character, Python writes the same as the tokenizers.
        for end in range(start + len(token), min(start + 4 * len(token), len(data)) + 1):
            if data[start:end].decode(errors="replace") == token:
                yield end
    if not token and (control := _CONTROL_BYTES.match(data, start)) is not None:
        yield control.end()
    for other in _other_spellings(token, is_first=start == 0):
        if data.startswith(other, start):
            yield start + len(other)


def _other_spellings(token: str, *, is_first: bool) -> Iterator[bytes]:
    if (escaped := _ESCAPED.fullmatch(token)) is not None:
        yield bytes.fromhex((escaped[1] or escaped[2]).replace("\\x", ""))
    if (raw := _raw(token)) is not None:
        yield raw
    spaced = token.replace(_METASPACE, " ")
    if spaced != token:
        yield spaced.encode()
    # SentencePiece puts a space before a text.
    if is_first and spaced.startswith(" "):
        yield spaced[1:].encode()


def _raw(token: str) -> bytes | None:
    """The bytes of a token that is not text, which SGLang's OpenAI route writes as a character
    each; None for a text.
    """
    if token.isascii():
        return None
    try:
        raw = token.encode("latin-1")
    except UnicodeEncodeError:
        return None
    return None if REPLACEMENT not in raw.decode(errors="replace") else raw


def _held(data: bytes, start: int, known_end: int) -> Reach:
    """The end of a token without a string: inside a character that the next one with a string, up
    to `known_end`, brings whole. Without such a character it was an empty token.
    """
    insides = [i + 1 for i in range(start, known_end) if data[i] >= 0xC0]
    return Reach(insides[0], insides[-1]) if insides else Reach(start, start)


def _by_offsets(tokens: Sequence[str], offsets: Sequence[int], text: str) -> list[Reach] | None:
    data = text.encode()
    widths = {
        "characters": [1] * len(text),
        "UTF-16 units": [1 + (c > "\uffff") for c in text],
        "bytes": [len(c.encode()) for c in text],
    }
    readings: list[list[Reach]] = []
    for of_unit in widths.values():
        place, unit, byte = {0: 0}, 0, 0
        for width, in_bytes in zip(of_unit, widths["bytes"], strict=True):
            unit, byte = unit + width, byte + in_bytes
            place[unit] = byte
        starts = [place.get(offset - offsets[0]) for offset in offsets]
        reaches = _between(tokens, [*starts, len(data)], data)
        if reaches is not None:
            readings.append(reaches)
    if not readings:
        return None
    # If several units fit, the ends on which they disagree stay open.
    return [
        Reach(min(end.least for end in ends), max(end.most for end in ends))
        for ends in zip(*readings, strict=True)
    ]


def _between(
    tokens: Sequence[str], starts: Sequence[int | None], data: bytes
) -> list[Reach] | None:
    """The tokens' ends; None unless every string stands in its place and no text is left over."""
    reaches: list[Reach] = []
    for token, following, (start, end) in zip(
        tokens, [*tokens[1:], " "], pairwise(starts), strict=True
    ):
        if start is None or end is None or end < start:
            return None
        # Bytes that complete a character may come before the string.
        stands = bool(token) and data[start:end].endswith(token.encode())
        if data[start:end].removesuffix(token.encode()).strip(_HIGH):
            return None
        if not stands and token.strip(REPLACEMENT):
            return None
        # It may hide the next character's first bytes, which no tokenizer joins to a newline.
        is_open = not following and not token.endswith("\n") and data[end : end + 1] >= b"\x80"
        if stands or end > start:
            reaches.append(Reach(end, end + is_open))
        else:
            inside = end + (data[end : end + 1] >= b"\x80")
            reaches.append(Reach(inside, inside))
    return reaches
