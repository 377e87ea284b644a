import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest

from synth_client.asking.errors import SynthesisError, Trouble
from synth_client.asking.limiter import Limiter
from synth_client.asking.pool import Asker, Budgets, Failed, Outcome, Pool
from synth_client.errors import InputError, OutputError, RunAborted
from synth_client.questions.question import Question, Synthesis, Unit, units_of
from tests.support.patience import PATIENCE_S
from tests.support.records import breached, record_of
from trajectory_records.record import Message, Record

FAST = Budgets(first_s=0.01, longest_s=0.02)
SYNTHESIS = Synthesis(model="m")
Fault = Callable[[Unit, int], SynthesisError | None]


def units(number: int) -> Iterator[Unit]:
    for i in range(number):
        question = Question(str(i), (Message(role="user", content=f"What is {i}?"),))
        yield from units_of(question, SYNTHESIS, 1)


def status(code: int | None, **more: float) -> SynthesisError:
    error = SynthesisError("said so", status=code)
    error.retry_after_s = more.get("retry_after_s")
    return error


def asker(fault: Fault) -> Asker:
    async def ask(unit: Unit, *, attempt: int) -> Record:
        await asyncio.sleep(0)
        error = fault(unit, attempt)
        if error is not None:
            raise error
        return record_of(breached() | {"id": unit.question.id, "attempts": attempt})

    return ask


async def work(
    ask: Asker, number: int = 1, budgets: Budgets = FAST, num_workers: int = 4
) -> dict[str, Outcome]:
    """The outcome of each unit, of which none may be delivered twice."""
    outcomes: dict[str, Outcome] = {}

    async def deliver(outcome: Outcome) -> None:
        assert outcome.unit.question.id not in outcomes
        outcomes[outcome.unit.question.id] = outcome

    pool = Pool(ask, Limiter(1, num_workers), num_workers=num_workers, budgets=budgets)
    await asyncio.wait_for(pool.run(units(number), deliver), PATIENCE_S)
    return outcomes


async def test_every_unit_is_delivered_once() -> None:
    outcomes = await work(asker(lambda _unit, _attempt: None), 500)
    assert outcomes.keys() == {str(i) for i in range(500)}
    assert all(isinstance(outcome.result, Record) for outcome in outcomes.values())


async def test_no_units_are_no_work() -> None:
    assert await work(asker(lambda _unit, _attempt: None), 0) == {}


@pytest.mark.parametrize(
    ("code", "attempts"), [(500, 6), (None, 6), (429, 60), (503, 60), (200, 3), (400, 1)]
)
async def test_each_class_of_errors_has_its_budget(code: int | None, attempts: int) -> None:
    asked: list[int] = []

    def fault(_unit: Unit, attempt: int) -> SynthesisError:
        asked.append(attempt)
        return status(code)

    budgets = Budgets(first_s=0.001, longest_s=0.002)
    ask = asker(fault)
    if code in {500, None}:  # in an outage probes go out seconds apart, so others succeed
        ask = asker(lambda unit, attempt: fault(unit, attempt) if unit.question.id == "0" else None)
    result = (await work(ask, 40 if code in {500, None} else 1, budgets))["0"].result
    assert isinstance(result, Failed)
    assert result.attempts == attempts
    assert asked == list(range(1, attempts + 1))


async def test_budgets_of_different_classes_do_not_add_up() -> None:
    def fault(_unit: Unit, attempt: int) -> SynthesisError | None:
        codes = [200, 500, 429, 500, 200, 429, 429]
        return status(codes[attempt - 1]) if attempt <= len(codes) else None

    result = (await work(asker(fault)))["0"].result
    assert isinstance(result, Record)
    assert result.attempts == 8


async def test_a_unit_that_waits_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def fault(unit: Unit, attempt: int) -> SynthesisError | None:
        if unit.question.id == "0" and attempt == 1:
            return status(429, retry_after_s=0.1)
        order.append(unit.question.id)
        return None

    # Its wait is over when the others are done, however long they take.
    clock = SimpleNamespace(monotonic=lambda: float(len(order) >= 29))
    monkeypatch.setattr("synth_client.asking.pool.time", clock)
    await work(asker(fault), 30, num_workers=1)
    assert order == [*(str(i) for i in range(1, 30)), "0"]


async def test_a_retry_runs_beside_new_units() -> None:
    order: list[str] = []

    async def ask(unit: Unit, *, attempt: int) -> Record:
        if unit.question.id == "0" and attempt == 1:
            raise status(429)
        await asyncio.sleep(0.005)
        order.append(unit.question.id)
        return record_of(breached() | {"id": unit.question.id})

    await work(ask, 60, num_workers=1)
    assert 0 < order.index("0") < 20


async def test_the_servers_wish_is_waited_for() -> None:
    loop = asyncio.get_running_loop()
    times: list[float] = []

    def fault(_unit: Unit, attempt: int) -> SynthesisError | None:
        times.append(loop.time())
        return status(429, retry_after_s=0.2) if attempt == 1 else None

    await work(asker(fault))
    assert times[1] - times[0] >= 0.2


def test_waits_grow_to_a_limit_and_are_jittered() -> None:
    budgets = Budgets(first_s=1.0, longest_s=10.0)
    for num_failures, longest in [(1, 1), (2, 2), (3, 4), (4, 8), (5, 10), (50, 10)]:
        waits = {budgets.wait_s(num_failures, None) for _ in range(50)}
        assert len(waits) > 10
        assert all(longest / 2 <= wait <= longest for wait in waits)
    assert budgets.wait_s(1, 30.0) > 30


async def test_units_are_read_only_as_they_are_needed() -> None:
    num_read = 0

    def counted() -> Iterator[Unit]:
        nonlocal num_read
        for unit in units(10_000):
            num_read += 1
            yield unit

    enough = asyncio.Event()

    async def ask(unit: Unit, *, attempt: int) -> Record:
        await enough.wait()
        raise AssertionError

    async def deliver(_outcome: Outcome) -> None: ...

    pool = Pool(ask, Limiter(1, 8), num_workers=8)
    running = asyncio.create_task(pool.run(counted(), deliver))
    await asyncio.sleep(0.1)
    assert num_read < 200
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_when_everything_fails_only_so_many_units_are_begun() -> None:
    begun: set[str] = set()
    many = asyncio.Event()

    def fault(unit: Unit, _attempt: int) -> SynthesisError:
        begun.add(unit.question.id)
        if len(begun) == 8:
            many.set()
        return status(429)

    async def deliver(_outcome: Outcome) -> None: ...

    pool = Pool(asker(fault), Limiter(1, 4), num_workers=4, budgets=Budgets(first_s=60.0))
    running = asyncio.create_task(pool.run(units(1000), deliver))
    await many.wait()
    for _ in range(1000):
        await asyncio.sleep(0)
    assert 8 <= len(begun) <= 12
    assert pool.load.num_waiting == len(begun)
    pool.drain()
    await asyncio.wait_for(running, PATIENCE_S)


async def test_drained_it_ends_with_what_is_under_way_and_begins_nothing() -> None:
    started: Counter[str] = Counter()
    go_on = asyncio.Event()
    full = asyncio.Event()
    delivered: list[str] = []

    async def ask(unit: Unit, *, attempt: int) -> Record:
        started[unit.question.id] += 1
        if len(started) == 4:
            full.set()
        await go_on.wait()
        if unit.question.id == "1":
            raise status(500)
        return record_of(breached() | {"id": unit.question.id})

    async def deliver(outcome: Outcome) -> None:
        delivered.append(outcome.unit.question.id)

    pool = Pool(ask, Limiter(1, 4), num_workers=4, budgets=FAST)
    running = asyncio.create_task(pool.run(units(50), deliver))
    await full.wait()
    pool.drain()
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.wait_for(running, PATIENCE_S)
    assert started.total() == 4
    assert sorted(delivered) == ["0", "2", "3"]


async def test_what_the_server_would_answer_to_all_ends_the_run() -> None:
    asked: list[str] = []

    def fault(unit: Unit, _attempt: int) -> SynthesisError:
        asked.append(unit.question.id)
        return status(401)

    with pytest.raises(RunAborted, match="refuses the run: HTTP 401: said so"):
        await work(asker(fault), 100)
    assert len(asked) <= 4


@pytest.mark.parametrize("code", [500, 503, None])
async def test_a_server_that_does_not_come_back_ends_the_run(code: int | None) -> None:
    impatient = replace(FAST, patience_s=0.3)
    impatient = replace(impatient, attempts=dict.fromkeys(Trouble, 1000))
    with pytest.raises(RunAborted, match="nothing has succeeded for"):
        await work(asker(lambda _unit, _attempt: status(code)), 1000, impatient)


async def test_a_server_that_comes_back_is_found_again() -> None:
    loop = asyncio.get_running_loop()
    back_at = loop.time() + 0.4
    asked = 0

    def fault(_unit: Unit, _attempt: int) -> SynthesisError | None:
        nonlocal asked
        asked += 1
        return status(None) if loop.time() < back_at else None

    outcomes = await work(asker(fault), 200, num_workers=16)
    assert all(isinstance(outcome.result, Record) for outcome in outcomes.values())
    assert asked < 240


async def test_where_the_input_breaks_off_all_before_it_is_done() -> None:
    def broken() -> Iterator[Unit]:
        yield from units(70)
        raise InputError("in.json: invalid JSON after row 70")

    delivered: list[str] = []

    async def deliver(outcome: Outcome) -> None:
        delivered.append(outcome.unit.question.id)

    pool = Pool(asker(lambda _unit, _attempt: None), Limiter(1, 4), num_workers=4)
    with pytest.raises(InputError, match="after row 70"):
        await pool.run(broken(), deliver)
    assert len(delivered) == 70


async def test_what_cannot_be_delivered_ends_the_run() -> None:
    async def deliver(_outcome: Outcome) -> None:
        raise OutputError("the disk is full")

    pool = Pool(asker(lambda _unit, _attempt: None), Limiter(1, 4), num_workers=4)
    with pytest.raises(OutputError, match="the disk is full"):
        await pool.run(units(100), deliver)


async def test_questions_that_are_refused_cost_the_others_nothing() -> None:
    """Counted in attempts and on a clock that stands, so that no machine's speed matters."""
    asked: Counter[str] = Counter()

    def fault(unit: Unit, _attempt: int) -> SynthesisError | None:
        asked[unit.question.id] += 1
        if int(unit.question.id) < 32:
            return SynthesisError("refused", status=502, code="upstream_refused")
        return None

    budgets = Budgets(first_s=3600.0)  # a retry would never come
    outcomes = await work(asker(fault), 64, budgets)
    assert [isinstance(outcomes[str(i)].result, Record) for i in range(64)] == [
        i >= 32 for i in range(64)
    ]
    assert set(asked.values()) == {1}


async def test_in_an_outage_other_questions_are_asked_before_those_that_failed() -> None:
    """A server that fails at its first questions is found to be up by the next ones."""
    asked: list[str] = []

    def fault(unit: Unit, _attempt: int) -> SynthesisError | None:
        asked.append(unit.question.id)
        return status(502) if int(unit.question.id) < 11 and "11" not in asked else None

    outcomes = await work(asker(fault), 14, num_workers=8)
    assert asked[:12] == [str(i) for i in range(12)]
    assert all(isinstance(outcome.result, Record) for outcome in outcomes.values())


def costing(attempt: int) -> SynthesisError:
    usage = record_of(breached()).usage
    return SynthesisError("down", status=502, spent=usage if attempt != 2 else None)


async def test_a_record_counts_what_the_attempts_before_it_cost() -> None:
    outcomes = await work(asker(lambda _unit, attempt: costing(attempt) if attempt < 4 else None))
    record = outcomes["0"].result
    assert isinstance(record, Record)
    assert record.wasted is not None
    # Two of the three failures stated a cost; what the kept attempt used is apart.
    assert record.wasted.motab.student_tokens == 2 * record.usage.motab.student_tokens
    assert record.wasted.prompt_tokens == 2 * 20
    assert record.wasted.motab.score_calls == 2 * 4


async def test_a_record_of_the_first_attempt_has_wasted_nothing() -> None:
    record = (await work(asker(lambda _unit, _attempt: None)))["0"].result
    assert isinstance(record, Record)
    assert b"wasted" not in record.to_json_line()


async def test_a_failure_counts_what_all_its_attempts_cost() -> None:
    failed = (await work(asker(lambda _unit, attempt: costing(attempt))))["0"].result
    assert isinstance(failed, Failed)
    assert failed.wasted is not None
    assert failed.wasted.motab.correction_calls == FAST.attempts[Trouble.TRANSIENT] - 1
