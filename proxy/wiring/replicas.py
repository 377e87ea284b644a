"""Checks that all replicas of an upstream serve the same model."""

import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass

from proxy.backends.base import GREEDY, Call, Message, Question
from proxy.backends.limits import NO_LIMITS, ModelLimits
from proxy.backends.servers.echo import COMPLETIONS, Echo
from proxy.backends.servers.llamacpp import LlamaCpp
from proxy.backends.servers.openai import OpenAI
from proxy.backends.servers.sglang import SGLang
from proxy.backends.servers.vllm import Vllm
from proxy.backends.transport.http import UpstreamClient
from proxy.errors import MotabError, UpstreamError, UpstreamRefused
from proxy.secrets import without_userinfo
from proxy.wiring.scorers import scorers_of

Backend = Vllm | SGLang | LlamaCpp | OpenAI

_CALL = Call("connect")
# Tokenizers differ in how they cut numbers, spaces, capitals, scripts and what few of them know.
_TEXT = (
    "So the sum of 3 and 4 is 7.\n\nThe 12345 QUICK foxes'  jumped:\n\tx_1 = \\frac{3}{4}; "
    "naïve 你好 мир 🎉 <think>"
)
_QUESTION = Question((Message("system", "Be brief."), Message("user", "What is 7 + 5?")))
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Identity:
    """The facts that replicas must have in common, with the name of their model."""

    tokens: tuple[int, ...]
    """A text in the server's tokens, or only their number."""
    prompt: tuple[int, ...]
    """A question as the server renders it; empty if it has no template."""
    ways: tuple[str, ...]
    """The ways to score and the fields that the server takes, as far as servers of its kind differ
    in them."""
    num_slots: int
    """Of llama.cpp, whose slots motab hands out; 0 for others."""

    def difference(self, other: "_Identity") -> str | None:
        """Return what is another one there; None if both are the same."""
        if self.tokens != other.tokens:
            return "it cuts a text into other tokens"
        if self.prompt != other.prompt:
            return "its chat template renders a question into other tokens"
        if self.ways != other.ways:
            return f"it has other ways to score or to sample ({_list(self)}, not {_list(other)})"
        if self.num_slots != other.num_slots:
            return f"it has {self.num_slots} slots, not {other.num_slots}"
        return None


@dataclass(frozen=True, slots=True)
class _Serving:
    """An upstream that has started."""

    backend: Backend
    client: UpstreamClient


class SameModel:
    """Compares servers with the first one that was asked."""

    def __init__(
        self,
        open_client: Callable[[str], AbstractAsyncContextManager[UpstreamClient]],
        connect: Callable[[UpstreamClient], Awaitable[Backend]],
        model: str,
        *,
        renders: bool,
        scores: bool,
    ) -> None:
        """`renders`: prompts are made by the servers, and not by a tokenizer in this process;
        `scores`: the servers are a teacher's.
        """
        self._renders = renders
        self._scores = scores
        self._open_client = open_client
        self._connect = connect
        self._model = model
        self._first: tuple[str, _Identity] | None = None
        self._lowest = NO_LIMITS
        """The limits within which all servers hold that were asked so far."""
        self._promised: ModelLimits | None = None
        self._serving: _Serving | None = None

    def serve(self, backend: Backend, client: UpstreamClient) -> None:
        """From now on `backend` speaks with all replicas, by way of this client."""
        self._serving = _Serving(backend, client)

    async def limits(self) -> ModelLimits:
        """Return the limits within which every replica that is in holds."""
        if self._serving is None:
            return self._lowest
        return self._lowest.lower(await self._serving.backend.limits())

    def promise(self, limits: ModelLimits) -> None:
        """From now on requests keep to these limits, so every new replica must hold them."""
        self._promised = limits

    async def verify(self, base_url: str) -> None:
        """Ask a server what it is.

        Raises `UpstreamRefused`, which names it, if it is not like the others.
        """
        name = without_userinfo(base_url)
        async with self._open_client(base_url) as client:
            try:
                await self._compare(name, client)
            except MotabError as error:
                if isinstance(error, UpstreamError) and error.retryable:
                    raise
                words = str(error).removeprefix(f"upstream '{client.upstream}': ")
                raise UpstreamRefused(client.upstream, f"replica {name}: {words}") from error

    async def _compare(self, name: str, client: UpstreamClient) -> None:
        backend = await self._connect(client)
        await backend.check()
        found = await self._identity(backend, client)
        limits = await backend.limits()
        first = await self._reference()
        if first is None:
            first = self._first = name, found
        if (difference := found.difference(first[1])) is not None:
            message = f"it serves another model than {first[0]}: {difference}"
            raise UpstreamRefused(client.upstream, message)
        if self._promised is None:
            self._lowest = self._lowest.lower(limits)
        elif not limits.hold(self._promised):
            message = (
                f"it takes less than the others ({limits}, not {self._promised}): serve it with the"
                " same context, or restart motab"
            )
            raise UpstreamRefused(client.upstream, message)

    async def _reference(self) -> tuple[str, _Identity] | None:
        """Return what the others are; None if that is not known, as after a start with one server
        that is down by now.
        """
        if self._first is None and self._serving is not None:
            try:
                found = await self._identity(self._serving.backend, self._serving.client)
            except UpstreamError as error:
                _log.warning("%s; new replicas cannot be compared with it", error)
                return None
            self._first = "the first server", found
        return self._first

    async def _identity(self, backend: Backend, client: UpstreamClient) -> _Identity:
        if isinstance(backend, OpenAI):
            num_tokens = await _num_tokens(backend, client, self._model)
            return _Identity(num_tokens, (), _ways(backend), 0)
        tokens = (await backend.markup(_TEXT, _CALL)).token_ids
        prompt: tuple[int, ...] = ()
        if self._renders:
            with suppress(UpstreamRefused):  # its model has no template
                prompt = (await backend.render(_QUESTION, _CALL)).token_ids
        scorers, _ = await scorers_of(backend, client, self._model, scores=self._scores)
        ways = tuple(scorer.scoring for scorer in scorers)
        num_slots = backend.num_slots if isinstance(backend, LlamaCpp) else 0
        return _Identity(tokens, prompt, ways, num_slots)


async def _num_tokens(backend: OpenAI, client: UpstreamClient, model: str) -> tuple[int, ...]:
    """The number of a text's tokens, which a server does not show; empty if it counts none."""
    body = {"model": model, "prompt": _TEXT, "max_tokens": 1, **backend.sampling(GREEDY)}
    reply = await client.post(COMPLETIONS, body, _CALL)
    with client.expecting(COMPLETIONS):
        usage = reply.get("usage") or {}
        num = usage.get("prompt_tokens")
        return () if num is None else (int(num),)


def _ways(backend: OpenAI) -> tuple[str, ...]:
    scorers = [
        f"{one.scoring} after {one.route.adds!r}"
        for one in backend.scorers
        if isinstance(one, Echo)
    ]
    lost = [f"no {name}" for name in sorted(backend.unsampled)]
    return (*scorers, *lost)


def _list(found: _Identity) -> str:
    return ", ".join(found.ways) or "none"
