"""Checks which slot a request gets and that each is given back."""

import asyncio
from contextlib import aclosing

import pytest

from proxy.backends.base import Call
from proxy.backends.servers.llamacpp import LlamaCpp
from proxy.backends.servers.slot_pool import SlotPool
from proxy.backends.worker_slots import WorkerSlots
from proxy.errors import UpstreamMalformed, UpstreamRefused
from tests.support.clock import turns
from tests.support.replay import CALL, GREEDY, Replay, Reply, Seen, json_reply, stream_reply
from tests.support.servers import llamacpp


async def test_connecting_learns_the_slots(up: Replay) -> None:
    llamacpp.connected(up)
    connected = await LlamaCpp.connect(up.client, None)
    assert await slots_used_at_once(up, connected, num_writes=3) == [0, 1]


async def slots_used_at_once(up: Replay, llama: LlamaCpp, num_writes: int) -> list[int]:
    all_but_one = asyncio.Event()

    def answer(_: Seen) -> Reply:
        if len(up.bodies(llamacpp.COMPLETION)) == num_writes - 1:
            all_but_one.set()
        return stream_reply(hold=True)

    up.on("POST", llamacpp.COMPLETION, answer)
    writes = [
        asyncio.create_task(anext(llama.write(llamacpp.ASKED.context, GREEDY, 4, Call(f"{index}"))))
        for index in range(num_writes)
    ]
    await all_but_one.wait()
    await turns()
    for write in writes:
        write.cancel()
    await asyncio.gather(*writes, return_exceptions=True)
    return sorted(body["id_slot"] for body in up.bodies(llamacpp.COMPLETION))


async def test_closing_a_write_cancels_it_at_the_server_and_frees_its_slot(up: Replay) -> None:
    first = llamacpp.RECORDED.body("stream_limit").split(b"\n\n")[0] + b"\n\n"
    up.on("POST", llamacpp.COMPLETION, stream_reply(first, hold=True))
    llama = llamacpp.backend(up, num_slots=1)
    writing = llama.write(llamacpp.ASKED.context, GREEDY, 24, CALL)
    async with aclosing(writing):
        assert (await anext(writing)).pieces == (" nice",)
    await up.left.wait()
    up.on("POST", llamacpp.COMPLETION, stream_reply(llamacpp.RECORDED.body("stream_limit")))
    async for _ in llama.write(llamacpp.ASKED.context, GREEDY, 24, CALL):
        pass
    assert [code for *_, code in up.observed] == ["cancelled", "ok"]


async def test_a_trajectory_writes_and_is_scored_in_its_own_slot(up: Replay) -> None:
    llama = llamacpp.backend(up, num_slots=3)
    sessions = [Call("a"), Call("b"), Call("c")]
    up.on("POST", llamacpp.COMPLETION, stream_reply(llamacpp.RECORDED.body("stream_limit")))
    for call in sessions:
        async for _ in llama.write(llamacpp.ASKED.context, GREEDY, 4, call):
            pass
    own = [body["id_slot"] for body in up.bodies(llamacpp.COMPLETION)]
    assert sorted(own) == [0, 1, 2]
    up.on("POST", llamacpp.COMPLETION, llamacpp.forced())
    for call in reversed(sessions):
        await llama.score(llamacpp.scored_context(), 1, 20, call, entropy_known=False)
    used = [body["id_slot"] for body in up.bodies(llamacpp.COMPLETION)[3:]]
    assert used == [own[2]] * 5 + [own[1]] * 5 + [own[0]] * 5


async def test_a_failed_score_gives_its_slot_back(up: Replay) -> None:
    llama = llamacpp.backend(up, num_slots=1)
    up.on("POST", llamacpp.COMPLETION, llamacpp.forced({3: llamacpp.BROKEN["null probabilities"]}))
    with pytest.raises(UpstreamMalformed):
        await llama.score(llamacpp.scored_context(), 2, 20, CALL, entropy_known=False)
    up.on("POST", llamacpp.COMPLETION, llamacpp.forced())
    scores = await llama.score(llamacpp.scored_context(), 2, 20, CALL, entropy_known=False)
    assert len(scores.steps) == 2


async def test_a_refusal_of_a_score_or_of_a_write_gives_the_slot_back(up: Replay) -> None:
    refusal = llamacpp.SCORING.refusals["bad_id"]
    up.on("POST", llamacpp.COMPLETION, json_reply(refusal.body, refusal.status))
    llama = llamacpp.backend(up, num_slots=1)
    for _ in range(2):
        with pytest.raises(UpstreamRefused):
            await llama.score(llamacpp.scored_context(), 1, 20, CALL, entropy_known=False)
        with pytest.raises(UpstreamRefused):
            await anext(llama.write(llamacpp.ASKED.context, GREEDY, 4, CALL))


async def leased(pool: SlotPool, session_id: str) -> int:
    async with pool.lease(session_id) as slot:
        return slot


async def test_a_trajectory_gets_its_own_slot_again() -> None:
    pool = SlotPool(3)
    own = {session: await leased(pool, session) for session in "abc"}
    assert sorted(own.values()) == [0, 1, 2]
    for session in "bcabaccab":
        assert await leased(pool, session) == own[session]


async def test_processes_that_share_a_server_use_different_slots() -> None:
    pools = [SlotPool(5, WorkerSlots(worker, 2)) for worker in range(2)]
    slots = [{await leased(pool, session) for session in "abcdef"} for pool in pools]
    assert slots == [{0, 2, 4}, {1, 3}]


async def test_a_new_trajectory_gets_the_slot_that_was_used_least_recently() -> None:
    pool = SlotPool(3)
    own = {session: await leased(pool, session) for session in "abc"}
    await leased(pool, "a")
    assert await leased(pool, "d") == own["b"]
    assert await leased(pool, "e") == own["c"]
    assert await leased(pool, "f") == own["a"]
    # b's slot is d's by now, so b takes the oldest as anyone would.
    assert await leased(pool, "b") == own["b"]


async def test_a_slot_counts_as_used_when_it_is_given_back() -> None:
    pool = SlotPool(2)
    async with pool.lease("a") as first:
        await leased(pool, "b")
    assert await leased(pool, "c") != first


async def test_no_slot_is_handed_out_twice_not_even_to_its_own_trajectory() -> None:
    pool = SlotPool(2)
    async with pool.lease("a") as one, pool.lease("a") as other:
        assert {one, other} == {0, 1}


async def test_whoever_finds_every_slot_taken_waits_in_order() -> None:
    pool, release, order = SlotPool(1), asyncio.Event(), list[str]()

    async def use(session_id: str) -> None:
        async with pool.lease(session_id):
            order.append(session_id)
            await release.wait()

    tasks = [asyncio.create_task(use(session)) for session in "abc"]
    await turns()
    assert order == ["a"]
    release.set()
    await asyncio.gather(*tasks)
    assert order == ["a", "b", "c"]


@pytest.mark.parametrize("cancelled", ["holder", "waiter"])
async def test_a_cancelled_request_leaves_no_slot_taken(cancelled: str) -> None:
    pool = SlotPool(1)

    async def hold() -> None:
        async with pool.lease("a"):
            await asyncio.Event().wait()

    holder, waiter = asyncio.create_task(hold()), asyncio.create_task(leased(pool, "b"))
    await turns()
    (holder if cancelled == "holder" else waiter).cancel()
    await turns()
    holder.cancel()
    await asyncio.gather(holder, waiter, return_exceptions=True)
    assert waiter.cancelled() == (cancelled == "waiter")
    assert await leased(pool, "c") == 0


async def test_a_request_that_fails_gives_its_slot_back() -> None:
    pool = SlotPool(1)
    with pytest.raises(RuntimeError):
        async with pool.lease("a"):
            raise RuntimeError
    assert await leased(pool, "b") == 0
