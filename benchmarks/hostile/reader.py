"""Has the code of the folder in PYTHONPATH read one hostile file or text, and says how it ended.

Run as `python reader.py NAME BYTES hostile`, or with `harmless`, for as much that harms nothing.
"""

import json
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import yaml

from proxy.backends.base import Message
from proxy.backends.tokens.chat_template import ChatTemplate
from proxy.errors import MotabError
from proxy.yaml_file import load_yaml
from synth_client.judging.rules import PLAIN_RULES

MOST_S: Final = 60
_MOST_MEMORY: Final = 4 * 2**30
_RANGE: Final = "{% for a in range(99999) %}"
_LEVELS: Final = 9


def loops_in_loops(_: int, *, hostile: bool) -> str:
    """Render a chat template of loops in loops."""
    return _rendered(_RANGE * 4 + "x" + "{% endfor %}" * 4 if hostile else "x")


def doubled_texts(_: int, *, hostile: bool) -> str:
    """Render a chat template that doubles a text 30 times, up to 1 GB."""
    start, double = "{% set ns = namespace(a='x') %}", "{% set ns.a = ns.a ~ ns.a %}"
    return _rendered(
        start + "{% for i in range(30) %}" + double + "{% endfor %}" if hostile else "x"
    )


def aliases_of_aliases(_: int, *, hostile: bool) -> str:
    """Read YAML in which each of 9 lists holds the list before 9 times, and count its values."""
    lists = ["a0: &a0 [x]"]
    lists += [f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]" for n in range(_LEVELS)]
    return _read("\n".join(lists) if hostile else "a: [x]")


def alias_of_itself(_: int, *, hostile: bool) -> str:
    """Read YAML with a list that holds itself."""
    return _read("a: &a [*a]" if hostile else "a: [x]")


def deep_yaml(size: int, *, hostile: bool) -> str:
    """Read YAML of lists in lists."""
    half = size // 2
    return _read("[" * half + "]" * half if hostile else f"a: {'x' * size}")


def boxes_in_boxes(size: int, *, hostile: bool) -> str:
    """Judge an answer of boxes in boxes by the rules `number`, `choice` and `exact`."""
    num = size // 8
    return _judged("\\boxed{" * num + "7" + "}" * num if hostile else "x" * size)


def signs(size: int, *, hostile: bool) -> str:
    """Judge an answer of currency signs, spaces and minus signs by the same rules."""
    return _judged("$ -" * (size // 3) + "7" if hostile else "x" * size)


def _rendered(template: str) -> str:
    try:
        length = len(ChatTemplate(template).render((Message("user", "Q"),)))
    except MotabError:
        return "refused"
    return f"rendered, {length} characters"


def _read(document: str) -> str:
    try:
        found = load_yaml(document)
    except yaml.YAMLError:
        return "refused"
    return f"read, {_num_values(found)} values"


def _num_values(found: object) -> int:
    """Count as whoever uses a document walks through it."""
    if isinstance(found, dict):
        return 1 + sum(map(_num_values, found.values()))
    return 1 + sum(map(_num_values, found)) if isinstance(found, list) else 1


def _judged(output: str) -> str:
    for rule in PLAIN_RULES.values():
        rule(output, "7")
    return "judged"


READERS: Final[dict[str, Callable[..., str]]] = {
    reader.__name__: reader
    for reader in (
        loops_in_loops,
        doubled_texts,
        aliases_of_aliases,
        alias_of_itself,
        deep_yaml,
        boxes_in_boxes,
        signs,
    )
}


def _late(*_: object) -> None:
    raise TimeoutError


def _peak_mb() -> float:
    status = Path("/proc/self/status").read_text("ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


def main(name: str, num_bytes: int, *, hostile: bool) -> None:
    """Read within limits, and print the answer, the processor time and the most memory."""
    signal.signal(signal.SIGXCPU, _late)
    resource.setrlimit(resource.RLIMIT_CPU, (MOST_S, MOST_S + 5))
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY, _MOST_MEMORY))
    began = time.process_time()
    try:
        answer = READERS[name](num_bytes, hostile=hostile)
    except MemoryError:
        answer = f"needs more than {_MOST_MEMORY // 2**30} GiB"
    except TimeoutError:
        answer = f"not done after {MOST_S} s"
    except RecursionError:
        answer = "ended by a RecursionError"
    ended = {"answer": answer, "cpu_s": time.process_time() - began, "peak_mb": _peak_mb()}
    sys.stdout.write(json.dumps(ended))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), hostile=sys.argv[3] == "hostile")
