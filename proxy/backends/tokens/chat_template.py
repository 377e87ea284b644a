"""Renders chat templates in this process, as Hugging Face's libraries do."""

import asyncio
import json
from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser

from proxy.backends.base import Message, Question
from proxy.backends.tokens.sandbox import BoundedEnvironment, budget
from proxy.errors import ConfigError, RequestError

# A real template renders this in less than 3 ms (measured), so it may take 0.2 s of the event loop;
# more messages, and longer, are rendered in a thread.
_MANY, _LONG = 64, 50_000
_SHORT_S, _LONG_S = 0.2, 5.0
# The length of the texts that a template makes: a few times that of the messages.
_GROWTH, _MOST_ADDED = 8, 1_000_000
_LONGEST_SOURCE = 100_000


class _Generation(Extension):
    """transformers' `{% generation %}`, which marks the assistant's text and changes nothing."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own protocol

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """A Jinja chat template in the conventions of transformers' `apply_chat_template`.

    With the model's own `special_tokens` (`bos_token` and so on) the template writes them, and the
    result is tokenised unchanged. Without them, as for a template from the configuration, the
    tokenizer adds its own, so the template must not write the beginning-of-sequence token itself:
    `bos_token` is the empty string. Raises `ConfigError` for a template that does not parse, or
    cannot render one user message.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None) -> None:
        if len(source) > _LONGEST_SOURCE:
            message = f"has {len(source)} characters, and at most {_LONGEST_SOURCE} are read"
            raise ConfigError(f"chat_template {message}")
        environment = BoundedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _Generation],
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        if special_tokens is None:
            environment.globals["bos_token"] = ""
            # Unknown here; a template that writes it must spell the token itself.
            environment.globals["eos_token"] = jinja2.StrictUndefined(name="eos_token")
        else:
            environment.globals.update(special_tokens)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            message = f"chat_template does not parse: line {error.lineno}: {error.message}"
            raise ConfigError(message) from error
        try:
            self.render((Message("user", "?"),))
        except RequestError as error:
            raise ConfigError(f"chat_template cannot render a user's message: {error}") from error

    def render(
        self, messages: tuple[Message, ...], kwargs: Mapping[str, Any] = MappingProxyType({})
    ) -> str:
        """The prompt, up to where the assistant's answer begins. `kwargs` are more variables."""
        limit_s = _LONG_S if _are_long(messages) else _SHORT_S
        length = sum(len(message.content) for message in messages)
        try:
            with budget(limit_s, _GROWTH * length + _MOST_ADDED):
                return self._template.render(
                    messages=[{"role": m.role, "content": m.content} for m in messages],
                    add_generation_prompt=True,
                    tools=None,
                    documents=None,
                    **kwargs,
                )
        except Exception as error:
            # A template is the user's program: whatever it raises concerns these messages.
            if kwargs:
                self.render(messages)  # raises if it cannot render them anyway
                message = f"the chat template cannot render with these variables: {error}"
                raise RequestError(message, param="chat_template_kwargs") from error
            message = f"the chat template cannot render these messages: {error}"
            raise RequestError(message, param="messages") from error


def _are_long(messages: tuple[Message, ...]) -> bool:
    return len(messages) > _MANY or sum(len(message.content) for message in messages) > _LONG


async def rendered_here(question: Question, template: ChatTemplate | None) -> str | None:
    """The prompt of a question; None where its messages are left to the server's own template.

    Long messages are rendered in a thread, so that others are served meanwhile.
    """
    if question.prompt is not None:
        return question.prompt
    if template is None:
        return None
    if _are_long(question.messages):
        render = template.render
        return await asyncio.to_thread(render, question.messages, question.template_kwargs)
    return template.render(question.messages, question.template_kwargs)


def _to_json(
    value: Any,  # noqa: ANN401
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002 - transformers' signature
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002
) -> str:
    # Jinja's own filter escapes <, > and &, which a prompt must keep.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().astimezone().strftime(pattern)
