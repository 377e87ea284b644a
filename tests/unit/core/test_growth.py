"""Four times the text costs about four times the processor, because nothing is done again for each
piece. Quadratic work costs sixteen times, and a limit between them holds on any machine.
"""

import time
from collections.abc import Callable
from typing import get_args

import pytest

from proxy.core.monitor import monitor_for
from proxy.core.params import Delimiters, Method, Params
from proxy.core.segmenter import Segmenter, split_steps
from proxy.core.types import Author, Command, Finish, Score, Scored, StepScore, Write, Wrote

# Long pieces, because copying is what a long step must not cost.
LONG_PIECE = "word " * 60


def assert_linear(work: Callable[[int], None], num: int) -> None:
    def least(num: int) -> float:
        found = []
        for _ in range(3):
            started = time.process_time()
            work(num)
            found.append(time.process_time() - started)
        return min(found)

    assert least(4 * num) < 8 * least(num)


def author_of(commands: list[Command]) -> Author:
    return next(command.author for command in commands if isinstance(command, Write))


def params(method: Method, **fields: object) -> Params:
    caps = {"max_total_tokens": 10**6, "max_step_tokens": 10**6, "beta": 0.0}
    return Params(method=method, **{**caps, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize("method", get_args(Method))
def test_a_text_without_the_delimiter(method: Method) -> None:
    def work(num: int) -> None:
        monitor = monitor_for(params(method))
        monitor.start()
        logprobs = ((-0.1,),) if method == "skd" else None
        for _ in range(num):
            monitor.handle(Wrote(0, (LONG_PIECE,), logprobs))

    assert_linear(work, 3_000)


@pytest.mark.parametrize("before", ["", "```\n"], ids=["steps", "code"])
def test_several_delimiters(before: str) -> None:
    # One of them never comes, and those in code end nothing.
    ends = Delimiters(any=(".\n\n", "\N{SNOWMAN}"), keep_code=True)

    def whole(num: int) -> None:
        split_steps(before + "x.\n\n" * num, ends)

    def in_pieces(num: int) -> None:
        segmenter = Segmenter(ends, 10**6, 10**6)
        segmenter.feed(before)
        for _ in range(num):
            segmenter.feed("x.\n\n")
        segmenter.close()

    assert_linear(whole, 20_000)
    assert_linear(in_pieces, 3_000)


@pytest.mark.parametrize("method", ["imitkd", "skd"])
def test_a_teachers_text_without_the_delimiter(method: Method) -> None:
    def work(num: int) -> None:
        monitor = monitor_for(params(method, beta=1.0))
        commands = monitor.start()
        if method == "skd":
            monitor.handle(Wrote(0, ("No.\n\n",), ((-0.1,),)))
            commands = monitor.handle(Scored((StepScore(0.0, None, 1),)))
        assert author_of(commands) == "teacher"
        for _ in range(num):
            monitor.handle(Wrote(1 if method == "skd" else 0, (LONG_PIECE,)))

    assert_linear(work, 3_000)


def test_a_token_that_ends_many_steps() -> None:
    def work(num: int) -> None:
        monitor = monitor_for(params("student"))
        monitor.start()
        monitor.handle(Wrote(0, (f"{LONG_PIECE}.\n\n" * num,)))

    assert_linear(work, 3_000)


def test_an_event_of_many_steps() -> None:
    def work(num: int) -> None:
        monitor = monitor_for(params("motab"))
        monitor.start()
        monitor.handle(Wrote(0, ("word", ".", "\n\n") * num))

    assert_linear(work, 5_000)


@pytest.mark.parametrize("stitch", ["flawed", "clean"])
@pytest.mark.parametrize("backtrack", ["td_error", "none"])
def test_a_text_of_many_steps(stitch: str, backtrack: str) -> None:
    def work(num: int) -> None:
        monitor = monitor_for(params("motab", stitch=stitch, backtrack=backtrack))
        monitor.start()
        for index in range(num):
            piece = "word.\n\n" if index % 8 == 7 else "word"
            commands = monitor.handle(Wrote(0, (piece,)))
            if any(isinstance(command, Score) for command in commands):
                monitor.handle(Scored((StepScore(0.9 - 0.0001 * (index % 7), 0.5, 8),), 0.5))

    assert_linear(work, 4_000)


def test_a_correction_that_begins_with_blank_lines() -> None:
    def work(num: int) -> None:
        monitor = monitor_for(params("motab"))
        monitor.start()
        monitor.handle(Wrote(0, ("No.\n\n",)))
        commands = monitor.handle(Scored((StepScore(0.0, 0.0, 1),)))
        assert author_of(commands) == "teacher"
        for _ in range(num):
            assert not any(isinstance(c, Finish) for c in monitor.handle(Wrote(1, ("\n" * 20,))))

    assert_linear(work, 4_000)
