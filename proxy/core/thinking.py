r"""Maps text between the formats in which models open and close their thoughts.

The visible text is the text that clients see and that is cut into steps and stitched: the student's
own, byte for byte, except that a harmony model's (gpt-oss) is written in `<think>` tags. Each
model's context is made from the visible text by mapping the tags, and each model's text is mapped
back; the words are never touched, only the blank lines that belong to a tag.
"""

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

ReasoningKind = Literal["none", "think", "harmony"]
THOUGHT_TAGS = _OPEN, _CLOSE = "<think>", "</think>"
_START, _CHANNEL, _MESSAGE, _END = "<|start|>", "<|channel|>", "<|message|>", "<|end|>"
_FINAL = f"{_CHANNEL}final{_MESSAGE}"
_State = Literal["free", "thinking", "answering"]


@dataclass(frozen=True, slots=True)
class Reasoning:
    """A model's format. `opened` says that its prompt has opened the thought (`think` only)."""

    kind: ReasoningKind = "none"
    opened: bool = False

    def __str__(self) -> str:
        return f"{self.kind}, opened by its prompt" if self.opened else self.kind

    @property
    def visible(self) -> "Reasoning":
        """The format in which clients see the text."""
        return Reasoning("think") if self.kind == "harmony" else self

    @property
    def opening(self) -> str:
        """The text that begins a thought after the prompt."""
        if self.kind == "harmony":
            return f"{_CHANNEL}analysis{_MESSAGE}"
        return f"{_OPEN}\n" if self.kind == "think" and not self.opened else ""

    @property
    def no_thought(self) -> str:
        """The text that begins an answer after the prompt, if no thought comes before it."""
        if self.kind == "harmony":
            return _FINAL
        return f"{self.opening}\n{_CLOSE}\n\n" if self.kind == "think" else ""


@dataclass(frozen=True, slots=True)
class StepPart:
    """A piece of a step as a model reads it: words, or markup that is read as special tokens."""

    text: str
    markup: bool = False


@dataclass(frozen=True, slots=True)
class MappedSteps:
    """The visible steps in one model's format; `prefix` is markup between prompt and steps."""

    prefix: str
    steps: tuple[tuple[StepPart, ...], ...]
    """The steps from the first that was wanted."""
    state: _State
    """The model's state after the steps."""


@dataclass(frozen=True, slots=True)
class Bridge:
    """Maps the visible text to one model's format, and that model's text back."""

    visible: Reasoning
    own: Reasoning

    def map_steps(
        self, steps: Sequence[str], before: str = "", since: int = 0, *, closed: bool | None = None
    ) -> MappedSteps:
        """Return the model's version of `steps`, from step `since` on. The mapping of a step does
        not depend on later steps.

        `closed` says whether a step before `since` closes the thought, for a caller that knows and
        saves the search.

        `before` is the beginning of the visible text if the model does not read it: `steps`, if
        there are any, come after it.
        """
        first = before or (steps[0] if steps else "")
        free = self.visible == Reasoning("think")
        if free and not first:
            return MappedSteps("", (), "free")
        opens = free and is_opening(first)
        thinks = opens or self.visible.opened
        prefix = self.own.opening if thinks else self.own.no_thought
        opens_in_steps = opens and bool(steps) and not before
        if opens_in_steps or (self.own == self.visible and not opens):
            prefix = ""  # the first step has the tag, or no mapping is needed
        closed_before = closes_thought(steps[:since]) if closed is None else closed
        closes = closed_before or closes_thought(steps[since:])
        state: _State = "thinking" if thinks and not closes else "answering"
        mapped = self._mapped(
            steps[since:], opens=opens_in_steps and not since, thinks=thinks and not closed_before
        )
        return MappedSteps(prefix, tuple(mapped), state)

    def _mapped(
        self, steps: Sequence[str], *, opens: bool, thinks: bool
    ) -> Iterator[tuple[StepPart, ...]]:
        for step in steps:
            parts, text = [], step
            if opens and self.own != self.visible:
                parts, text = [StepPart(self.own.opening, markup=True)], _after_opening(step)
            if thinks and _CLOSE in text:
                thinks = False
                parts += self._closing(text)
            else:
                parts.append(StepPart(text))
            opens = False
            yield tuple(part for part in parts if part.text) or (StepPart(step),)

    def _closing(self, text: str) -> list[StepPart]:
        """Map a step that ends the thought; only its first closing tag counts."""
        if self.own.kind == "think":
            return [StepPart(text)]
        thought, _, answer = text.partition(_CLOSE)
        # One line end before the tag and two after it belong to it.
        thought = thought.removesuffix("\n")
        answer = answer.removeprefix("\n").removeprefix("\n")
        if self.own.kind == "harmony":
            close = StepPart(f"{_END}{_START}assistant{_FINAL}", markup=True)
            return [StepPart(thought), close, StepPart(answer)]
        both = thought.strip() and answer
        return [StepPart(f"{thought}\n\n{answer}" if both else thought + answer)]

    def translator(self, state: _State) -> "Translator":
        """Return the translator of text that the model writes in that state to visible text."""
        if self.own.kind == "harmony":
            return _FromHarmony(state)
        # Its prompt has opened the thought, which the visible text does not show.
        opens = state == "free" and self.own.opened and not self.visible.opened
        return Translator(f"{_OPEN}\n" if opens else "")


class Translator:
    """Maps a stream of pieces, one per token, to the same number of pieces of visible text.

    It may keep its last piece back until the next piece, or the end, decides its meaning.
    """

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix

    def feed(self, pieces: tuple[str, ...]) -> tuple[str, ...]:
        """Return the pieces that are now certain."""
        if self._prefix and pieces:
            pieces = (self._prefix + pieces[0], *pieces[1:])
            self._prefix = ""
        return pieces

    def end(self) -> tuple[str, ...]:
        """Return the piece that was kept back, if there is one."""
        return ()


class _FromHarmony(Translator):
    """Messages on the channels analysis and commentary are thoughts; final is the answer."""

    def __init__(self, state: _State) -> None:
        super().__init__()
        self._state: _State = state
        self._in_header = state == "free"
        self._buffer = ""
        self._kept: str | None = None

    def feed(self, pieces: tuple[str, ...]) -> tuple[str, ...]:
        certain: list[str] = []
        for piece in pieces:
            if self._kept is not None:
                certain.append(self._kept)
            self._buffer += piece
            text = self._drained()
            self._kept = text if self._buffer else None
            if self._kept is None:
                certain.append(text)
        return tuple(certain)

    def end(self) -> tuple[str, ...]:
        if self._kept is None:
            return ()
        # Half a tag is text, half a header is not.
        rest = "" if self._in_header else self._buffer
        return (self._kept + rest,)

    def _drained(self) -> str:
        """The visible text of the buffer, as far as it is certain."""
        text = ""
        while True:
            if self._in_header:
                if self._buffer and not _may_be_header(self._buffer):
                    text += self._begin("final")  # a model that leaves the header out
                    continue
                header, found, rest = self._buffer.partition(_MESSAGE)
                if not found:
                    return text
                self._buffer = rest
                text += self._begin(_channel(header))
            else:
                cut = _first_tag(self._buffer)
                text += self._buffer[:cut]
                self._buffer = self._buffer[cut:]
                if not self._buffer.startswith((_END, _START, _CHANNEL)):
                    return text
                self._buffer = self._buffer.removeprefix(_END)
                self._in_header = True

    def _begin(self, channel: str) -> str:
        """The visible text between the last message and a message on that channel."""
        self._in_header = False
        before, is_thought = self._state, channel not in {"final", ""}
        if before == "free":
            self._state = "thinking" if is_thought else "answering"
            return f"{_OPEN}\n" if is_thought else ""
        if before == "thinking" and not is_thought:
            self._state = "answering"
            return f"\n{_CLOSE}\n\n"
        return "\n\n"


def first_logprobs(
    logprobs: deque[tuple[float, ...]], num_pieces: int
) -> tuple[tuple[float, ...], ...] | None:
    """Take those of the oldest pieces, because a translator may have kept some back. None, which
    the monitors refuse, if fewer came.
    """
    if len(logprobs) < num_pieces:
        return None
    return tuple(logprobs.popleft() for _ in range(num_pieces))


def closes_thought(steps: Sequence[str]) -> bool:
    """Return whether one of these steps closes a thought that is open before them."""
    return any(_CLOSE in step for step in steps)


def is_in_thought(text: str, *, opened: bool) -> bool:
    """Return whether text after `text` is inside a thought; `opened` says that a thought was open
    before it.
    """
    # Both are -1 if neither is there.
    return (opened or _OPEN in text) and text.rfind(_OPEN) >= text.rfind(_CLOSE)


def tags_apart(
    parts: Sequence[StepPart], tags: Collection[str], *, opens: bool, closes: bool
) -> tuple[StepPart, ...]:
    """Return a step's parts with the tags of a thought as markup of their own.

    Only `tags` are taken out: an opening tag at the beginning if the step `opens`, and the first
    closing tag if it `closes`. The same words elsewhere are text.
    """
    found: list[StepPart] = []
    for index, part in enumerate(parts):
        text = part.text
        if opens and not index and not part.markup and _OPEN in tags and is_opening(text):
            blank, _, text = text.partition(_OPEN)
            found += [StepPart(blank), StepPart(_OPEN, markup=True)]
        if closes and not part.markup and _CLOSE in tags and _CLOSE in text:
            closes = False
            thought, _, text = text.partition(_CLOSE)
            found += [StepPart(thought), StepPart(_CLOSE, markup=True)]
        found.append(StepPart(text, part.markup))
    return tuple(part for part in found if part.text)


def is_opening(text: str) -> bool:
    """Return whether an answer that begins with `text` begins with an opening tag."""
    return text.lstrip().startswith(_OPEN)


def _after_opening(text: str) -> str:
    return text.lstrip().removeprefix(_OPEN).removeprefix("\n")


def _may_be_header(text: str) -> bool:
    return any(text.startswith(tag) or tag.startswith(text) for tag in (_START, _CHANNEL, _MESSAGE))


def _channel(header: str) -> str:
    """`final` of `<|start|>assistant<|channel|>final <|constrain|>json`."""
    name = header.partition(_CHANNEL)[2].partition("<|")[0].split()
    return name[0] if name else ""


def _first_tag(text: str) -> int:
    """The start of the first tag, or of text that may become a tag; the length if there is none."""
    start = text.find("<")
    while start >= 0:
        rest = text[start:]
        if any(rest.startswith(tag) or tag.startswith(rest) for tag in (_END, _START, _CHANNEL)):
            return start
        start = text.find("<", start + 1)
    return len(text)
