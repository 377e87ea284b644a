"""Speaks to hosted chat APIs, through the litellm library (https://docs.litellm.ai).

Such an API takes messages and gives text: no token ids, no log-probabilities of given text. Tokens
are therefore counted by a tokenizer of ours, and a teacher scores by judging (`backends.judges`).
"""

import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from proxy.backends.base import GREEDY, Call, Context, Decoded, Draft, Question, Reader, Sampling
from proxy.backends.judges.judge import Answer, Candidate, JudgeLogprob, JudgeSample, find_judges
from proxy.backends.limits import ModelLimits
from proxy.backends.servers.chat_text import ChatText, counted_pieces, seam_of
from proxy.backends.servers.litellm_library import (
    leave_connections,
    share_connections,
    translated,
)
from proxy.backends.servers.model_list import count_in, listed_limits
from proxy.backends.servers.sampling_fields import vllm_sampling
from proxy.backends.tokens.sent_text import SentText
from proxy.backends.tokens.wire_values import end_of, text_of
from proxy.backends.transport.calls import Calls, call_headers
from proxy.backends.transport.http import UpstreamClient
from proxy.core.types import FinishReason
from proxy.errors import RequestError, UpstreamError, UpstreamRefused

_log = logging.getLogger(__name__)

Continuation = Literal["prefill", "continue_final_message", "instruct"]
"""The way to make a chat model continue a text: an assistant message, which Anthropic, DeepSeek and
Mistral continue; vLLM's and SGLang's field for that; or an instruction in words."""

CONTINUE_PROMPT = (
    "Your answer above stops before its end. Go on from exactly where it stops: write only what "
    "comes next, repeat nothing of it and say nothing about it."
)
# Afterwards nothing is known: where nobody asks because of the failure, no call can succeed.
_FAILURE_COUNTS_S = 60.0
_PATH = "/chat/completions"
# litellm's name of a vLLM server, whose fields beyond OpenAI's are known.
_VLLM = "hosted_vllm"
_EFFORT = "reasoning_effort"
_HAVE_TOP_K = {"anthropic", "gemini"}
_CONTINUED_FIELDS = {"continue_final_message": True, "add_generation_prompt": False}


@dataclass(frozen=True, slots=True)
class HostedModel:
    """A hosted model, and the way to call it."""

    model: str
    """With litellm's name of the provider in front: `openrouter/openai/gpt-oss-120b`."""
    api_key: str | None = None
    """None: the provider's own environment variable holds it, if it needs one."""
    base_url: str | None = None
    continuation: Continuation | None = None
    """None: as litellm's model list says, if it has the model."""
    keep_reasoning: bool = True
    """Whether thoughts that the API sends separately are part of the text."""
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """`reasoning_effort`, and for vLLM all variables of its chat template; a question may replace
    them."""


class LiteLLM:
    """A hosted model that writes and answers questions; `scorers` are the judges that it can be."""

    scorers: tuple[JudgeLogprob | JudgeSample, ...] = ()

    def __init__(
        self,
        library: Any,  # noqa: ANN401
        calls: Calls,
        models: UpstreamClient | None,
        hosted: HostedModel,
        reader: Reader,
        sent: SentText | None = None,
    ) -> None:
        """`models` is a client of the API's `base_url`, from which `check` gets the list of models;
        `reader` counts tokens; `sent` refuses what the server would misread.
        """
        self._library = library
        self._calls = calls
        self._models = models
        self._hosted = hosted
        self._reader = reader
        self._sent = sent
        self._failure: tuple[UpstreamError, float] | None = None
        share_connections(self)
        with self._translated():
            _, self._provider, _, _ = self._library.get_llm_provider(
                hosted.model, api_base=hosted.base_url
            )
        self.continuation = hosted.continuation or self._known_continuation()
        """None: it cannot continue a text."""
        self._is_steady = self._takes(temperature=0.0)
        self.takes_template_kwargs: bool = self._provider == _VLLM
        """Whether the API has a chat template that takes variables."""
        self.takes_effort: bool = self.takes_template_kwargs or self._takes(reasoning_effort="low")
        self.unsampled = frozenset(self._unsampled())
        """The sampling values that the API has no field for, or by no name that is known here."""

    @property
    def upstream(self) -> str:
        return self._calls.upstream

    async def connect(self, *, scores: bool) -> None:
        """Ask the model a short question or, if it `scores`, find out which judge it can be."""
        if scores:
            self.scorers = await find_judges(self, Call("connect"))
        else:
            await self.ask("Hello", 1, None, Call("connect"))
        if self.continuation == "instruct":
            message = (
                "upstream '%s' continues texts by an instruction in words, which may be inexact"
            )
            _log.warning(message, self.upstream)
        if not self._is_steady:
            message = "upstream '%s' refuses temperature 0: the same step may get different marks"
            _log.warning(message, self.upstream)

    async def aclose(self) -> None:
        """Close litellm's connections, if no other upstream of this kind uses them."""
        await leave_connections(self._library, self)

    async def check(self) -> None:
        """Ask for the list of models if there is a `base_url`. Without a `base_url` every call
        costs money: raise the error of the last call instead, if it failed not long ago.
        """
        if self._models is not None:
            try:
                await self._models.get("/models")
            except UpstreamRefused:
                _log.debug("upstream '%s' is there, but lists no models", self.upstream)
        elif self._failure is not None:
            error, at = self._failure
            if time.monotonic() - at < _FAILURE_COUNTS_S:
                raise error

    async def write(
        self, context: Context, sampling: Sampling, max_tokens: int, call: Call
    ) -> AsyncGenerator[Draft]:
        so_far = "".join(context.texts)
        request = {
            **self._common(call),
            **self._messages(context, so_far),
            **_sampled(sampling),
            **self._thinking(context.question),
            "max_tokens": max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self._provider == _VLLM:
            own = self._vllm_fields(context.question, sampling)
            request["extra_body"] = {**request.get("extra_body", {}), **own}
        text = ChatText(so_far, keep_reasoning=self._hosted.keep_reasoning)
        end: FinishReason | None = None
        num_cached: int | None = None
        async with AsyncExitStack() as stack:
            stream = await self._calls.retried(
                lambda: stack.enter_async_context(self._opened(request, call))
            )
            timeout_s = self._calls.timeouts.answer_s
            while (chunk := await self._next(stream, timeout_s)) is not None:
                timeout_s = self._calls.timeouts.stall_s
                with self._calls.expecting("a stream event"):
                    event = _event(chunk, self.upstream)
                self._calls.expect_no_text_after(end, event.reasoning + event.content)
                end = event.end or end
                num_cached = event.num_cached_tokens if event.is_usage else num_cached
                if piece := text.feed(event.reasoning, event.content):
                    yield Draft(await counted_pieces(piece, self._reader, call))
            # litellm makes up an end if the API sent none.
            if stream.received_finish_reason is None or end is None:
                raise self._calls.broken_off()
        yield Draft((), end, num_cached)

    async def decode(self, context: Context, max_tokens: int, call: Call) -> Decoded:  # noqa: ARG002
        raise UpstreamRefused(self.upstream, "a hosted chat API gives no token's log-probability")

    async def ask(
        self, prompt: str, max_tokens: int, top_logprobs: int | None, call: Call
    ) -> Answer:
        if self._sent is not None:
            self._sent.check(prompt)
        request = {
            **self._common(call),
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": max_tokens,
        }
        if self._is_steady:
            request["temperature"] = 0.0
        if top_logprobs is not None:
            request |= {"logprobs": True, "top_logprobs": top_logprobs}
        request |= self._thinking(Question())
        if self._provider == _VLLM:
            request["extra_body"] = self._vllm_fields(Question(), GREEDY)

        async def attempt() -> Any:  # noqa: ANN401
            with self._calls.observed(_PATH, call):
                return await self._complete(request)

        reply = await self._calls.retried(attempt)
        with self._calls.expecting("the answer"):
            choice = reply.choices[0]
            return Answer(
                text=text_of(choice.message.content),
                is_whole=end_of(choice.finish_reason, self.upstream) in {None, "stop"},
                top=_first_top(getattr(choice, "logprobs", None)),
                num_cached_tokens=_cached_tokens(getattr(reply, "usage", None)),
            )

    def _common(self, call: Call) -> dict[str, Any]:
        """The fields of every request. Retries are ours alone."""
        hosted = self._hosted
        return {
            "model": hosted.model,
            "api_key": hosted.api_key,
            "api_base": hosted.base_url,
            "extra_headers": call_headers(call),
            "max_retries": 0,
            "num_retries": 0,
            "drop_params": False,
        }

    def _messages(self, context: Context, so_far: str) -> dict[str, Any]:
        """The question, and the text so far as an answer to continue."""
        messages: list[dict[str, Any]] = [*context.question.wire_messages()]
        if self._sent is not None:
            for text in (*(message["content"] for message in messages), so_far):
                self._sent.check(text)
        begun = seam_of(so_far)
        if not begun:
            return {"messages": messages}
        answer: dict[str, Any] = {"role": "assistant", "content": begun}
        match self.continuation:
            case "prefill":
                return {"messages": [*messages, {**answer, "prefix": True}]}
            case "continue_final_message":
                return {"messages": [*messages, answer], "extra_body": _CONTINUED_FIELDS}
            case "instruct":
                instruction = {"role": "user", "content": CONTINUE_PROMPT}
                return {"messages": [*messages, answer, instruction]}
            case None:
                message = f"upstream '{self.upstream}' cannot continue a text: set `continuation`"
                raise RequestError(message, param="model")

    def _unsampled(self) -> Iterator[str]:
        if self._provider == _VLLM:
            return
        yield from ("min_p", "repetition_penalty")
        if self._provider not in _HAVE_TOP_K:
            yield "top_k"
        for name in ("presence_penalty", "frequency_penalty"):
            if not self._takes(**{name: 0.1}):
                yield name

    def _thinking(self, question: Question) -> dict[str, Any]:
        """The effort, where it was asked for and the API has a field for it."""
        effort = question.under(self._hosted.template_kwargs).template_kwargs.get(_EFFORT)
        if effort is None or self._provider == _VLLM or not self.takes_effort:
            return {}
        return {_EFFORT: effort}

    def _vllm_fields(self, question: Question, sampling: Sampling) -> dict[str, Any]:
        """The sampling fields, and the variables of the chat template."""
        fields = vllm_sampling(sampling)
        if kwargs := question.under(self._hosted.template_kwargs).template_kwargs:
            fields["chat_template_kwargs"] = kwargs
        return fields

    async def limits(self) -> ModelLimits:
        """Return the limits of litellm's model list, or lower limits of the API's own."""
        known = self._known()
        limits = ModelLimits(
            count_in(known, "max_input_tokens"), None, count_in(known, "max_output_tokens")
        )
        if self._models is None:
            return limits
        model = self._hosted.model.partition("/")[2] or self._hosted.model
        return limits.lower(await listed_limits(self._models, model, "/models"))

    def _known(self) -> dict[str, Any]:
        """The entry of litellm's model list; empty if it lacks the model."""
        model, listed = self._hosted.model, self._library.model_cost
        return dict(listed.get(model) or listed.get(model.partition("/")[2]) or {})

    def _known_continuation(self) -> Continuation | None:
        if self._provider == _VLLM:
            return "continue_final_message"
        return "prefill" if self._known().get("supports_assistant_prefill") else None

    def _takes(self, **parameters: Any) -> bool:  # noqa: ANN401
        """Return whether the model accepts these parameters, by litellm's own tables."""
        try:
            self._library.utils.get_optional_params(
                model=self._hosted.model.partition("/")[2] or self._hosted.model,
                custom_llm_provider=self._provider,
                drop_params=False,
                **parameters,
            )
        except self._library.exceptions.UnsupportedParamsError:
            return False
        return True

    @asynccontextmanager
    async def _opened(self, request: dict[str, Any], call: Call) -> AsyncIterator[Any]:
        """One attempt at a stream, from the answer's head to its end; closing it cancels it."""
        with self._calls.observed(_PATH, call):
            stream = await self._complete(request)
            try:
                yield stream
            finally:
                await stream.aclose()

    async def _complete(self, request: dict[str, Any]) -> Any:  # noqa: ANN401
        with self._translated():
            coming = self._library.acompletion(**request)
            reply = await self._calls.awaited(coming, self._calls.timeouts.answer_s)
        self._failure = None
        return reply

    async def _next(self, stream: Any, timeout_s: float) -> Any:  # noqa: ANN401
        with self._translated():
            return await self._calls.awaited(anext(stream, None), timeout_s)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            with translated(self._library, self.upstream):
                yield
        except UpstreamError as error:
            self._failure = (error, time.monotonic())
            raise


@dataclass(frozen=True, slots=True)
class _ChatChunk:
    """One event of a stream; `num_cached_tokens` comes with the usage, in the last event."""

    reasoning: str
    content: str
    end: FinishReason | None
    is_usage: bool
    num_cached_tokens: int | None


def _event(chunk: Any, upstream: str) -> _ChatChunk:  # noqa: ANN401
    usage = getattr(chunk, "usage", None)
    cached = _cached_tokens(usage)
    if not chunk.choices:
        return _ChatChunk("", "", None, usage is not None, cached)
    choice = chunk.choices[0]
    end = end_of(choice.finish_reason, upstream)
    reasoning = text_of(getattr(choice.delta, "reasoning_content", None))
    content = text_of(getattr(choice.delta, "content", None))
    return _ChatChunk(reasoning, content, end, usage is not None, cached)


def _sampled(sampling: Sampling) -> dict[str, Any]:
    """The sampling fields but those that change nothing: not every API accepts every field."""
    fields: dict[str, Any] = {"temperature": sampling.temperature}
    if sampling.top_p != 1.0:
        fields["top_p"] = sampling.top_p
    for name in ("presence_penalty", "frequency_penalty", "top_k"):
        if not sampling.is_neutral(name):
            fields[name] = getattr(sampling, name)
    if sampling.seed is not None:
        fields["seed"] = sampling.seed_31_bits
    if sampling.stop:
        fields["stop"] = list(sampling.stop)
    return fields


def _first_top(logprobs: Any) -> tuple[Candidate, ...] | None:  # noqa: ANN401
    rows = getattr(logprobs, "content", None)
    if not rows:
        return None
    return tuple(Candidate(text_of(x.token), float(x.logprob)) for x in rows[0].top_logprobs)


def _cached_tokens(usage: Any) -> int | None:  # noqa: ANN401
    cached = getattr(getattr(usage, "prompt_tokens_details", None), "cached_tokens", None)
    return None if cached is None else int(cached)
