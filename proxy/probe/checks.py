"""Checks an upstream's text: rendering, tokens, writing, streams, stop strings."""

import asyncio
import time
from collections.abc import Awaitable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from proxy.backends.base import Call, Context, Message, Question, Reader, Sampling, Segment
from proxy.backends.transport.resume import ResumingWriter
from proxy.core.types import FinishReason
from proxy.engine.upstream import Upstream
from proxy.errors import (
    ContextExceeded,
    MotabError,
    RequestError,
    RouterTokenises,
    UpstreamMalformed,
    UpstreamRefused,
    first_error,
)
from proxy.probe.report import Check, failed, no, not_applicable, ok

LIMIT_S = 120.0
"""Seconds that a check may take; a slow server scores 200 forced tokens in that time."""
_CHAT = (Message("user", "Count from one to thirty in words, separated by commas."),)
_OTHER_CHAT = (Message("user", "Count from thirty to one in words, separated by commas."),)
_SYSTEM = Message("system", "Answer briefly.")
# For a model without a chat template.
_RAW = "One, two, three, four, five, six, seven, eight,"
_SAMPLES = (
    "Let us see.\n\n",
    " 7 + 5 = 12, so\n",
    "na\u00efve caf\u00e9, \u6771\u4eac \U0001f680\n\n",
    "<|im_end|> is text here",
)
_WORD = "word"
_NUM_TOKENS = 48
_NUM_DECODED = 24
_STOP_LENGTH = 3
# A buffered stream takes a measurable time, and all of it comes in the last twentieth of that time.
_BUFFERED_FROM_S = 0.5
_BUFFERED_SHARE = 0.05
_NUM_AGAIN = 2
# More than the window of any model, in the numbers that servers take.
_TOO_MANY = 100_000_000
_STARTS = {"think": "<think>", "harmony": "<|channel|>"}
"""The beginnings of a text by its format of thoughts."""


@dataclass(slots=True)
class Subject:
    """The upstream that is checked. `question` is a chat once its template is known to render.

    `is_embedded` says that a tokenizer here comes from the model's own folder. The server's is made
    from it, and may cut text otherwise, which does not matter, because it is sent ids.
    """

    upstream: Upstream
    call: Call
    limit_s: float = LIMIT_S
    is_embedded: bool = False
    question: Question = field(default_factory=lambda: Question(prompt=_RAW))

    async def context(self, texts: Sequence[str] = ()) -> Context:
        """The question, and `texts` as steps after it."""
        reader = self.upstream.reader
        prompt = await reader.render(self.question, self.call)
        steps = await reader.encode(texts, self.call) if texts else []
        return Context(prompt, steps, question=self.question)

    async def attempt(self, work: Awaitable[Check]) -> Check:
        """Return the check's result; a failure on the way is a result, too."""
        try:
            async with asyncio.timeout(self.limit_s):
                return await work
        except TimeoutError:
            return failed(f"no answer within {self.limit_s:g} s")
        except MotabError as error:
            return failure(error, self.upstream.name)
        except BaseExceptionGroup as errors:
            return failure(first_error(errors), self.upstream.name)


def failure(error: BaseException, upstream: str) -> Check:
    """Turn an error into a check's result. Raises it again if it is a defect of ours."""
    if not isinstance(error, MotabError):
        raise error
    reason = str(error).removeprefix(f"upstream '{upstream}': ")
    # The server would refuse again; any other error may be a passing fault.
    refused = isinstance(error, UpstreamRefused | RequestError)
    return no(reason) if refused else failed(reason)


async def chat_template(subject: Subject) -> Check:
    """Check whether messages become a prompt. If so, the next checks ask chat questions."""
    reader, call = subject.upstream.reader, subject.call
    chat = await reader.render(Question(_CHAT), call)
    other = await reader.render(Question(_OTHER_CHAT), call)
    if chat.token_ids == other.token_ids and chat.text == other.text:
        return no("two questions are rendered alike: the template leaves the message out")
    try:
        await reader.render(Question((_SYSTEM, *_CHAT)), call)
        takes_system = True
    except (UpstreamRefused, RequestError):
        takes_system = False
    subject.question = Question(_CHAT)
    num_tokens = len(chat.token_ids)
    about = "" if takes_system else "; it refuses system messages"
    return ok(f"renders{about}", num_tokens=num_tokens, takes_system=takes_system)


async def tokenizer(subject: Subject) -> Check:
    """Check whether the configured tokenizer gives the server's ids, for prompts and steps."""
    reader, call = subject.upstream.reader, subject.call
    writer = subject.upstream.writer
    server: object = writer.server if isinstance(writer, ResumingWriter) else writer
    steps = await reader.encode(_SAMPLES, call)
    if reader is server:
        return ok("the server's own", source="server")
    if subject.is_embedded:
        return ok("the model folder's own", source="local")
    if not isinstance(server, Reader):
        return not_applicable("local, and the server has no tokenizer to compare it with")
    try:
        return await _compared(reader, server, steps, call)
    except RouterTokenises:
        return not_applicable("local, and a router tokenises in the server's place")


async def _compared(reader: Reader, server: Reader, steps: Sequence[Segment], call: Call) -> Check:
    for text in _SAMPLES:
        question = Question(prompt=text)
        ours, theirs = await reader.render(question, call), await server.render(question, call)
        if ours.token_ids != theirs.token_ids:
            return _other_ids("the prompt", text, ours, theirs)
    count = f"{len(_SAMPLES)} texts"
    if not await _reads_words_alike(reader, server, call):
        reason = "its ids for steps cannot be compared: it puts a space before every text"
        return ok(f"local, with the server's ids for {count}; {reason}", source="local")
    for ours, theirs in zip(steps, await server.encode(_SAMPLES, call), strict=True):
        if ours.token_ids != theirs.token_ids:
            return _other_ids("the step", ours.text, ours, theirs)
    return ok(f"local, with the server's ids for {count}", source="local")


async def _reads_words_alike(reader: Reader, server: Reader, call: Call) -> bool:
    """Return whether both give the same ids for a single word.

    They do not if the server's tokenizer, like Llama 2's, puts a space before every text, which a
    backend may report as malformed.
    """
    (ours,) = await reader.encode([_WORD], call)
    try:
        (theirs,) = await server.encode([_WORD], call)
        alike = ours.token_ids == theirs.token_ids
    except* UpstreamMalformed:
        alike = False
    return alike


def _other_ids(what: str, text: str, ours: Segment, theirs: Segment) -> Check:
    ids = f"{list(ours.token_ids)} here, {list(theirs.token_ids)} at the server"
    return no(f"{what} {text!r} is {ids}", source="local")


@dataclass(frozen=True, slots=True)
class Written:
    """A greedy answer: its text, and the times when it came, in seconds after the request.

    `waited_s` is what a single token takes, in a queue or for its prompt, if that was measured.
    """

    text: str
    num_tokens: int
    num_chunks: int
    first_s: float
    last_s: float
    end: FinishReason | None
    waited_s: float = 0.0


async def write(subject: Subject, num_tokens: int, stop: tuple[str, ...] = ()) -> Written:
    """Let the upstream write, as far as its model's window allows."""
    context = await subject.context()
    num_tokens = max(
        1, subject.upstream.budget.allowance(len(context.token_ids), num_tokens).tokens
    )
    sampling = Sampling(temperature=0.0, stop=stop)
    text, count, end = "", 0, None
    times: list[float] = []
    started = time.perf_counter()
    drafts = subject.upstream.writer.write(context, sampling, num_tokens, subject.call)
    async with aclosing(drafts):
        async for draft in drafts:
            if draft.pieces:
                times.append(time.perf_counter() - started)
            text += "".join(draft.pieces)
            count += len(draft.pieces)
            end = draft.end or end
    first_s, last_s = (times[0], times[-1]) if times else (0.0, 0.0)
    return Written(text, count, len(times), first_s, last_s, end)


async def writes(subject: Subject) -> Check:
    """Check whether the upstream continues a context at all. Also warms it up."""
    written = await write(subject, 4)
    if not written.text:
        return no(f"it wrote no text (its end: {written.end})")
    return ok("continues a prompt", num_tokens=written.num_tokens)


def looks_buffered(written: Written) -> bool:
    """Return whether the text came all at once, long after a single token would have come."""
    writing_s = written.last_s - written.waited_s
    spread_s = written.last_s - written.first_s
    return writing_s > _BUFFERED_FROM_S and spread_s < _BUFFERED_SHARE * writing_s


async def measured(subject: Subject) -> Written:
    """Let the upstream write a text long enough to be timed.

    A text that looks buffered is written again, because a server or this machine may just have been
    busy; what holds streams back always does.
    """
    written = await write(subject, _NUM_TOKENS)
    for _ in range(_NUM_AGAIN):
        if written.num_chunks == 1 or not looks_buffered(written):
            break
        waited_s = (await write(subject, 1)).last_s
        written = replace(await write(subject, _NUM_TOKENS), waited_s=waited_s)
    return written


def streams(written: Written) -> Check:
    """Check whether text comes while it is written, and how fast."""
    num_tokens, num_chunks = written.num_tokens, written.num_chunks
    if num_tokens < 2:
        return failed(f"it ended after {num_tokens} token(s), which shows nothing")
    values = {
        "num_tokens": num_tokens,
        "num_chunks": num_chunks,
        "first_token_s": round(written.first_s, 4),
    }
    if num_chunks == 1:
        return no(f"all {num_tokens} tokens came in one chunk", **values)
    spread_s = written.last_s - written.first_s
    if looks_buffered(written):
        after = f"all {num_chunks} chunks came at once, after {written.last_s:.2f} s"
        return no(f"{after}: something holds the stream back", **values)
    pace_ms = 1000 * spread_s / (num_tokens - 1)
    pace = f"first after {written.first_s:.2f} s, then {pace_ms:.1f} ms a token"
    return ok(
        f"{num_tokens} tokens in {num_chunks} chunks, {pace}",
        **values,
        ms_per_token=round(pace_ms, 2),
    )


async def stop_strings(subject: Subject, before: Written) -> Check:
    """Check whether a stop string ends the text and is left out of it, as OpenAI's does.

    `before` is the same greedy text without a stop string.
    """
    position = _stop_position(before.text)
    if position is None:
        return failed(f"its text {before.text!r} has no place for a stop string")
    stop = before.text[position : position + _STOP_LENGTH]
    written = await write(subject, _NUM_TOKENS, (stop,))
    if written.text.endswith(stop) and written.end == "stop":
        return no(f"it stops at {stop!r}, but leaves it in the text", stops=True, trims=False)
    if stop in written.text:
        return no(f"it kept writing after the stop string {stop!r}", stops=False, trims=False)
    if written.text == before.text[:position] and written.end == "stop":
        return ok("stops, and leaves the stop string out", stops=True, trims=True)
    return failed("its second greedy text is not like the first, which shows nothing")


def _stop_position(text: str) -> int | None:
    """The place nearest to the middle at which a few letters come for the first time."""

    def is_first(position: int) -> bool:
        letters = text[position : position + _STOP_LENGTH]
        return letters.isalnum() and text.find(letters) == position

    places = [p for p in range(1, len(text) - _STOP_LENGTH + 1) if is_first(p)]
    return min(places, key=lambda place: abs(place - len(text) // 2), default=None)


async def decode_logprobs(subject: Subject) -> Check:
    """Check whether the upstream gives the log-probabilities of the text that it writes."""
    context = await subject.context()
    decoded = await subject.upstream.writer.decode(context, _NUM_DECODED, subject.call)
    if not decoded.pieces:
        return failed("no token of its text consists of whole characters")
    num_tokens = sum(map(len, decoded.logprobs))
    return ok(f"of {num_tokens} tokens", num_tokens=num_tokens)


async def reasoning(subject: Subject, written: Written | None) -> Check:
    """Check whether the format of thoughts that the template shows is the format of the text."""
    upstream = subject.upstream
    found = upstream.reasoning
    if found is None:
        return not_applicable("it is not known")
    text = "" if written is None else written.text.lstrip()
    for kind, start in _STARTS.items():
        if found.kind == "none" and text.startswith(start):
            seen = f"the template shows no thoughts, but the text begins with {start}"
            return no(f"{seen}: set reasoning: {kind}", kind=kind)
    return ok(f"{found}", kind=found.kind)


async def learn_limits(subject: Subject) -> None:
    """Ask for more than any model writes where the window is not known: a refusal may name it."""
    upstream = subject.upstream
    if upstream.budget.limits.context_tokens is not None:
        return
    context = await subject.context()
    drafts = upstream.writer.write(context, Sampling(temperature=0.0), _TOO_MANY, subject.call)
    try:
        async with aclosing(drafts):
            async for draft in drafts:
                if draft.pieces:
                    return
    except (ContextExceeded, UpstreamRefused) as error:
        upstream.budget.learn(error, len(context.token_ids), _TOO_MANY)


async def texts(subject: Subject) -> dict[str, Check]:
    """Run all of the checks above in sequence; the keys are their names in the report."""
    attempt = subject.attempt
    found = {
        "chat_template": await attempt(chat_template(subject)),
        "tokenizer": await attempt(tokenizer(subject)),
        "writes": await attempt(writes(subject)),
    }
    if found["writes"].result != "ok":
        silent = not_applicable("it does not write")
        silenced = dict.fromkeys(
            ("streams", "stop_strings", "decode_logprobs", "reasoning"), silent
        )
        return {**found, **silenced}
    written: Written | None = None

    async def long_write() -> Check:
        nonlocal written
        written = await measured(subject)
        return streams(written)

    found["streams"] = await attempt(long_write())
    if written is None:
        found["stop_strings"] = not_applicable("there is no stream to stop")
    else:
        found["stop_strings"] = await attempt(stop_strings(subject, written))
    found["decode_logprobs"] = await attempt(decode_logprobs(subject))
    found["reasoning"] = await attempt(reasoning(subject, written))
    return found
