"""Lists what a kind of server must say of itself so that the contract's tests can check it."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from proxy.backends.base import (
    Context,
    Draft,
    MarkupReader,
    Message,
    Question,
    Reader,
    Sampling,
    ScoredToken,
    Segment,
    TokenScorer,
    Writer,
)
from proxy.core.types import FinishReason, StepScore
from proxy.errors import MotabError
from tests.support.replay import (
    CALL,
    GREEDY,
    Answer,
    Recording,
    Replay,
    Reply,
    json_reply,
    stream_reply,
)

Played = Reply | Answer
"""The reply of the scripted server to a request."""
Edit = Callable[[Any], object]
"""Breaks the part of an answer that it is given."""
EVERY_FIELD = Sampling(0.6, 0.95, 1, (".\n\n", "END"))
BREAKS = {"nothing": b"", "done": b"data: [DONE]\n\n", "a comment": b": nothing\n\n"}
"""Bytes in place of the end of a stream, for servers that end their streams with [DONE]."""
ODD_EVENTS = {"no json": b"{oops}", "nothing": b"{}", "a number": b"7"}
ODD_COMPLETIONS = {
    "no json": b"{oops}",
    "a number": b"7",
    "a text that is none": b'{"choices": [{"text": 7}]}',
}
"""Events that no stream of completions has."""
QUIET_COMPLETIONS = {
    "nothing": b"{}",
    "no choices": b'{"choices": null}',
    "an empty choice": b'{"choices": [{}]}',
    "null in all fields": b'{"choices": [{"text": null, "finish_reason": null}]}',
    "an empty reason": b'{"choices": [{"text": "", "finish_reason": ""}]}',
    "usage alone": b'{"usage": {"prompt_tokens": 3}}',
    "no error": b'{"error": null, "choices": []}',
}
"""Events of completions that say nothing, as gateways send them."""
COMPLETION_FIELDS: dict[str, Any] = {
    "max_tokens": 24,
    "temperature": 0.6,
    "top_p": 0.95,
    "stream": True,
    "stream_options": {"include_usage": True},
    "stop": [".\n\n", "END"],
    "seed": 1,
}
"""A write with `EVERY_FIELD` as every server with OpenAI's routes is asked for it."""
TEMPLATE = "{{ messages[0].content }}\n\n{{ messages[-1].content }} is"
TEMPLATED = Question((Message("system", "Paris is nice."), Message("user", "Berlin")))
PARIS = Segment("Paris is nice.\n\nBerlin is", (38634, 314, 9239, 30, 198, 198, 24726, 4226, 314))
"""`TEMPLATED` in `TEMPLATE`, as the recorded tokenizers cut it."""


@dataclass(frozen=True)
class Asked:
    """A write as it is asked for."""

    context: Context
    sampling: Sampling = GREEDY
    max_tokens: int = 24

    def asking(self, *, logprobs: bool) -> "Asked":
        """The same write, with log-probabilities or without."""
        return replace(self, sampling=replace(self.sampling, logprobs=logprobs))


@dataclass(frozen=True, kw_only=True)
class Stream:
    """A recorded stream and what a backend must make of it."""

    body: bytes
    asked: Asked
    """How it was asked for when it was recorded."""
    text: str
    end: FinishReason
    num_pieces: int | None = None
    """None where a tokenizer of ours counts."""
    pieces: tuple[str, ...] | None = None
    logprobs: tuple[float, ...] | None = None
    """The log-probabilities of the first pieces at least; NaN where the server gave none."""
    request: Any = None
    """None where the recording asked for more than motab does."""


@dataclass(frozen=True)
class Failure:
    """An answer that must end in this error, whose message matches `words`."""

    body: bytes
    error: type[MotabError]
    words: str = "upstream 'up'"
    status: int = 200


@dataclass(frozen=True)
class Resumable:
    """A recorded stream that is resumed wherever it breaks."""

    body: bytes
    tokens: tuple[tuple[int, str], ...]
    """Ids and strings of all its tokens."""
    hides_ids: bool = False
    """A token whose text does not come hides the ids, so that it may never be resumed."""
    prompt: tuple[int, ...] = (1, 2, 3)
    """The recorded prompt, where the server's count of its tokens is read."""


@dataclass(frozen=True, kw_only=True)
class WritingContract:
    """Describes how a server writes."""

    path: str
    writer: Callable[[Replay], AbstractAsyncContextManager[Writer]]
    asked: Asked
    streams: Mapping[str, Stream]
    cached: Mapping[str, tuple[bytes, tuple[int | None, ...]]]
    """Streams, and the number of cached tokens in each of their drafts."""
    sent: Any
    """The request for `asked` with the sampling `EVERY_FIELD`."""
    begun: bytes
    """The first events of a stream."""
    first: tuple[str, ...]
    """The pieces of the first draft of `begun`."""
    breaks: Mapping[str, bytes]
    """Bytes after `begun` in streams that break off."""
    failures: Mapping[str, Failure]
    """Streams of status 200 that end in an error."""
    odd_events: Mapping[str, bytes]
    """Events of another shape; empty where a library reads them."""
    healthy: Any
    health: str = "/v1/models"
    """The path that `check` asks for."""
    resumable: Mapping[str, Resumable] = field(default_factory=dict)
    """Empty where streams have no token ids."""
    prompt_and_limit: Callable[[Any], tuple[list[int], int]] = lambda _: ([], 0)
    """The prompt's ids and the token limit in a request's body."""


@dataclass(frozen=True, kw_only=True)
class ReadingContract:
    """Describes how a server turns text into tokens."""

    path: str
    connect: Callable[[Replay], Awaitable[Reader]]
    connected: Callable[[Replay], None]
    """Scripts what `connect` asks for."""
    reader: Callable[[Replay, str | None], MarkupReader]
    """The backend with this chat template, or with the server's own."""
    rendering: Callable[[Replay], None]
    """Scripts what `render` asks for."""
    rendered: Segment
    template: str
    templated: tuple[Question, Played, Segment]
    """A question, the tokenizer's answer, and what the template makes of it."""
    raw_prompt: Played
    markup_request: Any
    """The request for the tokens of `<|end|>`."""
    encoding: Played
    encoded: tuple[Segment, ...]
    special_text: Played
    special_text_ids: tuple[int, ...]
    """The tokens of `<|im_end|>\\nHi` as text."""
    no_text: Played | None
    """None where nothing is asked for."""
    unconnectable: Mapping[str, Any]
    """Answers to `connect` that do not say how the tokenizer cuts."""


@dataclass(frozen=True, kw_only=True)
class ScoringContract:
    """Describes how a server scores given text; each answer is built when it is asked."""

    path: str
    scorer: Callable[[Replay], TokenScorer]
    context: Callable[[], Context]
    num_new: int
    top_k: int
    recorded: Callable[[], Played]
    steps: Callable[[], list[StepScore]]
    """The scores, computed here from the recording."""
    next_entropy: Callable[[], float | None]
    num_cached: int | None
    known_values: Any
    """Approximate values that were seen when the answer was recorded, or that another way gives."""
    known_entropies: tuple[Any, ...] = ()
    """Approximate entropies of the first steps."""
    of_last_step: Callable[[], Played]
    """The answer where only the last step is new."""
    impossible: Mapping[str, Callable[[], Played]]
    """A token of the second step that has probability 0."""
    broken: Mapping[str, Callable[[], Played]]
    with_literal: Callable[[bytes], Played]
    """The answer in which a log-probability is this."""
    without_tokens: Callable[[], Context]
    """A context in which one new step has no tokens."""
    token_context: Callable[[], Context]
    token_answers: Callable[[Replay], None]
    tokens: Callable[[], tuple[ScoredToken, ...]]
    """The ends and log-probabilities of the last step of `token_context`."""
    token_requests: Callable[[], list[Any]]
    refusals: Mapping[str, Failure]
    """Error answers, the same for writes."""


@dataclass(frozen=True, kw_only=True)
class Server:
    """One kind of server; a part is None where such a server does not do it."""

    kind: str
    writing: WritingContract
    reading: ReadingContract | None = None
    scoring: ScoringContract | None = None


def write(writer: Writer, asked: Asked) -> AsyncGenerator[Draft]:
    """Begin the write."""
    return writer.write(asked.context, asked.sampling, asked.max_tokens, CALL)


async def drafts_of(
    up: Replay, server: WritingContract, *chunks: bytes, asked: Asked | None = None
) -> list[Draft]:
    """Drafts that a backend makes of a stream that comes in these chunks."""
    up.on("POST", server.path, stream_reply(*chunks))
    async with server.writer(up) as writer:
        return [draft async for draft in write(writer, asked or server.asked)]


def always(make: Callable[[Replay], Writer]) -> Callable[..., AbstractAsyncContextManager[Writer]]:
    """A writer that nothing has to close."""
    return lambda up: nullcontext(make(up))


def first_events(body: bytes, num_events: int) -> bytes:
    """The beginning of a stream."""
    return b"".join(event + b"\n\n" for event in body.split(b"\n\n")[:num_events])


def error_answers(
    recording: Recording, errors: Mapping[tuple[int, type[MotabError]], tuple[str, ...]]
) -> dict[str, Failure]:
    """The recorded answers `error_...` by the status they had and the error they must become."""
    return {
        name: Failure(recording.body(f"error_{name}"), error, status=status)
        for (status, error), names in errors.items()
        for name in names
    }


def edited_answers(
    whole: Callable[[], Any], part: Callable[[Any], Any], edits: Mapping[str, Edit]
) -> dict[str, Callable[[], Played]]:
    """The answer after each edit of its part."""

    def answer(edit: Edit) -> Played:
        payload = whole()
        edit(part(payload))
        return json_reply(payload)

    return {name: partial(answer, edit) for name, edit in edits.items()}
