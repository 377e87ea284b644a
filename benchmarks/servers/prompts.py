"""Makes questions for one use each, as the chat routes and as the published loop send them."""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Final

import aiohttp
import orjson

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
    num_shared: int = 0
    """The first of them, with which all prompts begin, so that a server's cache has them."""


async def prompts(pair: Pair[Served], num: int) -> Iterator[Prompt]:
    """Make `num` questions that no server has seen: it would find their texts in its cache.

    Raises `CannotMeasure` if a tokenizer cannot be loaded or a server does not read a question.
    """
    texts = [problem.text for problem in problems(secrets.token_hex(8), num, _NUM_TERMS)]
    if pair.teacher.kind == "llamacpp":
        fields = [_messages(text) for text in texts]
        # A server may close a connection that it has kept just as the next question comes.
        connector = aiohttp.TCPConnector(force_close=True)
        async with aiohttp.ClientSession(connector=connector) as http:
            read = [await _read_by_llamacpp(http, pair.teacher, field) for field in fields]
        shared = num_shared(read)
        of_each = zip(fields, read, strict=True)
        return iter([Prompt(at, num_teacher=len(ids), num_shared=shared) for at, ids in of_each])
    if not loop_can_ask(pair):
        return iter([Prompt(_messages(text)) for text in texts])
    readers = [_reader("student", pair.student), _reader("teacher", pair.teacher)]
    asked: list[tuple[dict[str, Any], Question]]
    if not all(reader.has_template for reader in readers):
        texts = [_WITHOUT_TEMPLATE.format(question=text) for text in texts]
        asked = [({"prompt": text}, Question(prompt=text)) for text in texts]
    else:
        asked = [(_messages(text), Question((Message("user", text),))) for text in texts]
    rendered = [
        [await reader.render(question, Call("-")) for reader in readers] for _, question in asked
    ]
    shared = num_shared([teacher.token_ids for _, teacher in rendered])
    return iter(
        [
            Prompt(field, student.text, teacher.text, len(teacher.token_ids), shared)
            for (field, _), (student, teacher) in zip(asked, rendered, strict=True)
        ]
    )


async def _read_by_llamacpp(
    http: aiohttp.ClientSession, server: Served, messages: Mapping[str, Any]
) -> Sequence[int]:
    """Return the token ids of a question as the server reads it."""
    rendered = await _posted(http, f"{server.base_url}/apply-template", messages)
    asked = {"content": rendered["prompt"], "add_special": True, "parse_special": True}
    ids: list[int] = (await _posted(http, f"{server.base_url}/tokenize", asked))["tokens"]
    return ids


async def _posted(
    http: aiohttp.ClientSession, url: str, body: Mapping[str, Any]
) -> Mapping[str, Any]:
    async with http.post(url, json=body) as response:
        content = await response.read()
        if not response.ok:
            raise CannotMeasure(f"{url} answered {response.status}: {content[:500]!r}")
        found: dict[str, Any] = orjson.loads(content)
    return found


def num_shared(questions: Sequence[Sequence[int]]) -> int:
    """Return with how many token ids all questions begin; a single question shares none."""
    if len(questions) == 1:
        return 0
    places = zip(*questions, strict=False)
    return sum(1 for _ in takewhile(lambda ids: len(set(ids)) == 1, places))


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
