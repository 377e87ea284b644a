"""Detects a model's format of thoughts by rendering its chat template."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from proxy.backends.base import Call, MarkupReader, Message, Question
from proxy.core.thinking import Reasoning
from proxy.errors import RequestError, UpstreamRefused

_ASKED, _THOUGHT, _ANSWERED = "Is it raining?", "The ground is dry", "No, it is not"
_HISTORY = (
    Message("user", _ASKED),
    Message("assistant", f"<think>\n{_THOUGHT}\n</think>\n\n{_ANSWERED}"),
    Message("user", _ASKED),
)


async def detect_reasoning(
    reader: MarkupReader, call: Call, kwargs: Mapping[str, Any] = MappingProxyType({})
) -> Reasoning:
    """The format in which the model answers messages, under these variables of its template.

    A template that ends its prompt with `<think>` has opened the thought; a template that ends it
    with a closed thought wants none; a template that drops the thoughts of earlier answers leaves
    the opening to the model. A model without a template gets only raw prompts, without a format.
    """
    prompt = await _prompt(
        reader, Question((Message("user", _ASKED),), template_kwargs=kwargs), call
    )
    if prompt is None:
        return Reasoning()
    tail = prompt.rpartition(_ASKED)[2].rstrip()
    if tail.endswith("<|start|>assistant"):
        return Reasoning("harmony")
    if tail.endswith("<think>"):
        return Reasoning("think", opened=True)
    if tail.endswith("</think>"):
        return Reasoning()
    history = await _prompt(reader, Question(_HISTORY, template_kwargs=kwargs), call)
    forgets = history is not None and _THOUGHT not in history and _ANSWERED in history
    return Reasoning("think") if forgets else Reasoning()


async def _prompt(reader: MarkupReader, question: Question, call: Call) -> str | None:
    """The rendered question as text; None if the template is missing or refuses it."""
    try:
        rendered = await reader.render(question, call)
    except (RequestError, UpstreamRefused):
        return None
    return await reader.prompt_text(rendered, call)
