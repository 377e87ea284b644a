"""Builds services whose teacher writes another correction for every seed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from motab.answers import JudgedAnswers
from proxy.api.service import Service
from proxy.backends.base import Sampling
from proxy.engine.seeds import seed_of_write
from tests.support.proxy.api import A, B, service_of
from tests.support.scripted import Script, ScriptedBackend, says, values

SEED = 7
BEFORE = A + B + "However,\n\n"


def box(answer: object, *more: str) -> Script:
    """A correction that gives an answer, in as many tokens more as are wanted."""
    return says("So ", *more, f"\\boxed{{{answer}}}")


def teacher_of(*corrections: Script, judge: Any = None) -> ScriptedBackend:
    """A teacher that writes its k-th correction by the k-th seed of a request with `SEED`."""
    by_seed = {seed_of_write(SEED, index): one for index, one in enumerate(corrections)}

    def script(sampling: Sampling) -> Script:
        assert sampling.seed is not None
        return by_seed[sampling.seed]

    return ScriptedBackend(script, judge or values({A: 0.9, B: 0.05}))


@contextmanager
def choosing(*corrections: Script, rule: str = "number", **server: Any) -> Iterator[Service]:
    """A service whose student strays, and that can choose among corrections."""
    with choosing_of(teacher_of(*corrections), rule, **server) as service:
        yield service


@contextmanager
def choosing_of(teacher: ScriptedBackend, rule: str = "number", **server: Any) -> Iterator[Service]:
    service = service_of(ScriptedBackend(says((A, B, "tail"))), teacher, **server)
    with JudgedAnswers(rule) as service.reader:
        yield service


def asking(num: int, reference: str | None = None, **options: Any) -> dict[str, Any]:
    """The fields of a request for that many corrections."""
    known = {} if reference is None else {"reference": reference}
    return {"seed": SEED, "motab": {"corrections": num, **known, **options}}
