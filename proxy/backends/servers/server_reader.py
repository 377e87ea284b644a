"""Turns text into tokens by the server's own routes, which vLLM and SGLang have much alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from proxy.backends.base import Call, Question, Segment
from proxy.backends.tokens.alignment import DUMMY_PREFIX
from proxy.backends.tokens.chat_template import ChatTemplate, rendered_here
from proxy.backends.transport.http import UpstreamClient
from proxy.errors import UpstreamRefused


@dataclass(frozen=True, slots=True)
class Cuts:
    """How a server's tokenizer cuts: `follower` is the id of `alignment.FOLLOWED_BY`."""

    follower: int
    adds_space: bool
    """It puts a space before every text."""


class ServerReader:
    """The part of a server's client that reads: a server that is asked for a model by its name."""

    _rendering: ClassVar[Mapping[str, Any]] = {}
    """Fields that make the server render messages as for a chat completion."""

    def __init__(
        self, client: UpstreamClient, model: str, chat_template: ChatTemplate | None, follower: int
    ) -> None:
        self._client = client
        self._model = model
        self._template = chat_template
        self._follower = follower

    @classmethod
    async def connect(
        cls,
        client: UpstreamClient,
        model: str,
        chat_template: ChatTemplate | None,
        *,
        reads: bool = True,
    ) -> Self:
        """Ask the server for the model's tokenizer, and learn how it cuts.

        With `reads` False another reader is used, so it may cut as it likes.
        """
        cuts = await cls._cuts(client, model)
        if reads and cuts.adds_space:
            raise UpstreamRefused(client.upstream, DUMMY_PREFIX)
        return cls(client, model, chat_template, cuts.follower)

    @classmethod
    async def _cuts(cls, client: UpstreamClient, model: str) -> Cuts:
        raise NotImplementedError

    async def render(self, question: Question, call: Call) -> Segment:
        text = rendered_here(question, self._template)
        if text is None:
            messages = {"messages": question.wire_messages(), **self._rendering}
            return Segment("", await self._ids(messages, call))
        return await self._tokenized(text, call, add_special=True)

    async def markup(self, text: str, call: Call) -> Segment:
        return await self._tokenized(text, call, add_special=False)

    async def _tokenized(self, text: str, call: Call, *, add_special: bool) -> Segment:
        body = {"prompt": text, "add_special_tokens": add_special}
        return Segment(text, await self._ids(body, call))

    async def prompt_text(self, rendered: Segment, call: Call) -> str:
        return rendered.text or await self._detokenized(rendered.token_ids, call)

    async def _ids(self, body: Mapping[str, Any], call: Call) -> tuple[int, ...]:
        """The tokens of one text, or of rendered messages."""
        raise NotImplementedError

    async def _detokenized(self, token_ids: Sequence[int], call: Call) -> str:
        raise NotImplementedError
