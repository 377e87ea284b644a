"""Keeps one trajectory's context, in one model's format, from call to call."""

import asyncio
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http import HTTPStatus

from proxy.backends.base import Call, Context, Question, Segment
from proxy.core.thinking import (
    THOUGHT_TAGS,
    Bridge,
    MappedSteps,
    Reasoning,
    Translator,
    closes_thought,
    is_opening,
    tags_apart,
)
from proxy.engine.borders import MAX_AHEAD, decisive
from proxy.engine.step_tokens import MappedStep, Parts, markup_of, tokens_of
from proxy.engine.upstream import Upstream
from proxy.errors import RequestError, UnknownToken, UpstreamDenied, UpstreamRefused

_ABOUT_MESSAGES = {HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY}
# Shows what a tokenizer adds to a prompt.
_PROBE = "a"


class Prompts:
    """Renders a request's question once for each upstream, for all of the request's trajectories.

    A failure is not kept: the next trajectory asks again.
    """

    def __init__(self) -> None:
        self._rendered: dict[str, Segment] = {}
        self._rendering: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def of(self, upstream: Upstream, question: Question, call: Call) -> Segment:
        """Return the question in the template of that upstream's model."""
        async with self._rendering[upstream.name]:
            if upstream.name not in self._rendered:
                self._rendered[upstream.name] = await _rendered(upstream, question, call)
            return self._rendered[upstream.name]


@dataclass(slots=True)
class ModelContext:
    """Brings the context to the wanted steps; only new steps are tokenised."""

    upstream: Upstream
    bridge: Bridge
    question: Question
    call: Call
    prompts: Prompts = field(default_factory=Prompts)
    """Shared by all contexts that begin with the same question."""
    _prompt: Segment | None = field(init=False, default=None)
    _prefix: str = field(init=False, default="")
    _context: Context | None = field(init=False, default=None)
    _visible: list[str] = field(init=False, default_factory=list)
    _mapped: list[MappedStep] = field(init=False, default_factory=list)
    """The visible steps as the model reads them."""
    _closed_at: int | None = field(init=False, default=None)
    """The first visible step that closes a thought."""
    _blank_lines_end: bool = field(init=False, default=False)
    _beginning: tuple[str, ...] = field(init=False, default=())
    """The answer's beginning in the question, as a step before all others."""

    def __post_init__(self) -> None:
        begun = self.question.begun
        if self.bridge.visible.opened:  # the prompt has the tag already
            begun = begun.removeprefix("<think>\n")
        self._beginning = (begun,) if begun else ()

    async def at(self, steps: Sequence[str], before: str = "", following: str = "") -> Context:
        """Return the prompt, the begun answer and exactly `steps`; see `Bridge.map_steps` for
        `before`.

        `following` is the text after them, whose beginning decides which tokens end in the last
        step (see `decisive`). Without it their text ends there, or is to be continued there: the
        tokens then stand for all of it.
        """
        steps = (*self._beginning, *steps)
        before = "" if self._beginning else before
        self._blank_lines_end = await self.upstream.blank_lines_end(self.call)
        if following:
            following = self._decisive(steps[-1], following)
        num_common = self._num_common(steps, following)
        closed = self._closed_at is not None and self._closed_at < num_common
        wanted = (*steps, following) if following else steps
        mapped = self.bridge.map_steps(wanted, before, num_common, closed=closed)
        if mapped.prefix != self._prefix and num_common:  # another context begins
            num_common, closed = 0, False
            mapped = self.bridge.map_steps(wanted, before)
        parts = await self._tags_apart(mapped.steps, wanted, before, closed=closed)
        context = await self._begun(mapped)
        context.truncate(num_common)
        del self._visible[num_common:]
        del self._mapped[num_common:]
        new = [
            MappedStep(of_step, self._ahead(steps, index, following))
            for index, of_step in enumerate(parts[: len(steps) - num_common], num_common)
        ]
        context.following = _words_of(parts[len(new) :])
        if new:
            earlier, after = reversed(self._mapped), context.following
            found = await tokens_of(self.upstream, new, earlier, after, self.call)
            for segment in found.segments:
                context.append(segment)
            if not found.segments[-1].token_ids and found.next_id is not None:
                context.look_ahead(found.next_id)
        self._visible += steps[num_common:]
        self._mapped += new
        if not closed:
            later = range(num_common, len(steps))
            self._closed_at = next((k for k in later if closes_thought(steps[k : k + 1])), None)
        return context

    async def _tags_apart(
        self, mapped: Sequence[Parts], wanted: Sequence[str], before: str, *, closed: bool
    ) -> Sequence[Parts]:
        """Make the tags of thoughts markup, if the model knows them and has tokens for them."""
        since = len(wanted) - len(mapped)
        new = wanted[since:]
        if not self._knows_tags or not any(tag in step for step in new for tag in THOUGHT_TAGS):
            return mapped
        tags = [tag for tag in THOUGHT_TAGS if await self.upstream.tag(tag, self.call)]
        prompt = self.question.prompt or ""
        opened = self.bridge.visible.opened or prompt.rstrip().endswith(THOUGHT_TAGS[0])
        thinks = opened or is_opening(before or wanted[0])
        apart: list[Parts] = []
        for index, parts in enumerate(mapped, since):
            opens = not (index or before or opened or self.bridge.own.opened)
            apart.append(tags_apart(parts, tags, opens=opens, closes=thinks and not closed))
            closed = closed or closes_thought(wanted[index : index + 1])
        return apart

    @property
    def _knows_tags(self) -> bool:
        """Return whether the model writes the tags of thoughts, so that they are no text."""
        if self.bridge == Bridge(Reasoning(), Reasoning()):  # nothing is mapped
            own = self.upstream.reasoning
            return own is not None and own.kind == "think"
        return self.bridge.own.kind == "think"

    def _num_common(self, steps: Sequence[str], following: str) -> int:
        """Return the number of steps that the last context shares with `steps`, tokens and all."""
        num = self._num_equal(steps)
        # The text after a step may be another one now. It decides about the last steps only.
        while num and self._ahead(steps, num - 1, following) != self._mapped[num - 1].ahead:
            num -= 1
        if num and num == len(steps) and self._context and not self._context.num_ids(num - 1):
            num -= 1  # the token in which that step lies is no part of a context, see `look_ahead`
        return num

    def _num_equal(self, steps: Sequence[str]) -> int:
        """Return the number of steps whose texts the last context shares with `steps`."""
        num_known = len(self._visible)
        if self._visible == list(steps[:num_known]):  # nearly always, and a loop is slow
            return num_known
        pairs = zip(self._visible, steps, strict=False)
        differing = (index for index, (own, wanted) in enumerate(pairs) if own != wanted)
        return next(differing, len(steps))

    def _ahead(self, steps: Sequence[str], index: int, following: str) -> str:
        """Return the text after a step that decides which tokens end in it."""
        after, later = "", index + 1
        while len(after) < MAX_AHEAD and later < len(steps):
            after += steps[later][:MAX_AHEAD]
            later += 1
        if len(after) < MAX_AHEAD:
            after += following
        return self._decisive(steps[index], after)

    def _decisive(self, step: str, after: str) -> str:
        return decisive(step, after, blank_lines_end=self._blank_lines_end)

    def translator(self, steps: Sequence[str], before: str = "") -> Translator:
        """Return the translator of the text that the model writes after `at(steps, before)`."""
        steps = (*self._beginning, *steps)
        before = "" if self._beginning else before
        return self.bridge.translator(self.bridge.map_steps(steps, before, len(steps)).state)

    async def _begun(self, mapped: MappedSteps) -> Context:
        """Return a context with the right prompt: the current one, unless its prefix differs."""
        if self._prompt is None:
            self._prompt = await self.prompts.of(self.upstream, self.question, self.call)
        if self._context is None or self._prefix != mapped.prefix:
            prompt = self._prompt
            if mapped.prefix:
                prefix = await markup_of(self.upstream, mapped.prefix, self.call)
                prompt = Segment(prompt.text + prefix.text, prompt.token_ids + prefix.token_ids)
            self._context = Context(prompt, question=self.question)
            self._prefix = mapped.prefix
            self._visible.clear()
            self._mapped.clear()
        return self._context


def _words_of(mapped: Sequence[Parts]) -> str:
    """Return the words with which the text after the steps begins, as the model reads them."""
    return "" if not mapped or mapped[0][0].markup else mapped[0][0].text


async def _rendered(upstream: Upstream, question: Question, call: Call) -> Segment:
    """Render the question. A server that refuses to do so refuses the client's messages."""
    if question.token_ids and question.tokens_of == upstream.name:
        return Segment(question.prompt or "", question.token_ids)
    with _refusing(question, "the chat template cannot render these messages"):
        try:
            return await upstream.reader.render(question, call)
        except UpstreamRefused as error:
            if not question.template_kwargs or error.http_status not in _ABOUT_MESSAGES:
                raise
            # Raises if the template cannot render these messages anyway.
            await upstream.reader.render(replace(question, template_kwargs={}), call)
            message = f"the chat template cannot render with these variables: {error}"
            raise RequestError(message, param="chat_template_kwargs") from error


async def with_text(question: Question, upstream: Upstream, call: Call) -> Question:
    """Return the question with the text of its tokens, which are in the upstream's vocabulary.

    The upstream gets the tokens as they are. Other models read the text, without the tokens that
    the tokenizer itself would put before it. Raises `RequestError` if it knows no such text.
    """
    reader = upstream.markup
    if reader is None:
        message = f"upstream '{upstream.name}' takes text only: send the prompt as a string"
        raise RequestError(message, param="prompt")
    ids = question.token_ids
    with _refusing(question, "the prompt's tokens have no text"):
        added = await reader.render(Question(prompt=_PROBE), call)
        plain = await reader.markup(_PROBE, call)
        lead = added.token_ids[: len(added.token_ids) - len(plain.token_ids)]
        if ids[: len(lead)] == lead:
            ids = ids[len(lead) :]
        text = await reader.prompt_text(Segment("", ids), call) if ids else ""
    return replace(question, prompt=text, tokens_of=upstream.name)


@contextmanager
def about_tokens(question: Question) -> Iterator[None]:
    """Turn the refusal of a token into one of the question's, if it was given in tokens."""
    try:
        yield
    except UnknownToken as error:
        if not question.token_ids:
            raise
        message = f"the prompt has a token that the model does not have: {error}"
        raise RequestError(message, param="prompt") from error


@contextmanager
def _refusing(question: Question, what: str) -> Iterator[None]:
    """Turn a server's refusal into one of the client's question."""
    try:
        yield
    except UpstreamRefused as error:
        is_known = error.http_status is not None or isinstance(error, UpstreamDenied)
        if is_known and error.http_status not in _ABOUT_MESSAGES:
            raise
        field_name = "messages" if question.messages else "prompt"
        raise RequestError(f"{what}: {error}", param=field_name) from error
