"""Runs Jinja templates within bounds of time and size, because a template is a program of
somebody's that clients give its data.

Every loop, call and filter is a tick, at which the time is checked; whatever makes a long text out
of short ones is checked before it does.
"""

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from typing import Any, Final

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment

# The widths of `center`, `indent` and `%9d`.
_MAX_WIDTH: Final = 10_000
_MAX_BITS: Final = 10_000
_WIDTH: Final = re.compile(r"[{%][^%{}a-zA-Z]*?(\d{5,}|\*)")


@dataclass(frozen=True, slots=True)
class _Budget:
    until_s: float
    limit_s: float
    max_length: int

    def tick(self) -> None:
        if time.thread_time() > self.until_s:
            raise SecurityError(f"it takes longer than {self.limit_s:g} s")

    def check_length(self, length: int) -> None:
        if length > self.max_length:
            raise SecurityError(f"it makes a text or list of more than {self.max_length} items")


_budget: ContextVar[_Budget] = ContextVar("budget")


@contextmanager
def budget(limit_s: float, max_length: int) -> Iterator[None]:
    """Let templates run here for that much processor time, and make texts of that length."""
    token = _budget.set(_Budget(time.thread_time() + limit_s, limit_s, max_length))
    try:
        yield
    finally:
        _budget.reset(token)


class _Counting(CodeGenerator):
    """Compiles loops so that they count, and joined texts so that they are measured."""

    def visit_Template(self, node: nodes.Template, frame: Frame | None = None) -> None:  # noqa: N802
        for loop in list(node.find_all(nodes.For)):
            counted = nodes.Filter(loop.iter, "counted", [], [], None, None, lineno=loop.lineno)
            loop.iter = counted.set_environment(self.environment)
        super().visit_Template(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        self.write("environment.measured(")
        super().visit_Concat(node, frame)
        self.write(")")


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, bounded. A template that leaves the bounds raises `SecurityError`."""

    code_generator_class = _Counting
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **options: Any) -> None:  # noqa: ANN401
        super().__init__(**options)
        self.globals.pop("lipsum")
        self.filters = {name: _bounded(name, function) for name, function in self.filters.items()}
        self.filters["counted"] = _counted

    def measured(self, value: Any) -> Any:  # noqa: ANN401
        """Return the value. Raises `SecurityError` if it is too long."""
        if isinstance(value, Sized):
            _budget.get().check_length(len(value))
        return value

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        _budget.get().tick()
        if isinstance(obj, LoopContext) and args:  # a recursive loop
            args = (_counted(args[0]), *args[1:])
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, str | bytes):
            _check_growth(obj.__name__, owner, *args, *kwargs.values())
        return self.measured(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:  # noqa: ANN401
        allowed = _budget.get()
        allowed.tick()
        if operator == "*":
            for times, one in ((left, right), (right, left)):
                if isinstance(times, int) and isinstance(one, Sized):
                    allowed.check_length(times * len(one))
        if operator == "%" and isinstance(left, str):
            _check_growth("format", left)
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * (right if operator == "**" else 1) + right.bit_length()
            if bits > _MAX_BITS:
                raise SecurityError("it computes a number that is too large")
        return self.measured(super().call_binop(context, operator, left, right))


def _counted(iterable: Iterable[Any]) -> Iterator[Any]:
    allowed = _budget.get()
    for item in iterable:
        allowed.tick()
        yield item


def _bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)  # with Jinja's marks of the arguments that it passes itself
    def bounded(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        allowed = _budget.get()
        allowed.tick()
        _check_growth(name, *args, *kwargs.values())
        result = function(*args, **kwargs)
        if isinstance(result, Sized):
            allowed.check_length(len(result))
        return result

    return bounded


def _check_growth(name: str, *args: Any) -> None:  # noqa: ANN401
    """Raise `SecurityError` if this filter, or method of a text, would make a text too long."""
    if name in {"replace", "join", "format", "format_map"}:
        sizes = sorted((len(arg) for arg in args if isinstance(arg, Sized)), reverse=True)
        if name in {"replace", "join"} and len(sizes) > 1:
            # The most that could come; a short text in a long one is what templates do.
            _budget.get().check_length(sizes[0] * sizes[1] // 1000)
        if name.startswith("format") and any(isinstance(a, str) and _WIDTH.search(a) for a in args):
            raise SecurityError("it formats with a width that is too large")
    elif any(isinstance(arg, int) and arg > _MAX_WIDTH for arg in args):
        raise SecurityError(f"{name} gets a number above {_MAX_WIDTH}")
