"""Tests that a call gets the right replica, and that replicas come and go."""

import asyncio
from collections import Counter
from contextlib import ExitStack, suppress

import pytest

from proxy.backends.base import Call
from proxy.backends.transport.replicas import OK, Place, Replicas
from proxy.errors import (
    UpstreamDenied,
    UpstreamError,
    UpstreamFailed,
    UpstreamGarbled,
    UpstreamMalformed,
    UpstreamRefused,
    UpstreamUnreachable,
)

A, B, C = "http://a:1", "http://b:2", "http://c:3"
GONE = UpstreamUnreachable("up", "no connection")
BROKEN = UpstreamFailed("up", "500")


class Servers:
    """Servers that answer a probe, or fail it with a given error."""

    def __init__(self) -> None:
        self.faults: dict[str, UpstreamError] = {}
        self.asked: Counter[str] = Counter()
        self.waits: list[float] = []
        self.may_probe = asyncio.Event()

    async def verify(self, base_url: str) -> None:
        self.asked[base_url] += 1
        if (fault := self.faults.get(base_url)) is not None:
            raise fault

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        await self.may_probe.wait()
        await asyncio.sleep(0)

    async def opened(self, *urls: str, first: int = 0) -> Replicas:
        replicas = Replicas("up", urls, first=first, sleep=self.sleep)
        await replicas.open(self.verify)
        replicas.probe()
        return replicas


@pytest.fixture
async def servers() -> Servers:
    return Servers()


def fail(place: Place, error: UpstreamError) -> str:
    with suppress(UpstreamError), place.serving() as url:
        raise error
    return url


def ask(place: Place) -> str:
    with place.serving() as url:
        return url


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_new_trajectories_go_where_the_fewest_are(servers: Servers) -> None:
    replicas = await servers.opened(A, B, C)
    with ExitStack() as stack:
        calls = [Call(f"t-{i}") for i in range(9)]
        ends = [stack.enter_context(ExitStack()) for _ in calls]
        for call, end in zip(calls, ends, strict=True):
            end.enter_context(call.stay.kept())
        found = [ask(replicas.place(call)) for call in calls]
        assert Counter(found) == {A: 3, B: 3, C: 3}
        for url, end in zip(found, ends, strict=True):
            if url == B:
                end.close()
        more = [Call(f"u-{i}") for i in range(3)]
        for call in more:
            stack.enter_context(call.stay.kept())
        assert [ask(replicas.place(call)) for call in more] == [B, B, B]


async def test_a_trajectory_stays_where_it_began_however_busy_that_is(servers: Servers) -> None:
    replicas = await servers.opened(A, B)
    call = Call("t")
    with call.stay.kept(), ExitStack() as busy:
        home = ask(replicas.place(call))
        other = next(url for url in (A, B) if url != home)
        for _ in range(8):
            visitor = replicas.visitor()
            busy.enter_context(visitor.serving())
        assert {ask(replicas.place(call)) for _ in range(5)} == {home}
        # A call of nobody's goes where the fewest trajectories are.
        assert ask(replicas.visitor()) == other


async def test_calls_of_one_load_are_spread_and_processes_begin_elsewhere(
    servers: Servers,
) -> None:
    replicas = await servers.opened(A, B, C)
    assert Counter(ask(replicas.visitor()) for _ in range(6)) == {A: 2, B: 2, C: 2}
    firsts = [ask((await servers.opened(A, B, C, first=i)).visitor()) for i in range(3)]
    assert firsts == [A, B, C]


async def test_one_that_is_gone_is_out_at_once_and_its_trajectories_move(
    servers: Servers,
) -> None:
    replicas = await servers.opened(A, B)
    call, other = Call("t"), Call("u")
    with call.stay.kept(), other.stay.kept():
        home = ask(replicas.place(call))
        away = ask(replicas.place(other))
        assert {home, away} == {A, B}
        fail(replicas.place(call), GONE)
        assert replicas.states()[home] == str(GONE)
        assert ask(replicas.place(call)) == ask(replicas.place(other)) == away
        servers.may_probe.set()
        await settled()
        assert replicas.states() == {A: OK, B: OK}
        # Its cache is at the other one by now.
        assert ask(replicas.place(call)) == away
        third = Call("v")
        with third.stay.kept():
            assert ask(replicas.place(third)) == home


@pytest.mark.parametrize(
    ("error", "is_servers"),
    [
        (BROKEN, True),
        (UpstreamGarbled("up", "a page"), True),
        (UpstreamDenied("up", "401"), True),
        (UpstreamRefused("up", "400"), False),
        (UpstreamMalformed("up", "NaN"), False),
    ],
)
async def test_errors_in_a_row_take_a_replica_out_unless_they_are_about_the_request(
    error: UpstreamError, is_servers: bool, servers: Servers
) -> None:
    replicas = await servers.opened(A, B)
    place = replicas.visitor()
    home = fail(place, error)
    assert replicas.states()[home] == OK
    if is_servers:
        # The repetition goes to the other one.
        assert fail(place, error) != home
    for _ in range(4):
        fail(replicas.visitor(), error)
    assert (OK in replicas.states().values()) is not is_servers


async def test_a_success_in_between_keeps_a_replica_in(servers: Servers) -> None:
    replicas = await servers.opened(A, B)
    call = Call("t")
    with call.stay.kept():
        for _ in range(8):
            fail(replicas.place(call), BROKEN)
            ask(replicas.visitor())
            ask(replicas.visitor())
    assert set(replicas.states().values()) == {OK}


async def test_probes_come_ever_more_rarely_and_a_success_makes_them_quick_again(
    servers: Servers,
) -> None:
    replicas = await servers.opened(A, B)
    servers.faults[A] = GONE
    assert fail(replicas.visitor(), GONE) == A
    servers.may_probe.set()
    while len(servers.waits) < 12:
        await settled()
    waits = servers.waits[:]
    assert waits[0] <= 0.5
    assert max(waits) <= 10
    assert waits[5] > 2
    servers.faults.clear()
    await settled()
    assert set(replicas.states().values()) == {OK}

    async def first_wait() -> float:
        servers.waits.clear()
        while fail(replicas.visitor(), GONE) != A:
            pass
        await settled()
        return servers.waits[0]

    waits = [await first_wait() for _ in range(8)]  # each time it answers the probe, then fails
    assert waits[-1] > 2
    while ask(replicas.visitor()) != A:
        pass
    assert await first_wait() <= 0.5


async def test_where_all_are_out_each_call_tries_all_in_turn(servers: Servers) -> None:
    replicas = await servers.opened(A, B)
    fail(replicas.visitor(), GONE)
    fail(replicas.visitor(), GONE)
    assert replicas.num_in == 0
    place = replicas.visitor()
    assert [fail(place, GONE) for _ in range(4)] in ([A, B, A, B], [B, A, B, A])


async def test_one_server_alone_gets_every_call_and_is_never_probed(servers: Servers) -> None:
    replicas = await servers.opened(A)
    for _ in range(5):
        fail(replicas.visitor(), GONE)
    assert ask(replicas.visitor()) == A
    assert replicas.states() == {A: OK}
    assert not servers.asked
    assert not servers.waits


async def test_a_wish_to_wait_counts_only_where_no_other_is_in(servers: Servers) -> None:
    replicas = await servers.opened(A, B)
    busy = UpstreamFailed("up", "429", retry_after_s=100)
    fail(replicas.visitor(), busy)
    assert busy.retry_after_s is None
    alone = await servers.opened(A)
    busy = UpstreamFailed("up", "429", retry_after_s=100)
    fail(alone.visitor(), busy)
    assert busy.retry_after_s == 100


async def test_one_that_is_down_at_the_start_is_taken_in_when_it_answers(
    servers: Servers,
) -> None:
    servers.faults[B] = GONE
    replicas = await servers.opened(A, B)
    assert replicas.states() == {A: OK, B: str(GONE)}
    assert {ask(replicas.visitor()) for _ in range(4)} == {A}
    del servers.faults[B]
    servers.may_probe.set()
    await settled()
    assert {ask(replicas.visitor()) for _ in range(4)} == {A, B}


async def test_a_start_fails_where_all_are_down_or_one_serves_something_else(
    servers: Servers,
) -> None:
    servers.faults = {A: GONE, B: GONE}
    with pytest.raises(UpstreamUnreachable):
        await servers.opened(A, B)
    servers.faults = {B: UpstreamRefused("up", "replica http://b:2 serves another model")}
    with pytest.raises(UpstreamRefused, match="http://b:2"):
        await servers.opened(A, B)


async def test_one_that_comes_back_as_something_else_gets_no_call_at_all(
    servers: Servers,
) -> None:
    replicas = await servers.opened(A, B)
    servers.faults[A] = UpstreamRefused("up", "another model")
    assert fail(replicas.visitor(), GONE) == A
    servers.may_probe.set()
    await settled()
    fail(replicas.visitor(), GONE)
    assert {fail(replicas.visitor(), GONE) for _ in range(4)} == {B}


async def test_a_drained_replica_finishes_its_trajectories_and_gets_no_new_ones(
    servers: Servers,
) -> None:
    replicas = await servers.opened(A, B)
    with ExitStack() as stack:
        calls = [Call(f"t-{i}") for i in range(2)]
        for call in calls:
            stack.enter_context(call.stay.kept())
        homes = [ask(replicas.place(call)) for call in calls]
        assert set(homes) == {A, B}
        await replicas.replace([B, C])
        assert replicas.states() == {A: "draining", B: OK, C: OK}
        assert [ask(replicas.place(call)) for call in calls] == homes
        for i in range(6):
            new = Call(f"u-{i}")
            stack.enter_context(new.stay.kept())
            assert ask(replicas.place(new)) in {B, C}
    assert replicas.states() == {B: OK, C: OK}


async def test_a_draining_replica_may_be_listed_again(servers: Servers) -> None:
    replicas = await servers.opened(A, B)
    calls = [Call("t"), Call("u")]
    with calls[0].stay.kept(), calls[1].stay.kept():
        for call in calls:
            ask(replicas.place(call))
        await replicas.replace([B])
        await replicas.replace([A, B])
        assert replicas.states() == {A: OK, B: OK}
    assert replicas.states() == {A: OK, B: OK}


async def test_a_draining_replica_that_fails_is_left_at_once(servers: Servers) -> None:
    replicas = await servers.opened(A, B)
    calls = [Call("t"), Call("u")]
    with calls[0].stay.kept(), calls[1].stay.kept():
        for call in calls:
            ask(replicas.place(call))
        await replicas.replace([B])
        for call in calls:
            if replicas.place(call).url() == A:
                fail(replicas.place(call), GONE)
            assert ask(replicas.place(call)) == B
        assert replicas.states() == {B: OK}


@pytest.mark.parametrize(
    "fault", [UpstreamRefused("up", "replica http://c:3 serves another model"), GONE]
)
async def test_replicas_that_cannot_serve_change_nothing(
    fault: UpstreamError, servers: Servers
) -> None:
    replicas = await servers.opened(A, B)
    servers.faults[C] = fault
    with pytest.raises(type(fault)):
        await replicas.replace([C])
    assert replicas.states() == {A: OK, B: OK}


async def test_a_new_replica_may_be_down_where_another_one_is_in(servers: Servers) -> None:
    replicas = await servers.opened(A)
    servers.faults[B] = GONE
    await replicas.replace([A, B])
    assert replicas.states() == {A: OK, B: str(GONE)}
    del servers.faults[B]
    servers.may_probe.set()
    await settled()
    assert replicas.states() == {A: OK, B: OK}


async def test_the_names_of_replicas_hide_user_and_password() -> None:
    seen: set[str] = set()

    class Observer:
        def replica_up(self, _upstream: str, replica: str, *, is_up: bool) -> None:
            del is_up
            seen.add(replica)

        def replica_load(self, _upstream: str, replica: str, *_: int) -> None:
            seen.add(replica)

        def replica_request(self, _upstream: str, replica: str, _outcome: str) -> None:
            seen.add(replica)

    replicas = Replicas("up", ["http://user:pass@a:1", "https://only@b:2/team"], Observer())
    await replicas.open(Servers().verify)
    for _ in range(2):
        fail(replicas.visitor(), BROKEN)
    assert seen == set(replicas.states()) == {"http://a:1", "https://b:2/team"}
