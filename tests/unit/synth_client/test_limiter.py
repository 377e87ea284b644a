import asyncio

import pytest

from synth_client.asking.limiter import Limiter, Permit
from tests.support.patience import PATIENCE_S


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def permits(limiter: Limiter, number: int) -> list[Permit]:
    return [await limiter.acquire() for _ in range(number)]


async def at_once(limiter: Limiter) -> Permit | None:
    """A permit, None where it does not come without waiting."""
    waiting = asyncio.create_task(limiter.acquire())
    await asyncio.sleep(0)
    if waiting.done():
        return waiting.result()
    waiting.cancel()
    await asyncio.wait({waiting})
    return None


async def full_round(limiter: Limiter, clock: Clock) -> None:
    """As many requests as there may be, all of which succeed."""
    taken = await permits(limiter, limiter.limit)
    clock.now += 1
    for permit in taken:
        limiter.succeeded(permit)
        limiter.release()


async def cut(limiter: Limiter, clock: Clock) -> None:
    clock.now += 1
    permit = await limiter.acquire()
    limiter.refused(permit, None, is_down=False)
    limiter.release()


async def test_until_the_first_cut_the_limit_grows_fast(clock: Clock) -> None:
    limiter = Limiter(1, 1000, start=8, clock=clock)
    await full_round(limiter, clock)
    assert 11 <= limiter.limit <= 16
    for _ in range(3):
        await full_round(limiter, clock)
    assert limiter.limit > 25


async def test_after_a_cut_the_limit_grows_by_one_a_round(clock: Clock) -> None:
    limiter = Limiter(1, 1000, start=100, clock=clock)
    await cut(limiter, clock)
    assert limiter.limit == 90
    for _ in range(5):
        await full_round(limiter, clock)
    assert 92 <= limiter.limit <= 95


async def test_a_burst_of_refusals_is_one_cut(clock: Clock) -> None:
    limiter = Limiter(1, 100, start=100, clock=clock)
    taken = await permits(limiter, 100)
    clock.now = 5
    for permit in taken:
        limiter.refused(permit, None, is_down=False)
        limiter.release()
    assert (limiter.num_cuts, limiter.limit) == (1, 90)
    clock.now = 6
    late = await limiter.acquire()
    limiter.refused(late, None, is_down=False)
    assert (limiter.num_cuts, limiter.limit) == (2, 81)


async def test_what_succeeds_from_before_a_cut_raises_nothing(clock: Clock) -> None:
    limiter = Limiter(1, 1000, start=20, clock=clock)
    taken = await permits(limiter, 20)
    clock.now = 5
    limiter.refused(taken[0], None, is_down=False)
    for permit in taken[1:]:
        limiter.succeeded(permit)
    assert limiter.limit == 18


async def test_the_limit_stays_between_floor_and_ceiling(clock: Clock) -> None:
    limiter = Limiter(3, 12, start=8, clock=clock)
    for _ in range(5):
        await full_round(limiter, clock)
    assert limiter.limit == 12
    for _ in range(40):
        await cut(limiter, clock)
    assert limiter.limit == 3
    assert Limiter(3, 12, start=1).limit == 3
    assert Limiter(3, 12, start=99).limit == 12


async def test_a_limit_that_is_not_used_does_not_grow(clock: Clock) -> None:
    limiter = Limiter(1, 100, start=20, clock=clock)
    for _ in range(50):
        (permit,) = await permits(limiter, 1)
        limiter.succeeded(permit)
        limiter.release()
    assert limiter.limit == 20


async def test_who_waits_gets_the_permit_that_comes_back() -> None:
    limiter = Limiter(1, 1)
    await limiter.acquire()
    waiting = asyncio.create_task(limiter.acquire())
    await asyncio.sleep(0)
    assert not waiting.done()
    limiter.release()
    await asyncio.wait_for(waiting, PATIENCE_S)


@pytest.mark.parametrize(("wished_s", "is_down"), [(0.2, True), (6.0, False)])
async def test_a_wait_that_is_meant_for_all_holds_all_back(wished_s: float, is_down: bool) -> None:
    clock = Clock()
    limiter = Limiter(1, 8, clock=clock)
    permit = await limiter.acquire()
    limiter.refused(permit, wished_s, is_down=is_down)
    limiter.release()
    assert await at_once(limiter) is None
    clock.now = wished_s
    await asyncio.wait_for(limiter.acquire(), PATIENCE_S)


async def test_a_short_wait_is_the_refused_requests_alone(clock: Clock) -> None:
    limiter = Limiter(1, 8, clock=clock)
    permit = await limiter.acquire()
    limiter.refused(permit, 1.0, is_down=False)
    limiter.release()
    await asyncio.wait_for(limiter.acquire(), PATIENCE_S)


async def test_in_an_outage_one_request_at_a_time_looks_whether_it_is_over(clock: Clock) -> None:
    limiter = Limiter(1, 20, start=20, clock=clock)
    taken = await permits(limiter, 20)
    for permit in taken:
        limiter.failed(permit)
        limiter.release()
    assert limiter.is_outage
    waits = []
    for _ in range(9):
        began = clock.now
        while limiter.num_active == 0:
            clock.now += 0.25
            permit = await at_once(limiter) or permit
        assert limiter.limit == 1
        waits.append(clock.now - began)
        limiter.failed(permit)
        limiter.release()
    assert waits == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    clock.now += 30
    permit = await limiter.acquire()
    limiter.succeeded(permit)
    limiter.release()
    assert (limiter.is_outage, limiter.limit, limiter.failing_s) == (False, 20, 0)


async def test_failures_with_successes_in_between_are_no_outage(clock: Clock) -> None:
    limiter = Limiter(1, 20, start=20, clock=clock)
    for _ in range(10):
        for _ in range(4):
            limiter.failed(await limiter.acquire())
            limiter.release()
        limiter.succeeded(await limiter.acquire())
        limiter.release()
    assert not limiter.is_outage


async def test_how_long_nothing_has_succeeded_is_known(clock: Clock) -> None:
    limiter = Limiter(1, 20, clock=clock)
    clock.now = 10
    limiter.failed(Permit(10))
    clock.now = 25
    limiter.refused(Permit(11), None, is_down=False)
    assert limiter.failing_s == 15
