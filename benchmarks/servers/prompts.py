"""Makes questions for one use each, as the chat routes and as the published loop send them."""

import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.processes import Pair, Served
from benchmarks.servers.chain_sum import problems
from benchmarks.servers.found import CannotMeasure, Role, loop_can_ask
from proxy.backends.base import Call, Message, Question
from proxy.backends.tokens.tokenizer import LocalReader, load_tokenizer
from proxy.errors import ConfigError

_NUM_TERMS: Final = (4, 5, 6)
_WITHOUT_TEMPLATE: Final = "Question: {question}\nAnswer, one step a paragraph:\n\n"


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question as a request's field, and as both models' raw prompts for the published loop."""

    field: Mapping[str, Any]
    """`messages` or, for models without a chat template, `prompt`."""
    # Empty where the loop is left out.
    student: str = ""
    teacher: str = ""
    num_teacher: int = 0
    """The tokens that the teacher reads."""


async def prompts(pair: Pair[Served], num: int) -> Iterator[Prompt]:
    """Make `num` questions that no server has seen: it would find their texts in its cache.

    Raises `CannotMeasure` if a tokenizer cannot be loaded.
    """
    texts = [problem.text for problem in problems(secrets.token_hex(8), num, _NUM_TERMS)]
    if not loop_can_ask(pair):
        return iter([Prompt(_messages(text)) for text in texts])
    readers = [_reader("student", pair.student), _reader("teacher", pair.teacher)]
    asked: list[tuple[dict[str, Any], Question]]
    if not all(reader.has_template for reader in readers):
        texts = [_WITHOUT_TEMPLATE.format(question=text) for text in texts]
        asked = [({"prompt": text}, Question(prompt=text)) for text in texts]
    else:
        asked = [(_messages(text), Question((Message("user", text),))) for text in texts]
    made: list[Prompt] = []
    for fields, question in asked:
        student, teacher = [await reader.render(question, Call("-")) for reader in readers]
        made.append(Prompt(fields, student.text, teacher.text, len(teacher.token_ids)))
    return iter(made)


def _messages(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


def _reader(role: Role, server: Served) -> LocalReader:
    option = f"--{role}-tokenizer"
    if server.tokenizer is None:
        message = f"the {role}'s server does not name its tokenizer: name its folder ({option})"
        raise CannotMeasure(message)
    try:
        return load_tokenizer(server.tokenizer, None)
    except ConfigError as error:
        raise CannotMeasure(f"{error} ({option})") from error
