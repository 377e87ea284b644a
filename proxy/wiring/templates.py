"""Asks an upstream's chat template how its model thinks, and what a request can change about it."""

from collections.abc import Mapping
from typing import Any, Literal

import orjson

from proxy.backends.base import Call, MarkupReader, Message, Question
from proxy.backends.servers.litellm import LiteLLM
from proxy.backends.tokens.detect_thinking import detect_reasoning
from proxy.core.thinking import Reasoning
from proxy.errors import RequestError, UpstreamRefused
from proxy.options import Effort, template_kwargs

_CALL = Call("connect")
_ASKED = (Message("user", "?"),)
# Clients choose the variables.
_MOST_FORMATS, _LONGEST_KEY = 1000, 1000


class ReadTemplate:
    """A template whose rendered prompts can be read."""

    takes_kwargs = True

    def __init__(
        self, reader: MarkupReader, configured: Literal["auto", "none", "think", "harmony"]
    ) -> None:
        self._reader = reader
        self._configured = configured
        self._found: dict[bytes, Reasoning] = {}
        """Formats by the variables that the template has."""
        self._takes_effort: bool | None = None

    async def reasoning(self, kwargs: Mapping[str, Any]) -> Reasoning:
        """Return the format of thoughts: as configured, or as the template shows.

        A format that the variables change is the format that the template then shows, whatever the
        configuration says.
        """
        if self._configured in {"none", "harmony"}:
            return Reasoning(self._configured)
        found = await self._detected(kwargs)
        if self._configured in {"auto", found.kind}:
            return found
        is_changed = bool(kwargs) and found != await self._detected({})
        return found if is_changed else Reasoning(self._configured)

    async def takes_effort(self) -> bool:
        """Return whether two values of `reasoning_effort` are rendered differently."""
        if self._takes_effort is None:
            none = await self._rendered(template_kwargs({}, "none"))
            high = await self._rendered(template_kwargs({}, "high"))
            self._takes_effort = none != high
        return self._takes_effort

    async def check(self, kwargs: Mapping[str, Any], effort: Effort | None) -> None:
        """Raise `ValueError` if the template cannot render with these variables, or if an effort
        makes no difference to it.
        """
        if effort is not None and not await self.takes_effort():
            raise ValueError("reasoning_effort: its chat template does not know it")
        try:
            await self._reader.render(Question(_ASKED, template_kwargs=kwargs), _CALL)
        except (RequestError, UpstreamRefused) as error:
            if await self._rendered({}) is not None:
                raise ValueError(f"chat_template_kwargs: {error}") from error
            # Without any variables it is the same: there is no template for messages like these.

    async def _rendered(self, kwargs: Mapping[str, Any]) -> tuple[int, ...] | None:
        """The prompt of a question; None if the template is missing or refuses it."""
        try:
            rendered = await self._reader.render(Question(_ASKED, template_kwargs=kwargs), _CALL)
        except (RequestError, UpstreamRefused):
            return None
        return rendered.token_ids

    async def _detected(self, kwargs: Mapping[str, Any]) -> Reasoning:
        key = orjson.dumps(kwargs, option=orjson.OPT_SORT_KEYS)
        found = self._found.get(key)
        if found is None:
            found = await detect_reasoning(self._reader, _CALL, kwargs)
            if len(self._found) < _MOST_FORMATS and len(key) <= _LONGEST_KEY:
                self._found[key] = found
        return found


class HostedTemplate:
    """A hosted API in the place of a template: motab sees no prompt of its model."""

    def __init__(self, backend: LiteLLM, reasoning: Reasoning) -> None:
        self._backend = backend
        self._reasoning = reasoning

    @property
    def takes_kwargs(self) -> bool:
        """Return whether the API passes variables to a chat template."""
        return self._backend.takes_template_kwargs

    async def takes_effort(self) -> bool:
        """Return whether the API has the field, by litellm's own tables."""
        return self._backend.takes_effort

    async def reasoning(self, kwargs: Mapping[str, Any]) -> Reasoning:
        """Return the format, which does not change: thoughts come separately."""
        del kwargs
        return self._reasoning
