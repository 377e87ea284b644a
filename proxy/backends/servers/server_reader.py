"""Turns text into tokens by the server's own routes, which vLLM and SGLang have in common."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar, Self

from proxy.backends.base import Call, Question, Segment
from proxy.backends.limits import ModelLimits
from proxy.backends.servers.model_list import listed_limits
from proxy.backends.servers.vocabulary import Vocabulary
from proxy.backends.tokens.alignment import (
    DUMMY_PREFIX,
    align_vocabulary,
    as_in_running_text,
    in_parts,
    without_follower,
)
from proxy.backends.tokens.chat_template import ChatTemplate, rendered_here
from proxy.backends.tokens.control_text import LearntControls, cut, marked
from proxy.backends.tokens.normal_form import (
    FORMS,
    PROBES,
    NormalForm,
    may_be_rewritten,
    split_for,
)
from proxy.backends.tokens.spelling import Token
from proxy.backends.transport.http import UpstreamClient
from proxy.errors import TokenizerFailed, UpstreamRefused


@dataclass(frozen=True, slots=True)
class Cuts:
    """A server's way to cut text: `follower` is the id of `alignment.FOLLOWED_BY`."""

    follower: int
    adds_space: bool
    """Whether its tokenizer puts a space before every text."""


class ServerReader:
    """Reads for a server's client, if the server is asked for a model by its name."""

    _route: ClassVar[str]
    """The server's route for tokenising."""
    _rendering: ClassVar[Mapping[str, Any]] = {}
    """Fields that make the server render messages as for a chat completion."""

    def __init__(
        self,
        client: UpstreamClient,
        model: str,
        chat_template: ChatTemplate | None,
        follower: int | None,
    ) -> None:
        self._client = client
        self._model = model
        self._template = chat_template
        self._known_follower = follower
        """See `Cuts`; None until the server is asked to read."""
        self._forms: tuple[NormalForm, ...] | None = None
        """The normal forms into which the tokenizer brings texts; None until that matters."""
        self._controls = LearntControls(families=True)
        self.vocabulary = Vocabulary(client.upstream)
        """The model's tokens; not known of a server that refuses all others itself."""
        self.template_kwargs: Mapping[str, Any] = {}
        """Variables of the chat template, which a question may replace."""

    @classmethod
    async def connect(
        cls,
        client: UpstreamClient,
        model: str,
        chat_template: ChatTemplate | None,
        *,
        reads: bool = True,
    ) -> Self:
        """Ask the server for the model's tokenizer, and learn how it cuts text.

        With `reads` False a local tokenizer is used, so the server's may cut as it likes, and a
        router in front of the server need not have any.
        """
        if not reads:
            return cls(client, model, chat_template, None)
        cuts = await cls._cuts(client, model)
        if cuts.adds_space:
            raise UpstreamRefused(client.upstream, DUMMY_PREFIX)
        return cls(client, model, chat_template, cuts.follower)

    @classmethod
    async def _cuts(cls, client: UpstreamClient, model: str) -> Cuts:
        raise NotImplementedError

    async def _follower(self) -> int:
        if self._known_follower is None:
            self._known_follower = (await self._cuts(self._client, self._model)).follower
        return self._known_follower

    async def limits(self) -> ModelLimits:
        limits = await listed_limits(self._client, self._model)
        return limits.lower(ModelLimits(vocabulary=self.vocabulary.num_tokens))

    async def learn_vocabulary(self) -> Vocabulary:
        """Ask how many tokens the model has, where requests must keep within them."""
        return self.vocabulary

    async def render(self, question: Question, call: Call) -> Segment:
        question = question.under(self.template_kwargs)
        await self._learn(self._controls.unknown_in(question), call)
        question, mark = marked(question, self._controls.starts)
        text = await rendered_here(question, self._template)
        if text is None:
            messages = {"messages": question.wire_messages(), **self._rendering}
            if question.template_kwargs:
                messages["chat_template_kwargs"] = question.template_kwargs
            ids = await self._ids(messages, call)
            return Segment("", await self._unmarked(ids, mark, call) if mark else ids)
        if not mark:
            return await self._tokenized(text, call, add_special=True)
        first, *others = text.split(mark)
        begin = await self._tokenized(first, call, add_special=True)
        rest = await self._ids_of(others, call)
        return Segment("".join((first, *others)), (*begin.token_ids, *chain.from_iterable(rest)))

    async def _unmarked(self, ids: tuple[int, ...], mark: str, call: Call) -> tuple[int, ...]:
        """The ids of a prompt that the server rendered, without the marks in its contents."""
        text = await self._detokenized(ids, call)
        (again, *parts) = await self._ids_of([text, *filter(None, text.split(mark))], call)
        if tuple(again) != ids:
            message = (
                "a message spells a control token, and its tokenizer cannot read the prompt back "
                "that its chat template makes; set the upstream's `tokenizer` to the model's "
                "Hugging Face name or folder"
            )
            raise TokenizerFailed(f"upstream '{self._client.upstream}': {message}")
        return tuple(chain.from_iterable(parts))

    async def _learn(self, words: Sequence[str], call: Call) -> None:
        """Ask the server about words that may be control tokens."""
        if words:
            self._controls.learn(words, await self._ids_of(words, call))

    async def markup(self, text: str, call: Call) -> Segment:
        return await self._tokenized(text, call, add_special=False)

    async def _tokenized(self, text: str, call: Call, *, add_special: bool) -> Segment:
        body = {"prompt": text, "add_special_tokens": add_special}
        return Segment(text, await self._ids(body, call))

    async def prompt_text(self, rendered: Segment, call: Call) -> str:
        return rendered.text or await self._detokenized(rendered.token_ids, call)

    async def encode(self, texts: Sequence[str], call: Call) -> list[Segment]:
        parts = await self._parts(texts, call)
        rows = iter(await self._ids_of([part for of_text in parts for part in of_text], call))
        segments: list[Segment] = []
        follower = await self._follower()
        with self._client.expecting(self._route):
            for text, of_text in zip(texts, parts, strict=True):
                ids = [token_id for _ in of_text for token_id in next(rows)]
                segments.append(Segment(text, without_follower(text, ids, follower)))
        return segments

    async def encode_running(
        self, texts: Sequence[Sequence[str]], call: Call
    ) -> list[list[Segment]]:
        joined = ["".join(steps) for steps in texts]
        parts = await self._parts(joined, call)
        rows = iter(await self._spelt([part for of_text in parts for part in of_text], call))
        segments: list[list[Segment]] = []
        follower = await self._follower()
        for steps, text, of_text in zip(texts, joined, parts, strict=True):
            tokens = [token for _ in of_text for token in next(rows)]
            try:
                ids = without_follower(text, [token.id for token in tokens], follower)
                alignment = align_vocabulary([token.string for token in tokens], "".join(of_text))
                segments.append(in_parts(steps, ids, alignment))
            except ValueError as error:
                message = (
                    f"{error}; set the upstream's `tokenizer` to the model's Hugging Face name"
                )
                raise TokenizerFailed(
                    f"upstream '{self._client.upstream}': {message} or folder"
                ) from error
        return segments

    async def _parts(self, texts: Sequence[str], call: Call) -> list[list[str]]:
        """Split texts, so that the server takes all of them as text and leaves it as it is."""
        # The server parses control tokens in any text, and no option turns that off.
        await self._learn(self._controls.unknown(texts), call)
        whole = map(as_in_running_text, texts)
        parts = [cut(text, self._controls.starts(text)) for text in whole]
        if any(map(may_be_rewritten, texts)):
            return await self._unrewritten(parts, call)
        return parts

    async def _unrewritten(self, parts: list[list[str]], call: Call) -> list[list[str]]:
        """Split the parts of texts further, so that the tokenizer's normal form changes none.

        Raises `TokenizerFailed` if that cannot be.
        """
        if self._forms is None:
            probes = [text for form in FORMS for text in PROBES[form]]
            found = iter(await self._ids_of(probes, call))
            self._forms = tuple(form for form in FORMS if next(found) == next(found))
        try:
            for form in self._forms:
                parts = [
                    [shorter for part in of_text for shorter in split_for(form, part)]
                    for of_text in parts
                ]
        except ValueError as error:
            raise TokenizerFailed(f"upstream '{self._client.upstream}': {error}") from error
        return parts

    async def _ids_of(self, texts: Sequence[str], call: Call) -> Sequence[Sequence[int]]:
        """The tokens of each text."""
        raise NotImplementedError

    async def _spelt(self, texts: Sequence[str], call: Call) -> Sequence[Sequence[Token]]:
        """The tokens of each text, with their strings or their vocabulary's spelling."""
        raise NotImplementedError

    async def _ids(self, body: Mapping[str, Any], call: Call) -> tuple[int, ...]:
        """The tokens of one text, or of rendered messages."""
        tokens = await self._tokens(body, call)
        with self._client.expecting(self._route):
            return tuple(map(int, tokens))

    async def _tokens(self, body: Mapping[str, Any], call: Call) -> list[Any]:
        reply = await self._tokenise(self._client, {"model": self._model, **body}, call)
        with self._client.expecting(self._route):
            return list(reply["tokens"])

    @classmethod
    async def _tokenise(cls, client: UpstreamClient, body: Mapping[str, Any], call: Call) -> Any:  # noqa: ANN401
        """Return the answer of the server's route for tokenising."""
        return await client.post(cls._route, dict(body), call)

    async def _detokenized(self, token_ids: Sequence[int], call: Call) -> str:
        raise NotImplementedError
