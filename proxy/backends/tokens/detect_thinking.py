"""Detects a model's format of thoughts by rendering its chat template."""

from proxy.backends.base import Call, MarkupReader, Message, Question
from proxy.core.thinking import Reasoning
from proxy.errors import RequestError, UpstreamRefused

_ASKED, _THOUGHT, _ANSWERED = "Is it raining?", "The ground is dry", "No, it is not"
_HISTORY = (
    Message("user", _ASKED),
    Message("assistant", f"<think>\n{_THOUGHT}\n</think>\n\n{_ANSWERED}"),
    Message("user", _ASKED),
)


async def detect_reasoning(reader: MarkupReader, call: Call) -> Reasoning:
    """The format in which the model answers messages.

    A template that ends its prompt with `<think>` has opened the thought; a template that ends it
    with a closed thought wants none; a template that drops the thoughts of earlier answers leaves
    the opening to the model. A model without a template gets only raw prompts, without a format.
    """
    prompt = await _prompt(reader, (Message("user", _ASKED),), call)
    if prompt is None:
        return Reasoning()
    tail = prompt.rpartition(_ASKED)[2].rstrip()
    if tail.endswith("<|start|>assistant"):
        return Reasoning("harmony")
    if tail.endswith("<think>"):
        return Reasoning("think", opened=True)
    if tail.endswith("</think>"):
        return Reasoning()
    history = await _prompt(reader, _HISTORY, call)
    forgets = history is not None and _THOUGHT not in history and _ANSWERED in history
    return Reasoning("think") if forgets else Reasoning()


async def _prompt(reader: MarkupReader, messages: tuple[Message, ...], call: Call) -> str | None:
    """The rendered messages as text; None if the template is missing or refuses them."""
    try:
        rendered = await reader.render(Question(messages), call)
    except (RequestError, UpstreamRefused):
        return None
    return await reader.prompt_text(rendered, call)
