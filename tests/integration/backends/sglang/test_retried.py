"""Checks that the failures which SGLang tells with a status of 200 are retried."""

from proxy.backends.base import Call, Context, Segment
from proxy.backends.transport.resume import ResumingWriter
from tests.support.replay import GREEDY, json_reply, replay, stream_reply
from tests.support.resuming import QUICK
from tests.support.servers import sglang


async def test_a_full_queue_that_sglang_tells_of_inside_a_stream_is_retried() -> None:
    async with replay(retry=QUICK) as up:
        full, good = sglang.RECORDED.body("stream_queue_full"), sglang.RECORDED.body("delta_length")
        up.on("POST", sglang.GENERATE, stream_reply(full), stream_reply(good))
        writer = ResumingWriter(sglang.backend(up), up.client)
        drafts = [draft async for draft in writer.write(sglang.ASKED.context, GREEDY, 9, Call("s"))]
    assert drafts[-1].end == "length"
    assert len(up.seen) == 2
    assert up.retried == [("up", "upstream_failed")]


async def test_an_aborted_scoring_call_of_sglang_is_made_again() -> None:
    async with replay(retry=QUICK) as up:
        answers = (sglang.RECORDED.body("score_aborted"), sglang.RECORDED.body("score_two_steps"))
        up.on("POST", sglang.GENERATE, *map(json_reply, answers))
        ids = tuple(sglang.RECORDED.request("score_two_steps")["input_ids"])
        context = Context(Segment("", ids[:4]), [Segment("x", ids[4:7]), Segment("y", ids[7:])])
        scorer = sglang.backend(up)
        scores = await scorer.score(context, 2, 3, Call("s"), entropy_known=False)
    assert len(scores.steps) == 2
    assert [code for *_, code in up.observed] == ["upstream_failed", "ok"]
