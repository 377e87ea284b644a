"""Chat templates that the configuration gives, rendered here as Hugging Face's libraries do."""

import json
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from proxy.backends.base import Message
from proxy.errors import ConfigError, RequestError


class ChatTemplate:
    """A Jinja chat template in the conventions of transformers' `apply_chat_template`.

    The result is tokenised with the tokenizer's own special tokens added, so the template must not
    write the beginning-of-sequence token itself: `bos_token` is the empty string. Raises
    `ConfigError` for a template that does not parse.
    """

    def __init__(self, source: str) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            message = f"chat_template does not parse: line {error.lineno}: {error.message}"
            raise ConfigError(message) from error

    def render(self, messages: tuple[Message, ...]) -> str:
        """The prompt, up to where the assistant's answer begins."""
        try:
            return self._template.render(
                messages=[{"role": m.role, "content": m.content} for m in messages],
                add_generation_prompt=True,
                bos_token="",
                tools=None,
                documents=None,
            )
        except jinja2.TemplateError as error:
            message = f"the chat template cannot render these messages: {error}"
            raise RequestError(message, param="messages") from error


def _to_json(value: Any, indent: int | None = None) -> str:  # noqa: ANN401
    # Jinja's own filter escapes <, > and &, which a prompt must keep.
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().astimezone().strftime(pattern)
