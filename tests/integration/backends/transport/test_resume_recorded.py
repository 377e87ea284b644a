"""Breaks each server's recorded streams after every event."""

from itertools import accumulate

import pytest

from proxy.backends.base import Call, Context, Segment, Writer
from proxy.backends.transport.resume import ResumingWriter
from proxy.errors import UpstreamError
from tests.support.replay import json_reply, replay, stream_reply
from tests.support.resuming import FREE, QUICK
from tests.support.servers.contract import Resumable, WritingContract
from tests.support.servers.every import WRITING, over_cases


async def read_into(pieces: list[str], writer: Writer, prompt: tuple[int, ...]) -> None:
    async for draft in writer.write(Context(Segment("", prompt)), FREE, 99, Call("s")):
        pieces += draft.pieces


@over_cases(WRITING, lambda server: server.resumable)
async def test_a_recorded_stream_is_resumed_from_tokens_that_spell_what_was_told(
    server: WritingContract, case: Resumable
) -> None:
    events = [event + b"\n\n" for event in case.body.split(b"\n\n") if event]
    num_resumed = 0
    for cut in range(1, len(events)):
        async with replay(retry=QUICK) as up, server.writer(up) as writer:
            broken = stream_reply(*events[:cut], drop_after=cut)
            up.on("POST", server.path, broken, json_reply(b"", 400))
            pieces: list[str] = []
            with pytest.raises(UpstreamError):
                await read_into(pieces, ResumingWriter(writer, up.client), case.prompt)
            if len(up.seen) == 1:  # the ids are not known
                continue
        prompt, limit = server.prompt_and_limit(up.bodies(server.path)[1])
        ids = prompt[len(case.prompt) :]
        assert tuple(prompt[: len(case.prompt)]) == case.prompt
        assert ids == [token for token, _ in case.tokens[: len(ids)]]
        assert len(pieces) == len(ids)
        assert limit == 99 - len(ids)
        texts = list(accumulate([text for _, text in case.tokens], initial=""))
        if "\ufffd" not in texts[len(ids)]:
            assert "".join(pieces) == texts[len(ids)]
        num_resumed += 1
    assert num_resumed >= (0 if case.hides_ids else len(events) // 2 - 1)
