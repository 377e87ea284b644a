r"""Keeps text from being read as control tokens, however it spells them.

A spelling that is cut after its first character is no token any more. The contents of messages are
marked there before a template renders them, and the prompt is cut at the marks, so that only the
template's own control tokens are whole.
"""

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from secrets import randbelow

from proxy.backends.base import Message, Question
from proxy.backends.tokens.alignment import CONTROL
from proxy.core.thinking import THOUGHT_TAGS

# Tags of text formats, which vocabularies such as Gemma's hold as tokens: they control nothing.
_FORMATTING = re.compile(
    r"</?(?:a|b|blockquote|body|br|caption|code|div|em|h[1-6]|head|html|i|li|ol|p|pre|span|strong"
    r"|sub|sup|table|tbody|td|tfoot|th|thead|tr|u|ul)/?>"
)
# The shapes of control tokens in the vocabularies that we know, such as <|im_end|>, [INST],
# <dsml:, |||IP_ADDRESS||| and >>TITLE<<. Words of these shapes that are no tokens stay whole.
_SHAPES = (
    re.compile(r"(?=(<(?=[^<>\s]{0,64}?[^\W\d_]{2})[^<>\s]{2,64}>))"),
    re.compile(r"(?=(\[(?=[^\[\]\s]{0,64}?[^\W\d_]{3})[^\[\]\s]{3,64}\]))"),
    re.compile(r"(?=(\uff5c[^\uff5c\s]{1,64}\uff5c|\|\|\|\w{1,64}\|\|\||>>\w{1,64}<<))"),
    re.compile(r"(?=(</?s>|</?\w{1,64}:|(?<!<)/(?:no_?)?think|\]~!?b\[|\[e~\[))"),
)
# A text with more words that may be control tokens is cut at all of them.
_MOST_ASKED = 64
_MOST_KNOWN = 10_000
# Digits, because every vocabulary has them and no template changes them.
_MARK_DIGITS = 20


def is_plain_word(token: str) -> bool:
    """Return whether an added token of a vocabulary is only text: white space, a word, formatting.

    A tokenizer that was extended for another language has words of it as added tokens.
    """
    words = "".join(token.split())
    return len(token) == 1 or not words or words.isalnum() or bool(_FORMATTING.fullmatch(token))


def cut(text: str, starts: Iterable[int]) -> list[str]:
    """Cut a text after the first character of each spelling; `starts` are in order."""
    places = [0, *(start + 1 for start in starts), len(text)]
    return [text[a:b] for a, b in pairwise(places) if a < b]


class Spellings:
    """The spellings of a known vocabulary's control tokens."""

    def __init__(self, words: Collection[str]) -> None:
        pattern = _trie(sorted(words)) if words else "(?!)"
        self.pattern = pattern
        """Matches the longest spelling at a place."""
        self._words = re.compile(pattern)
        self._starts = re.compile(f"(?={pattern})")

    def starts(self, text: str) -> list[int]:
        """Return where spellings begin, also inside of others."""
        return [found.start() for found in self._starts.finditer(text)]

    def words(self, text: str) -> list[str]:
        """Return the spellings that a tokenizer finds, the longest at each place."""
        return self._words.findall(text)


class LearntControls:
    """Finds the control tokens of a vocabulary that only its server knows.

    The server is asked about each word that has the shape of a control token, once: if the word is
    one token, it is taken as a control token.
    """

    def __init__(self, *, families: bool) -> None:
        self._families = families
        """Whether the tokens of known families count without being asked about."""
        self._is_control: dict[str, bool] = {}

    def unknown_in(self, question: Question) -> list[str]:
        """Return the words of the messages about which the server has to be asked."""
        return self.unknown(
            word
            for message in question.messages
            for _, word in _shaped(message.content)
            if message.role != "assistant" or word not in THOUGHT_TAGS
        )

    def unknown(self, texts: Iterable[str]) -> list[str]:
        """Return the words about which the server has to be asked."""
        found = {word for text in texts for _, word in _shaped(text)}
        if self._families:
            found = {word for word in found if CONTROL.match(word) is None}
        words = sorted(found - self._is_control.keys())
        return words if len(words) <= _MOST_ASKED else []

    def learn(self, words: Sequence[str], tokens: Iterable[Sequence[object]]) -> None:
        """Take the server's answer: the tokens of each word alone."""
        if len(self._is_control) + len(words) > _MOST_KNOWN:  # clients choose the words
            self._is_control.clear()
        self._is_control.update(
            (word, len(ids) == 1) for word, ids in zip(words, tokens, strict=True)
        )

    def starts(self, text: str) -> list[int]:
        """Return where spellings begin, in order. Words that were not asked about count."""
        starts = {start for start, word in _shaped(text) if self._is_control.get(word, True)}
        if self._families:
            starts |= {found.start() for found in CONTROL.finditer(text)}
        return sorted(starts)


def marked(question: Question, starts: Callable[[str], list[int]]) -> tuple[Question, str]:
    """Put a mark into every spelling of a control token in the messages' contents.

    Returns the question and the mark, which is empty if there is no such spelling. The tags of
    thoughts stay in earlier answers, because templates look for them there.
    """
    if question.prompt is not None:
        return question, ""
    found = [_spelt_in(message, starts) for message in question.messages]
    if not any(found):
        return question, ""
    contents = "\n".join(message.content for message in question.messages)
    while (mark := f"{randbelow(10**_MARK_DIGITS):0{_MARK_DIGITS}}") in contents:
        pass
    messages = tuple(
        replace(message, content=mark.join(cut(message.content, places)))
        for message, places in zip(question.messages, found, strict=True)
    )
    return replace(question, messages=messages), mark


def _spelt_in(message: Message, starts: Callable[[str], list[int]]) -> list[int]:
    places = starts(message.content)
    return without_tags(message.content, places) if message.role == "assistant" else places


def without_tags(text: str, places: Iterable[int]) -> list[int]:
    """Return the places of spellings that are no tags of thoughts."""
    return [place for place in places if not text.startswith(THOUGHT_TAGS, place)]


def _shaped(text: str) -> Iterable[tuple[int, str]]:
    for shape in _SHAPES:
        for found in shape.finditer(text):
            if not _FORMATTING.fullmatch(found[1]):
                yield found.start(), found[1]


def _trie(words: Sequence[str]) -> str:
    """Return a pattern for the longest of the words, which is fast for thousands of them."""
    tails: dict[str, list[str]] = {}
    for word in words:
        if word:
            tails.setdefault(word[0], []).append(word[1:])
    if not tails:
        return ""
    branches = "|".join(re.escape(first) + _trie(rest) for first, rest in tails.items())
    return f"(?:{branches})?" if "" in words else f"(?:{branches})"
