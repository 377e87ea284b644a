"""Streams that break: what is asked for next, and what of its answer is handed on."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.api.app import create_app
from proxy.backends.base import Call, Context, Draft, Sampling, Segment, Writer
from proxy.backends.servers.llamacpp import LlamaCpp
from proxy.backends.servers.sglang import SGLang
from proxy.backends.servers.vllm import Vllm
from proxy.backends.transport.calls import Calls, Timeouts
from proxy.backends.transport.http import UpstreamClient
from proxy.backends.transport.resume import ResumingWriter
from proxy.backends.transport.retry import NO_RETRIES, RetryPolicy
from proxy.config import load_config
from proxy.errors import (
    ContextExceeded,
    MotabError,
    UpstreamError,
    UpstreamFailed,
    UpstreamInterrupted,
    UpstreamMalformed,
    UpstreamUnreachable,
)
from proxy.wiring.models import open_service
from tests.support.replay import (
    Recording,
    Replay,
    Reply,
    json_reply,
    replay,
    stream_reply,
)
from tests.support.scripted import ScriptedBackend

GREEDY, SEEDED, FREE = Sampling(0.0), Sampling(0.7, seed=5), Sampling(0.7)
Item = Draft | UpstreamError | ContextExceeded
BROKEN: Item = UpstreamUnreachable("up", "it broke")
END: Item = Draft((), "stop", 7)
PROMPT = (100, 101)


async def no_wait(_: float) -> None:
    await asyncio.sleep(0)


QUICK = RetryPolicy(attempts=3, total_s=60, sleep=no_wait)


def spelt(text: str) -> Item:
    """One token a character, of the character's id."""
    return Draft(tuple(text), token_ids=tuple(map(ord, text)))


def unspelt(*pieces: str) -> Item:
    return Draft(pieces)


@dataclass
class ScriptedWriter(ScriptedBackend):
    """Each write brings its own drafts, then fails or ends."""

    scripts: list[Sequence[Item]] = field(default_factory=list)
    asked: list[tuple[list[int], int]] = field(default_factory=list)  # type: ignore[assignment]
    num_open: int = 0

    async def write(
        self, context: Context, sampling: Sampling, max_tokens: int, call: Call
    ) -> AsyncGenerator[Draft]:
        self.asked.append((list(context.token_ids), max_tokens))
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        self.num_open += 1
        try:
            for item in script:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            self.num_open -= 1


@dataclass
class Scene:
    client: UpstreamClient
    retried: list[str]

    async def drafts(
        self, *scripts: Sequence[Item], sampling: Sampling = GREEDY, max_tokens: int = 20
    ) -> list[Draft]:
        """What comes out; `self.asked` is what was asked for."""
        self.writer = ScriptedWriter(scripts=list(scripts))
        self.out: list[Draft] = []
        context = Context(Segment("", PROMPT))
        writer = ResumingWriter(self.writer, self.client)
        async for draft in writer.write(context, sampling, max_tokens, Call("s")):
            self.out.append(draft)
        assert self.writer.num_open == 0
        return self.out

    async def drafts_with_pauses(
        self, *scripts: Sequence[Item], sampling: Sampling = GREEDY
    ) -> list[int]:
        """After each draft the gate is shut, and opened as soon as the server writes no more.

        What was open at the server each time that the next draft was wanted.
        """
        self.writer = ScriptedWriter(scripts=list(scripts))
        self.out = []
        gate = asyncio.Event()
        open_then: list[int] = []
        gate.set()
        writer = ResumingWriter(self.writer, self.client)
        drafts = writer.write_gated(Context(Segment("", PROMPT)), sampling, 20, Call("s"), gate)
        async with asyncio.timeout(5), aclosing(drafts):
            draft: Draft | None = await anext(drafts)
            while draft is not None:
                self.out.append(draft)
                gate.clear()
                following = asyncio.ensure_future(anext(drafts, None))
                for _ in range(20):
                    await asyncio.sleep(0)
                open_then.append(self.writer.num_open)
                gate.set()
                draft = await following
        return open_then

    @property
    def asked(self) -> list[tuple[str, int]]:
        """What followed the prompt, and how many tokens were wanted."""
        asked = self.writer.asked
        assert all(tuple(ids[:2]) == PROMPT for ids, _ in asked)
        return [("".join(map(chr, ids[2:])), num) for ids, num in asked]

    @property
    def text(self) -> str:
        return "".join(piece for draft in self.out for piece in draft.pieces)


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    retried: list[str] = []
    async with UpstreamClient(
        "up",
        "http://127.0.0.1:1",
        None,
        1,
        lambda *_: None,
        QUICK,
        lambda _upstream, code: retried.append(code),
    ) as client:
        yield Scene(client, retried)


# Where it goes on from.


@pytest.mark.parametrize("sampling", [GREEDY, FREE, Sampling(0.0, seed=5)])
async def test_a_break_is_resumed_after_the_ids_that_came_with_the_tokens_left(
    scene: Scene, sampling: Sampling
) -> None:
    await scene.drafts([spelt("ab"), spelt("c"), BROKEN], [spelt("d"), END], sampling=sampling)
    assert scene.text == "abcd"
    assert scene.asked == [("", 20), ("abc", 17)]
    assert scene.retried == ["upstream_unreachable"]
    assert scene.out[-1].end == "stop"


async def test_with_a_seed_it_is_written_again_from_the_start_and_told_once(scene: Scene) -> None:
    again = [spelt("a"), spelt("bcd"), END]
    await scene.drafts([spelt("ab"), spelt("c"), BROKEN], again, sampling=SEEDED)
    assert scene.text == "abcd"
    assert scene.asked == [("", 20), ("", 20)]
    assert [draft.pieces for draft in scene.out] == [("a", "b"), ("c",), ("d",), ()]


@pytest.mark.parametrize("again", [["abX"], ["a", "X"], ["ab"], ["abX", "d"]])
async def test_a_seeded_text_that_comes_out_different_is_not_spliced(
    scene: Scene, again: list[str]
) -> None:
    scripts: list[Sequence[Item]] = [[spelt("abc"), BROKEN], [*map(spelt, again), END]]
    with pytest.raises(UpstreamInterrupted, match=r"written again.*it broke"):
        await scene.drafts(*scripts, sampling=SEEDED)
    assert scene.text == "abc"
    assert len(scene.asked) == 2


async def test_greedy_text_of_unknown_ids_is_repeated_from_the_last_known_one(
    scene: Scene,
) -> None:
    first = [spelt("ab"), unspelt("", "é"), unspelt("f"), BROKEN]
    again = [unspelt("", "é"), unspelt("f", "g"), END]
    await scene.drafts(first, again)
    assert scene.text == "abéfg"
    assert scene.asked == [("", 20), ("ab", 18)]


async def test_ids_that_come_later_make_the_text_resumable_again(scene: Scene) -> None:
    first = [unspelt("é"), Draft(("f",), token_ids=(233, 102)), BROKEN]
    await scene.drafts(first, [spelt("g"), END], sampling=FREE)
    assert scene.text == "éfg"
    assert scene.asked == [("", 20), ("éf", 18)]


async def test_freely_drawn_text_of_unknown_ids_cannot_be_resumed(scene: Scene) -> None:
    with pytest.raises(UpstreamInterrupted, match=r"after 3 tokens.*ids.*it broke"):
        await scene.drafts([spelt("ab"), unspelt("é"), BROKEN], [END], sampling=FREE)
    assert scene.text == "abé"
    assert len(scene.asked) == 1
    assert scene.retried == []


@pytest.mark.parametrize("sampling", [GREEDY, FREE, SEEDED])
async def test_a_break_before_the_first_text_is_asked_for_again_as_it_was(
    scene: Scene, sampling: Sampling
) -> None:
    await scene.drafts([unspelt(""), BROKEN], [spelt("a"), END], sampling=sampling)
    assert scene.asked == [("", 20)] * 2
    assert [draft.pieces for draft in scene.out] == [("a",), ()]


async def test_tokens_whose_text_did_not_come_are_written_anew_and_counted_once(
    scene: Scene,
) -> None:
    first = [spelt("a"), unspelt("", ""), BROKEN]
    await scene.drafts(first, [unspelt("", ""), unspelt("é"), spelt("b"), END], sampling=FREE)
    assert [draft.pieces for draft in scene.out] == [("a",), ("", "", "é"), ("b",), ()]
    assert scene.asked[1] == ("a", 19)


async def test_tokens_without_text_at_the_end_are_handed_on(scene: Scene) -> None:
    await scene.drafts([spelt("a"), unspelt(""), Draft(("",), "length")])
    assert [draft.pieces for draft in scene.out] == [("a",), ("", "")]


@pytest.mark.parametrize("sampling", [GREEDY, FREE, SEEDED])
async def test_where_only_the_end_was_missing_nothing_is_asked_for(
    scene: Scene, sampling: Sampling
) -> None:
    drafts = await scene.drafts([spelt("abc"), BROKEN], sampling=sampling, max_tokens=3)
    assert drafts[-1] == Draft((), "length")
    assert scene.text == "abc"
    assert len(scene.asked) == 1
    assert scene.retried == []


async def test_pieces_without_ids_may_be_an_estimate_and_do_not_use_the_tokens_up(
    scene: Scene,
) -> None:
    await scene.drafts([unspelt("a", "b"), BROKEN], [unspelt("a", "b", "c"), END], max_tokens=2)
    assert scene.text == "abc"


async def test_the_cached_tokens_of_its_own_text_are_not_counted_as_the_prompts(
    scene: Scene,
) -> None:
    drafts = await scene.drafts([spelt("abcdef"), BROKEN], [END])
    assert drafts[-1].num_cached_tokens == len(PROMPT)


async def test_a_context_that_its_owner_changes_meanwhile_is_resumed_as_it_was(
    scene: Scene,
) -> None:
    writer = ScriptedWriter(scripts=[[spelt("a"), spelt("b"), BROKEN], [END]])
    context = Context(Segment("", PROMPT), [Segment("c", (99,))])
    resuming = ResumingWriter(writer, scene.client)
    async for _ in resuming.write(context, GREEDY, 9, Call("s")):
        context.truncate(0)
    assert writer.asked == [([*PROMPT, 99], 9), ([*PROMPT, 99, 97, 98], 7)]


# Stop strings.

STOPPING = replace(FREE, stop=("xyz", "!"))


@pytest.mark.parametrize(
    ("first", "rest"), [("axy", ["z", "q"]), ("axy", ["zq"]), ("ax", ["y", "z"]), ("ax", ["yz"])]
)
async def test_a_stop_string_across_the_break_is_not_missed(
    scene: Scene, first: str, rest: list[str]
) -> None:
    with pytest.raises(UpstreamInterrupted, match="stop string"):
        await scene.drafts([spelt(first), BROKEN], [*map(spelt, rest), END], sampling=STOPPING)


async def test_a_stop_string_across_two_breaks_is_not_missed(scene: Scene) -> None:
    with pytest.raises(UpstreamInterrupted, match="stop string"):
        await scene.drafts(
            [spelt("ax"), BROKEN], [spelt("y"), BROKEN], [spelt("z"), END], sampling=STOPPING
        )


@pytest.mark.parametrize("rest", [["y"], ["q", "xy"], ["x", "y"]])
async def test_what_only_looks_like_a_stop_string_goes_on(scene: Scene, rest: list[str]) -> None:
    await scene.drafts([spelt("axy"), BROKEN], [*map(spelt, rest), END], sampling=STOPPING)
    assert scene.text == "axy" + "".join(rest)


# How often.


async def test_a_stream_that_breaks_after_every_token_still_gets_to_its_end(scene: Scene) -> None:
    await scene.drafts(*([spelt(c), BROKEN] for c in "abcdefgh"), [END])
    assert scene.text == "abcdefgh"
    assert len(scene.retried) == 8


async def test_attempts_that_bring_nothing_new_are_counted(scene: Scene) -> None:
    with pytest.raises(UpstreamUnreachable, match=r"it broke \(3 attempts\)$"):
        await scene.drafts([spelt("ab"), BROKEN], [unspelt(""), BROKEN])
    assert len(scene.asked) == 3
    assert scene.text == "ab"


async def test_repeating_old_text_is_no_progress(scene: Scene) -> None:
    with pytest.raises(UpstreamUnreachable, match=r"\(3 attempts\)$"):
        await scene.drafts([spelt("abc"), BROKEN], [spelt("ab"), BROKEN], sampling=SEEDED)
    assert scene.asked == [("", 20)] * 3


async def test_a_break_waits_as_the_server_wishes(scene: Scene) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    scene.client.retry = replace(QUICK, first_s=0.001, sleep=sleep)
    busy = UpstreamFailed("up", "busy", retry_after_s=9)
    await scene.drafts([spelt("a"), busy], [END])
    assert [9 <= wait < 9.1 for wait in waits] == [True]


@pytest.mark.parametrize("error", [UpstreamMalformed("up", "odd"), ContextExceeded("full")])
async def test_an_error_that_no_retry_helps_is_final(scene: Scene, error: Item) -> None:
    with pytest.raises(MotabError, match=r"(odd|full)$"):
        await scene.drafts([spelt("a"), error], [END])
    assert len(scene.asked) == 1


async def test_with_retries_off_a_break_is_final(scene: Scene) -> None:
    scene.client.retry = NO_RETRIES
    with pytest.raises(UpstreamUnreachable, match=r"it broke$"):
        await scene.drafts([spelt("a"), BROKEN], [END])
    assert scene.text == "a"


async def test_text_that_ends_without_a_reason_is_malformed(scene: Scene) -> None:
    with pytest.raises(UpstreamMalformed, match="without a reason"):
        await scene.drafts([spelt("a")])


async def test_closing_it_closes_the_stream_beneath(scene: Scene) -> None:
    writer = ScriptedWriter(scripts=[[spelt("a"), BROKEN], [spelt("b"), spelt("c"), END]])
    drafts = ResumingWriter(writer, scene.client).write(
        Context(Segment("", PROMPT)), GREEDY, 9, Call("s")
    )
    async with aclosing(drafts):
        assert [(await anext(drafts)).pieces for _ in range(2)] == [("a",), ("b",)]
        assert writer.num_open == 1
    assert writer.num_open == 0


async def test_cancelling_during_the_back_off_leaves_nothing_open(scene: Scene) -> None:
    backing_off = asyncio.Event()

    async def sleep(_: float) -> None:
        backing_off.set()
        await asyncio.Event().wait()

    scene.client.retry = replace(QUICK, sleep=sleep)
    task = asyncio.create_task(scene.drafts([spelt("a"), BROKEN], [END]))
    async with asyncio.timeout(2):
        await backing_off.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert scene.writer.num_open == 0
    assert len(scene.asked) == 1


# Each server's own streams, broken after every event.

CONTEXT = Context(Segment("", (1, 2, 3)))
VLLM, SGLANG, LLAMACPP = map(Recording, ("vllm-0.32.0", "sglang-0.5.23", "llamacpp-b11549"))


@dataclass(frozen=True)
class Dialect:
    recording: Recording
    path: str
    writer: Callable[[UpstreamClient], Writer]
    sent: Callable[[Any], tuple[list[int], int]]
    """The prompt's ids and the token limit in a request's body."""
    tokens: Callable[[Any], list[tuple[int, str]]]
    """Ids and strings of an event."""


DIALECTS = {
    "vllm": Dialect(
        VLLM,
        "/v1/completions",
        lambda client: Vllm(client, "smollm2", None, 81),
        lambda body: (body["prompt"], body["max_tokens"]),
        lambda row: [
            pair
            for choice in row["choices"]
            for pair in zip(choice["token_ids"], choice["logprobs"]["tokens"], strict=True)
        ],
    ),
    "sglang": Dialect(
        SGLANG,
        "/generate",
        lambda client: SGLang(client, "smollm2", None, 81),
        lambda body: (body["input_ids"], body["sampling_params"]["max_new_tokens"]),
        lambda row: [(i, s) for _, i, s in row["meta_info"]["output_token_logprobs"]],
    ),
    "llamacpp": Dialect(
        LLAMACPP,
        "/completion",
        lambda client: LlamaCpp(client, None, 2, 81),
        lambda body: (body["prompt"], body["n_predict"]),
        lambda row: [(i, row["content"]) for i in row["tokens"]],
    ),
}
STREAMS = [
    *[("vllm", f"interval{n}_{name}") for n in (1, 8) for name in ("length", "emoji", "special")],
    *[("vllm", f"interval{n}_stop_not_reached") for n in (1, 8)],
    *[("sglang", f"delta_{name}") for name in ("length", "eos", "stop_not_reached", "special")],
    ("sglang", "delta_length_interval4"),
    *[("llamacpp", f"stream_{name}") for name in ("limit", "emoji", "stop_not_reached")],
]


async def read_into(pieces: list[str], writer: Writer) -> None:
    async for draft in writer.write(CONTEXT, FREE, 99, Call("s")):
        pieces += draft.pieces


@pytest.mark.parametrize(("kind", "name"), STREAMS)
async def test_a_recorded_stream_is_resumed_from_tokens_that_spell_what_was_told(
    kind: str, name: str
) -> None:
    dialect = DIALECTS[kind]
    body = dialect.recording.body(name)
    events = [event + b"\n\n" for event in body.split(b"\n\n") if event]
    all_tokens = [t for row in dialect.recording.events(name) for t in dialect.tokens(row)]
    num_resumed = 0
    for cut in range(1, len(events)):
        async with replay(retry=QUICK) as up:
            up.on(
                "POST",
                dialect.path,
                stream_reply(*events[:cut], drop_after=cut),
                json_reply(b"", 400),
            )
            writer = ResumingWriter(dialect.writer(up.client), up.client)
            pieces: list[str] = []
            with pytest.raises(UpstreamError):
                await read_into(pieces, writer)
            if len(up.seen) == 1:  # the ids are not known
                continue
        prompt, limit = dialect.sent(up.bodies(dialect.path)[1])
        ids = prompt[3:]
        assert prompt[:3] == [1, 2, 3]
        assert ids == [token for token, _ in all_tokens[: len(ids)]]
        assert len(pieces) == len(ids)
        assert limit == 99 - len(ids)
        texts = list(accumulate([text for _, text in all_tokens], initial=""))
        if "\ufffd" not in texts[len(ids)]:
            assert "".join(pieces) == texts[len(ids)]
        num_resumed += 1
    # A special token hides the ids, and so do half characters at the end.
    assert num_resumed >= (0 if "special" in name or kind == "llamacpp" else len(events) // 2 - 1)


# SGLang says 200 before it knows.


async def test_a_full_queue_that_sglang_tells_of_inside_a_stream_is_retried() -> None:
    async with replay(retry=QUICK) as up:
        full, good = SGLANG.body("stream_queue_full"), SGLANG.body("delta_eos")
        up.on("POST", "/generate", stream_reply(full), stream_reply(good))
        writer = ResumingWriter(SGLang(up.client, "smollm2", None, 81), up.client)
        drafts = [draft async for draft in writer.write(CONTEXT, GREEDY, 9, Call("s"))]
    assert drafts[-1].end == "stop"
    assert len(up.seen) == 2
    assert up.retried == [("up", "upstream_failed")]


async def test_an_aborted_scoring_call_of_sglang_is_made_again() -> None:
    async with replay(retry=QUICK) as up:
        answers = (SGLANG.body("score_aborted"), SGLANG.body("score_two_steps"))
        up.on("POST", "/generate", *map(json_reply, answers))
        ids = tuple(SGLANG.request("score_two_steps")["input_ids"])
        context = Context(Segment("", ids[:4]), [Segment("x", ids[4:7]), Segment("y", ids[7:])])
        scorer = SGLang(up.client, "smollm2", None, 81)
        scores = await scorer.score(context, 2, 3, Call("s"), entropy_known=False)
    assert len(scores.steps) == 2
    assert [code for *_, code in up.observed] == ["upstream_failed", "ok"]


# Silence.


async def payloads_into(payloads: list[bytes], client: UpstreamClient) -> None:
    async with asyncio.timeout(5), client.stream("/call", {}, Call("s")) as events:
        async for payload in events:
            payloads.append(payload)  # noqa: PERF401 - what came before a failure counts


@asynccontextmanager
async def impatient(up: Replay, timeouts: Timeouts) -> AsyncIterator[UpstreamClient]:
    async with UpstreamClient(
        "up", up.client.base_url, None, 4, lambda *_: None, QUICK, timeouts=timeouts
    ) as client:
        yield client


EVENT = b'data: {"n":1}\n\n'


@pytest.mark.parametrize(
    ("reply", "timeouts"),
    [
        (stream_reply(EVENT, hold=True), Timeouts(answer_s=60, stall_s=0.1)),
        (stream_reply(EVENT, b'data: {"n', hold=True), Timeouts(answer_s=60, stall_s=0.1)),
        (stream_reply(b": ping\n\n", hold=True), Timeouts(answer_s=0.1, stall_s=60)),
        (stream_reply(hold=True), Timeouts(answer_s=0.1, stall_s=60)),
    ],
    ids=["a stream", "half an event", "only comments", "nothing"],
)
async def test_a_silent_stream_is_unreachable_and_left(reply: Reply, timeouts: Timeouts) -> None:
    async with replay() as up, impatient(up, timeouts) as client:
        up.on("POST", "/call", reply)
        with pytest.raises(UpstreamUnreachable, match=r"was silent for 0\.1 s") as caught:
            await payloads_into([], client)
        async with asyncio.timeout(5):
            await up.left.wait()
    assert caught.value.retryable


@pytest.mark.parametrize("chunks", [(), (b'{"half',)])
async def test_an_answer_that_does_not_come_is_asked_for_again(chunks: tuple[bytes, ...]) -> None:
    async with replay() as up, impatient(up, Timeouts(answer_s=0.2, stall_s=60)) as client:
        up.on("POST", "/call", Reply(chunks, hold=True), json_reply({"ok": True}))
        assert await client.post("/call", {}, Call("s")) == {"ok": True}
        assert len(up.seen) == 2


async def test_the_first_token_may_take_longer_than_those_after_it() -> None:
    seen: list[bytes] = []
    timeouts = Timeouts(answer_s=5, stall_s=0.05)
    async with replay() as up, impatient(up, timeouts) as client:
        up.on("POST", "/call", replace(stream_reply(b": ping\n\n", EVENT), delay_s=0.3))
        with pytest.raises(UpstreamUnreachable, match=r"silent for 0\.05 s"):
            await payloads_into(seen, client)
    assert seen == [b'{"n":1}']


async def test_a_stream_may_take_longer_than_the_server_may_be_silent() -> None:
    seen: list[bytes] = []
    async with replay() as up, impatient(up, Timeouts(answer_s=0.3, stall_s=0.2)) as client:
        up.on("POST", "/call", replace(stream_reply(*[EVENT] * 8), delay_s=0.06))
        await payloads_into(seen, client)
    assert len(seen) == 8


async def test_a_pause_of_the_reader_is_no_silence_of_the_server() -> None:
    async with replay() as up, impatient(up, Timeouts(answer_s=0.1, stall_s=0.1)) as client:
        up.on("POST", "/call", replace(stream_reply(EVENT, EVENT, EVENT), delay_s=0.05))
        async with client.stream("/call", {}, Call("s")) as events:
            await anext(events)
            await asyncio.sleep(0.3)
            assert len([payload async for payload in events]) == 2


async def test_a_timeout_of_a_library_is_not_the_silence_of_the_server() -> None:
    async def connecting() -> None:
        raise TimeoutError("10 s to connect")

    with pytest.raises(TimeoutError, match="to connect"):
        await Calls("up", lambda *_: None).awaited(connecting(), 60)


async def test_log_probabilities_stay_with_their_pieces_where_some_come_again(
    scene: Scene,
) -> None:
    def told(text: str, *logprobs: float) -> Item:
        return Draft(tuple(text), token_ids=None, logprobs=tuple((x,) for x in logprobs))

    first = [told("ab", -1.0, -2.0), Draft(("",), logprobs=((-3.0,),)), BROKEN]
    again = [told("a", -1.0), told("b", -2.0), Draft(("", "é"), logprobs=((-3.0,), (-4.0,)))]
    drafts = await scene.drafts(first, [*again, END], sampling=GREEDY)
    pieces = [(p, x) for d in drafts for p, x in zip(d.pieces, d.logprobs or (), strict=True)]
    assert pieces == [("a", (-1.0,)), ("b", (-2.0,)), ("", (-3.0,)), ("é", (-4.0,))]


async def test_a_stalled_stream_is_resumed() -> None:
    parts = [event + b"\n\n" for event in LLAMACPP.body("stream_limit").split(b"\n\n") if event]
    timeouts = Timeouts(answer_s=60, stall_s=0.1)
    async with replay() as up, impatient(up, timeouts) as client:
        up.on("POST", "/completion", stream_reply(*parts[:2], hold=True), stream_reply(*parts[2:]))
        writer = ResumingWriter(LlamaCpp(client, None, 2, 81), client)
        async with aclosing(writer.write(CONTEXT, GREEDY, 99, Call("s"))) as drafts:
            for _ in range(3):
                await anext(drafts)
        first, second = up.bodies("/completion")
    told = [token for row in LLAMACPP.events("stream_limit")[:2] for token in row["tokens"]]
    assert second["prompt"] == [*first["prompt"], *told]


async def test_the_configuration_says_what_a_stall_is_and_the_metrics_count_it(
    tmp_path: Path,
) -> None:
    parts = [event + b"\n\n" for event in LLAMACPP.body("stream_limit").split(b"\n\n") if event]
    async with replay() as up:
        up.on("GET", "/props", json_reply({"total_slots": 1}))
        up.on("GET", "/health", json_reply({}))
        up.on("POST", "/tokenize", json_reply({"tokens": [5]}))
        up.on("POST", "/completion", stream_reply(*parts[:2], hold=True), stream_reply(*parts[2:]))
        path = tmp_path / "motab.yaml"
        path.write_text(
            f"upstreams: {{only: {{kind: llamacpp, base_url: '{up.client.base_url}', model: m, "
            "stall_timeout_s: 0.1}}\n"
            "models: {pair: {student: only, teacher: only}}\n",
            encoding="utf-8",
        )
        async with open_service(load_config(path)) as service:
            app = httpx.ASGITransport(create_app(service))
            async with httpx.AsyncClient(transport=app, base_url="http://motab") as client:
                body = {"model": "student/only", "prompt": "q", "temperature": 0}
                reply = await client.post("/v1/completions", json=body)
            metrics = service.metrics.render().decode()
    text = "".join(row["content"] for row in LLAMACPP.events("stream_limit"))
    assert reply.json()["choices"][0]["text"] == text
    line = 'motab_upstream_retries_total{code="upstream_unreachable",upstream="only"} 1.0'
    assert line in metrics


# Pauses: nobody failed, the text just waits.


@pytest.mark.parametrize("sampling", [GREEDY, FREE])
async def test_a_shut_gate_closes_the_stream_and_the_text_goes_on_from_its_exact_tokens(
    scene: Scene, sampling: Sampling
) -> None:
    lost = spelt("LOST")
    open_then = await scene.drafts_with_pauses(
        [spelt("ab"), lost], [spelt("c"), lost], [END], sampling=sampling
    )
    assert scene.text == "abc"
    assert scene.asked == [("", 20), ("ab", 18), ("abc", 17)]
    assert not any(open_then), "the server writes while the text waits"
    assert scene.out[-1].end == "stop"
    assert scene.retried == []


async def test_a_seeded_text_does_not_wait_for_it_would_become_another(scene: Scene) -> None:
    script = [spelt("ab"), spelt("c"), spelt("d"), END]
    open_then = await scene.drafts_with_pauses(script, sampling=SEEDED)
    assert scene.text == "abcd"
    assert scene.asked == [("", 20)]
    assert open_then == [1, 1, 1, 0]


async def test_a_text_waits_only_once_the_ids_of_all_of_it_are_known(scene: Scene) -> None:
    first = [unspelt("é"), Draft(("f",), token_ids=(233, 102)), spelt("LOST"), END]
    open_then = await scene.drafts_with_pauses(first, [spelt("g"), END], [END])
    assert scene.text == "éfg"
    assert scene.asked == [("", 20), ("éf", 18), ("éfg", 17)]
    assert open_then == [1, 0, 0, 0]


async def test_a_text_does_not_wait_inside_of_what_may_become_a_stop_string(scene: Scene) -> None:
    stopping = Sampling(0.0, stop=("##",))
    script = [spelt("a#"), spelt("b"), spelt("LOST"), END]
    await scene.drafts_with_pauses(script, [END], sampling=stopping)
    assert scene.text == "a#b"
    assert scene.asked == [("", 20), ("a#b", 17)]


async def test_a_pause_at_the_last_token_asks_for_no_more(scene: Scene) -> None:
    await scene.drafts_with_pauses([spelt("x" * 20)])
    assert scene.out[-1] == Draft((), "length")
    assert scene.asked == [("", 20)]
