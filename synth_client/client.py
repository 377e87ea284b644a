"""Asks the proxy one question and makes a record of the answer.

For now `predicted` is the last number of the output and `correct` compares it with the answer as
text; real verification of answers, with math-verify, comes with a later issue, and so do retries.
"""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from ipaddress import ip_address
from types import TracebackType
from typing import Annotated, Literal, Self

import httpx
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from synth_client.record import (
    FinishReason,
    Message,
    Models,
    Record,
    Span,
    StepRecord,
    Usage,
    faults_of,
)

# A comma belongs to a number only where it groups thousands; a minus right after a word or a
# closing bracket is a hyphen or a subtraction.
_NUMBER = re.compile(r"(?:(?<![\w)])-)?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?![0-9])(?:\.[0-9]+)?")
_CONNECT_TIMEOUT_S = 10.0
_EXCERPT_CHARS = 200


class SynthesisError(Exception):
    """No trustworthy record came of a request.

    `status` is the HTTP status, None where no answer arrived at all. `message` and the other
    three are the proxy's error object; a malformed answer has the type "malformed_answer", a
    failed connection "connection_failed".
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None,
        error_type: str | None = None,
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message if status is None else f"HTTP {status}: {message}")
        self.message = message
        self.status = status
        self.error_type = error_type
        self.param = param
        self.code = code


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, with the reference answer where one is known."""

    id: str
    messages: tuple[Message, ...]
    answer: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Synthesis:
    """How every question of a run is asked.

    `params` is the request's `motab` object: what it leaves out is up to the proxy. `timeout_s`
    bounds the silence between two reads, and so the whole trajectory, in seconds.
    """

    model: str
    params: Mapping[str, JsonValue] = field(default_factory=dict)
    temperature: float | None = None
    timeout_s: float = 3600.0


class SynthClient:
    """Asks one proxy; an asynchronous context manager that owns its connections.

    `base_url` ends in /v1. `transport` replaces the network.
    """

    def __init__(
        self,
        base_url: str,
        synthesis: Synthesis,
        *,
        api_key: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._synthesis = synthesis
        self._http = httpx.AsyncClient(
            base_url=base_url,
            headers={} if api_key is None else {"Authorization": f"Bearer {api_key}"},
            timeout=httpx.Timeout(synthesis.timeout_s, connect=_CONNECT_TIMEOUT_S),
            # An HTTP_PROXY of the environment cannot reach what listens on our own loopback.
            trust_env=not _is_loopback(httpx.URL(base_url).host),
            transport=transport,
        )

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._http.__aexit__(exc_type, exc_value, traceback)

    async def synthesise(
        self, question: Question, *, sample: int = 0, seed: int | None = None
    ) -> Record:
        """One trajectory. Raises `SynthesisError` for whatever comes between it and a record."""
        started = time.monotonic()
        try:
            response = await self._http.post(
                "motab/chat/completions", json=self._body(question, seed)
            )
        except httpx.HTTPError as error:
            cause = str(error) or type(error).__name__
            raise SynthesisError(
                f"no answer from {self._http.base_url}: {cause}",
                status=None,
                error_type="connection_failed",
            ) from error
        if response.status_code != httpx.codes.OK:
            raise _refusal(response)
        return _record_of(response, question, sample, time.monotonic() - started)

    def _body(self, question: Question, seed: int | None) -> dict[str, JsonValue]:
        body: dict[str, JsonValue] = {
            "model": self._synthesis.model,
            "messages": [message.model_dump() for message in question.messages],
            "n": 1,
            "motab": dict(self._synthesis.params),
        }
        if self._synthesis.temperature is not None:
            body["temperature"] = self._synthesis.temperature
        if seed is not None:
            body["seed"] = seed
        return body


def last_number(text: str) -> str | None:
    """The last number as it is written, without the commas that group its thousands."""
    numbers = _NUMBER.findall(text)
    return numbers[-1].replace(",", "") if numbers else None


class _Wire(BaseModel):
    """What a strict OpenAI answer may add of its own is none of our business."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)


class _ChatMessage(_Wire):
    role: Literal["assistant"]
    content: str


class _Trace(_Wire):
    method: str
    breach: int | None
    bifurcation: int | None
    spans: tuple[Span, ...]
    steps: tuple[StepRecord, ...]
    params: dict[str, JsonValue]
    models: Models


class _Choice(_Wire):
    message: _ChatMessage
    finish_reason: FinishReason
    motab: _Trace


class _Usage(Usage):
    model_config = ConfigDict(extra="ignore")


class _Completion(_Wire):
    choices: Annotated[tuple[_Choice, ...], Field(min_length=1, max_length=1)]
    usage: _Usage


class _ErrorBody(_Wire):
    message: str
    type: str | None = None
    param: str | None = None
    code: str | None = None


class _ErrorAnswer(_Wire):
    error: _ErrorBody


def _record_of(response: httpx.Response, question: Question, sample: int, seconds: float) -> Record:
    """Raises `SynthesisError` where the answer lacks something or contradicts itself."""
    try:
        completion = _Completion.model_validate_json(response.content)
        (choice,) = completion.choices
        output = choice.message.content
        predicted = last_number(output)
        return Record(
            id=question.id,
            sample=sample,
            messages=question.messages,
            output=output,
            spans=choice.motab.spans,
            method=choice.motab.method,
            params=choice.motab.params,
            models=choice.motab.models,
            breach=choice.motab.breach,
            bifurcation=choice.motab.bifurcation,
            steps=choice.motab.steps,
            finish_reason=choice.finish_reason,
            usage=Usage(**dict(completion.usage)),
            answer=question.answer,
            predicted=predicted,
            correct=_is_correct(predicted, question.answer),
            attempts=1,
            seconds=seconds,
            motab_version=version("motab"),
        )
    except ValidationError as error:
        raise SynthesisError(
            f"malformed answer: {faults_of(error)}",
            status=response.status_code,
            error_type="malformed_answer",
        ) from error


def _is_correct(predicted: str | None, answer: str | None) -> bool | None:
    if answer is None:
        return None
    return predicted == answer.strip().replace(",", "")


def _refusal(response: httpx.Response) -> SynthesisError:
    """The proxy's own error, or what a gateway in between said instead."""
    status = response.status_code
    try:
        error = _ErrorAnswer.model_validate_json(response.content).error
    except ValidationError:
        excerpt = response.text.strip()[:_EXCERPT_CHARS]
        return SynthesisError(excerpt or response.reason_phrase, status=status)
    return SynthesisError(
        error.message,
        status=status,
        error_type=error.type,
        param=error.param,
        code=error.code,
    )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"
