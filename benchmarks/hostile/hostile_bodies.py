"""Attacks with bodies that are small, and cost much to read or to obey."""

from collections.abc import Callable
from typing import Final

import orjson

from benchmarks.hostile.attack import Attack, Target

_CHAT: Final = "/v1/chat/completions"
_TEXT: Final = "/v1/completions"
_SCORE: Final = "/v1/motab/score"
_QUESTION: Final = '"messages":[{"role":"user","content":"Q"}]'
_LARGEST: Final = 4_000_000  # below `max_body_bytes`


def messages_of_numbers(target: Target) -> str:
    """Send numbers for messages."""
    return _sent(target, _CHAT, lambda size: f'"messages":{_many("1", size)}')


def messages_of_objects(target: Target) -> str:
    """Send empty objects for messages."""
    return _sent(target, _CHAT, lambda size: f'"messages":{_many("{}", size)}')


def parts_of_numbers(target: Target) -> str:
    """Send numbers for the parts of a message."""

    def fields(size: int) -> str:
        return f'"messages":[{{"role":"user","content":{_many("1", size)}}}]'

    return _sent(target, _CHAT, fields)


def unknown_fields(target: Target) -> str:
    """Send fields that no table has."""
    return _sent(target, _CHAT, lambda size: f"{_QUESTION},{_keys(size)}")


def unknown_options(target: Target) -> str:
    """Send a `motab` object of fields that motab lacks."""
    return _sent(target, _CHAT, lambda size: f'{_QUESTION},"motab":{{{_keys(size)}}}')


def prompts_of_texts_and_numbers(target: Target) -> str:
    """Send a list of texts and numbers for the prompt."""
    item = '"ab",1.5'
    return _sent(target, _TEXT, lambda size: f'"prompt":{_many(item, size)}')


def lists_in_lists(target: Target) -> str:
    """Send lists in lists for messages."""
    return _sent(target, _CHAT, lambda size: f'"messages":{"[" * size}')


def steps_of_a_text(target: Target) -> str:
    """Ask for the scores of a text of delimiters."""
    delimiter = "a.\\n\\n"
    return _sent(
        target, _SCORE, lambda size: f'{_QUESTION},"text":"{delimiter * (size // len(delimiter))}"'
    )


def huge_top_k(target: Target) -> str:
    """Ask for the entropy of 10^19 candidates."""
    options = f'{_QUESTION},"text":"A","motab":{{"entropy_top_k":{10**19}}}'
    return _answer(target, _SCORE, options)


def _sent(target: Target, path: str, fields: Callable[[int], str]) -> str:
    """Send bodies of these fields, of `target.num_bytes` in all; return the answers."""
    num_bodies = -(-target.num_bytes // _LARGEST)
    made = fields(target.num_bytes // num_bodies)
    answers = [_answer(target, path, made) for _ in range(num_bodies)]
    return ", ".join(sorted(set(answers)))


def _answer(target: Target, path: str, fields: str) -> str:
    body = b'{"model":%s,%s}' % (orjson.dumps(target.model), fields.encode())
    length = f"Content-Length: {len(body)}"
    with target.connected() as connection:
        head = target.head(f"POST {path}", "Content-Type: application/json", length)
        connection.send(head + body)
        return connection.status()


def _many(item: str, size: int) -> str:
    return f"[{','.join([item] * (size // (len(item) + 1)))}]"


def _keys(size: int) -> str:
    return ",".join(f'"k{number}":1' for number in range(size // 12))


_BODIES: Final = "small bodies that cost much"
ATTACKS: Final = (
    Attack(_BODIES, messages_of_numbers),
    Attack(_BODIES, messages_of_objects, ("key",)),
    Attack(_BODIES, parts_of_numbers, ("key",)),
    Attack(_BODIES, unknown_fields, ("key",)),
    Attack(_BODIES, unknown_options, ("key",)),
    Attack(_BODIES, prompts_of_texts_and_numbers, ("key",)),
    Attack(_BODIES, lists_in_lists, ("key",)),
    Attack(_BODIES, steps_of_a_text),
    Attack(_BODIES, huge_top_k, ("key",)),
)
