"""Answers verified in real processes, hostile ones among them."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from synth_client.errors import InputError
from synth_client.judging.verifier import Limits, Verifier
from tests.support.patience import PATIENCE_S, longer_and_longer
from tests.support.records import record_of, unbroken
from trajectory_records.record import Record, Verification

GIB = 2**30


def record(output: str, answer: str | None = None) -> Record:
    spans = [{"role": "student", "start": 0, "end": len(output)}]
    return record_of(
        unbroken(output=output, spans=spans, steps=[], answer=answer, verification=None)
    )


def result(verifier: Verifier, output: str, answer: str | None) -> tuple[str | None, bool | None]:
    verified = verifier.verify(record(output, answer))
    assert verified.verification == Verification(rule=verifier.rule, fault=None)
    return verified.predicted, verified.correct


@pytest.fixture(scope="module")
def math() -> Iterator[Verifier]:
    with Verifier("math", num_workers=1) as verifier:
        yield verifier


@pytest.mark.parametrize(
    ("output", "answer", "predicted", "correct"),
    [
        ("So the answer is $\\boxed{\\frac{2}{4}}$.", "\\frac12", "\\frac{2}{4}", True),
        ("So the answer is $\\boxed{0.5}$.", "1/2", "0.5", True),
        ("The answer is 1,234.", "1234", "1234", True),
        ("Hence $x = 3$.", "3", "x = 3", True),
        ("It is $2\\sqrt{3}$.", "$\\sqrt{12}$", "2\\sqrt{3}", True),
        ("It is \\boxed{(1,2)}", "(1, 2)", "(1,2)", True),
        ("It is \\boxed{\\{2,1\\}}", "\\{1,2\\}", "\\{2,1\\}", True),
        ("The answer is 36.", "37", "36", False),
        ("The answer is 36 apples.", "He sums: #### 36", "36", True),
        ("First I had \\boxed{5}.\n\nBut it is \\boxed{6}.", "5", "6", False),
        ("<think>\\boxed{5}</think>It is \\boxed{6}", "6", "6", True),
        ("Who knows?", "36", None, False),
        ("The answer is 36.", None, "36", None),
    ],
)
def test_math_compares_what_the_answers_mean(
    math: Verifier, output: str, answer: str | None, predicted: str | None, correct: bool | None
) -> None:
    assert result(math, output, answer) == (predicted, correct)


@pytest.mark.parametrize(
    "bomb", ["9^{9^{9^9}}", "100000000!", "\\sum_{n=1}^{10^9} \\sin(n^n)", "(" * 3000 + ")" * 3000]
)
def test_a_bomb_costs_its_own_answer_in_the_time_limit_and_no_verdict(bomb: str) -> None:
    with Verifier("math", limits=Limits(seconds=2.0), num_workers=1) as verifier:
        verifier.start()
        bombed = verifier.verify(record(f"It is $\\boxed{{{bomb}}}$", "3"))
        assert (bombed.predicted, bombed.correct) == (None, None)
        assert bombed.verification is not None
        assert bombed.verification.fault == "verification took longer than 2 s"


def test_the_next_answer_gets_a_new_process() -> None:
    for limit_s in longer_and_longer(2.0):
        with Verifier("math", limits=Limits(seconds=limit_s), num_workers=1) as verifier:
            assert verifier.verify(record("\\boxed{9^{9^{9^9}}}", "3")).correct is None
            found = result(verifier, "\\boxed{3}", "3")
        if found != (None, None):
            break
    else:
        pytest.fail("no limit was long enough")
    assert found == ("3", True)


@pytest.fixture
def rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Rules of the user's own, in the current folder."""
    (tmp_path / "own.py").write_text(
        "import os, time\n"
        "def length(record):\n"
        "    print('looking')\n"
        "    return record['id'], len(record['output']) == int(record['answer'])\n"
        "def eat(record):\n"
        "    hoard = []\n"
        "    while True:\n"
        "        hoard.append(bytearray(2**24))\n"
        "def die(record):\n"
        "    os.kill(os.getpid(), 9)\n"
        "def nap(record):\n"
        "    open(record['answer'], 'w').write(str(os.getpid()))\n"
        "    time.sleep(600)\n"
        "def number(record):\n"
        "    return 3\n"
        "def steps(record):\n"
        "    score = float(record['answer'])\n"
        "    return None, False, {'right_steps': score}\n"
        "nothing = None\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("rules")
def test_a_callable_of_the_users_sees_the_record_and_may_print() -> None:
    with Verifier("own:length", num_workers=1) as verifier:
        assert result(verifier, "four", "4") == ("bags", True)
        assert result(verifier, "four", "5") == ("bags", False)


@pytest.mark.usefixtures("rules")
def test_a_callable_may_give_scores() -> None:
    with Verifier("own:steps", num_workers=1) as verifier:
        verified = verifier.verify(record("text", "2"))
        assert verified.correct is False
        assert verified.verification is not None
        assert verified.verification.scores == {"right_steps": 2.0}


@pytest.mark.usefixtures("rules")
@pytest.mark.parametrize(
    ("rule", "fault"),
    [
        ("own:eat", "verification took more than 512 MiB of memory"),
        ("own:die", "verification ended with exit code -9"),
        ("own:number", "TypeError: the rule must return (predicted, correct), got 3"),
        (
            "own:steps",
            "TypeError: the scores must be finite numbers by name, not {'right_steps': inf}",
        ),
        ("own:length", "ValueError: invalid literal for int() with base 10: 'x'"),
    ],
)
def test_a_callable_that_fails_decides_nothing(rule: str, fault: str) -> None:
    limits = Limits(num_bytes=GIB // 2)
    with Verifier(rule, limits=limits, num_workers=1) as verifier:
        verified = verifier.verify(record("text", "inf" if rule == "own:steps" else "x"))
        assert (verified.predicted, verified.correct) == (None, None)
        assert verified.verification == Verification(rule=rule, fault=fault)


@pytest.mark.usefixtures("rules")
@pytest.mark.parametrize(
    ("rule", "fault"),
    [
        ("none_such:judge", "ModuleNotFoundError: No module named 'none_such'"),
        ("own:missing", "module 'own' has no attribute 'missing'"),
        ("own:nothing", "own:nothing is not callable"),
    ],
)
def test_a_rule_that_cannot_be_loaded_fails_at_the_start(rule: str, fault: str) -> None:
    with Verifier(rule) as verifier, pytest.raises(InputError, match=fault):
        verifier.start()


def test_the_rule_math_says_where_its_packages_are_if_they_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = "raise ModuleNotFoundError(\"No module named 'sympy'\", name='sympy')"
    (tmp_path / "sympy.py").write_text(absent)
    monkeypatch.syspath_prepend(tmp_path)
    fault = "math cannot be loaded: ImportError: sympy is missing: pip install motab has it"
    with Verifier("math") as verifier, pytest.raises(InputError, match=fault):
        verifier.start()


async def test_the_event_loop_goes_on_while_an_answer_is_verified() -> None:
    with Verifier("math", limits=Limits(seconds=1.5), num_workers=1) as verifier:
        await asyncio.to_thread(verifier.start)
        bombed = asyncio.create_task(verifier.verified(record("\\boxed{9^{9^{9^9}}}", "3")))
        num_turns = 0
        while not bombed.done():
            await asyncio.sleep(0.01)
            num_turns += 1
        assert (await bombed).correct is None
        assert num_turns > 3  # held up, it would have been one


@pytest.mark.usefixtures("rules")
def test_an_idle_process_that_died_is_replaced() -> None:
    with Verifier("own:length", num_workers=1) as verifier:
        assert result(verifier, "four", "4") == ("bags", True)
        (worker,) = verifier._all
        os.kill(worker._process.pid, signal.SIGKILL)
        worker._process.wait(PATIENCE_S)
        assert result(verifier, "four", "4") == ("bags", True)


@pytest.mark.usefixtures("rules")
def test_the_end_kills_the_busy_and_leaves_no_process_behind(tmp_path: Path) -> None:
    started = tmp_path / "pid"
    with Verifier("own:nap", num_workers=1) as verifier:
        busy = threading.Thread(target=_ignoring, args=(verifier, record("x", str(started))))
        busy.start()
        while not (started.exists() and started.read_text()):
            time.sleep(0.01)
    busy.join(PATIENCE_S)
    assert not busy.is_alive()
    assert not psutil.pid_exists(int(started.read_text()))


def _ignoring(verifier: Verifier, one: Record) -> None:
    with pytest.raises(Exception, match="stopped while an answer was verified"):
        verifier.verify(one)


def test_an_orphan_ends_by_itself() -> None:
    """kill -9 of the parent in the middle of a bomb."""
    bombed = record("\\boxed{9^{9^{9^9}}}", "3").to_json_line().decode()
    script = (
        "import sys\n"
        "from trajectory_records.record import Record\n"
        "from synth_client.judging.verifier import Limits, Verifier\n"
        "verifier = Verifier('math', limits=Limits(seconds=2.0), num_workers=1)\n"
        "verifier.start()\n"
        "(worker,) = verifier._all\n"
        "print(worker._process.pid, flush=True)\n"
        "verifier.verify(Record.from_json_line(sys.stdin.readline()))\n"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        orphan = psutil.Process(int(parent.stdout.readline()))
        spent = orphan.cpu_times().user
        parent.stdin.write(bombed)
        parent.stdin.flush()
        while orphan.cpu_times().user < spent + 0.5:
            time.sleep(0.01)
        parent.kill()
    assert orphan.is_running()
    # Nobody reaps it where there is no init, so it may stay as a zombie.
    while orphan.is_running() and orphan.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.05)
