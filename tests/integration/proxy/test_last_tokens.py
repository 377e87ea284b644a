"""Tests texts that come to the end of an SGLang's window, which is not where its window ends."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import orjson
import pytest
from aiohttp import web

from tests.integration.proxy.test_windows import STUDENT, asked, checked, served
from tests.support.proxy.api import MOTAB_CHAT
from tests.support.proxy.windows import MODEL, Asked, Windowed
from tests.support.toy_servers import Kind, Model, toy_server

WINDOW = 90
MOST_READ = WINDOW - 7


class Real(Windowed):
    """As SGLang 0.5.23: it reads no prompt of `window - 6` tokens, and writes two less than fit."""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = orjson.loads(await request.read() or b"{}")
        num = len(body.get("input_ids", ()))
        if num >= self.window - 6:
            self.refused.append(Asked(num, 0))
            words = f"Input length ({num} tokens) exceeds the maximum allowed length (84 tokens)."
            error = orjson.dumps({"error": {"message": words}})
            return web.Response(status=400, body=error)
        return await super().handle(request)

    def _write(self, prompt: list[int], num: int, *rest: Any) -> list[int]:
        return super()._write(prompt, min(num, self.window - 2 - len(prompt)), *rest)


def real(kind: Kind, model: Model) -> Real:
    return Real(kind, model, window=WINDOW)


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[Windowed, Windowed, httpx.AsyncClient]]:
    async with (
        toy_server("sglang", STUDENT, real) as student,
        toy_server("sglang", STUDENT, real) as teacher,
    ):
        assert isinstance(student, Windowed)
        assert isinstance(teacher, Windowed)
        async with served(student, teacher) as client:
            yield student, teacher, client


@pytest.mark.parametrize("model", ["student/s", "teacher/t"])
@pytest.mark.parametrize("num_less", [None, 0, 1, 2])
async def test_a_text_that_the_server_ends_early_is_whole_and_says_which_limit_ended_it(
    model: str, num_less: int | None
) -> None:
    async with pair() as (student, teacher, client):
        server = student if model == "student/s" else teacher
        num_prompt = len(MODEL.tokens("So the sum is 7: "))
        fields: dict[str, Any] = (
            {} if num_less is None else {"max_tokens": WINDOW - num_prompt - num_less}
        )
        choice = checked(await asked(client, model=model, **fields))
        assert choice["finish_reason"] == "length"
        assert len(MODEL.tokens(choice["message"]["content"])) == WINDOW - 2 - num_prompt
        limited_by = {"model": model[:7], "limit": "context_tokens", "tokens": WINDOW}
        expected = None if num_less == 2 else limited_by
        assert choice["motab"].get("limited_by") == expected
        written = [one for one in server.asked if one.prompt == num_prompt]
        assert len(written) == 1
        assert server.refused == []


@pytest.mark.parametrize("method", ["motab", "skd", "imitkd", "prefix"])
async def test_a_student_writes_only_what_a_teacher_with_its_limits_can_score(method: str) -> None:
    async with pair() as (student, teacher, client):
        keys = {"base_threshold": 0.0} if method == "motab" else {}
        choice = checked(await asked(client, motab={"method": method, **keys}, seed=3))
        assert choice["finish_reason"] == "length"
        assert choice["motab"]["limited_by"]["limit"] == "context_tokens"
        assert student.refused == teacher.refused == []
        if method == "motab":  # nothing is written twice, or for nothing
            num_prompt = len(MODEL.tokens("So the sum is 7: "))
            text = choice["message"]["content"]
            assert len(MODEL.tokens(text)) == MOST_READ - num_prompt
            assert [step["value"] is None for step in choice["motab"]["steps"]].count(True) == 0


async def test_a_question_after_which_nothing_could_be_scored_is_the_clients() -> None:
    async with pair() as (_, _, client):
        for num_left, status in ((1, 200), (0, 400), (-1, 400)):
            words = " ".join(["7"] * 200)
            num_other = len(MODEL.tokens(": "))
            text = MODEL.text(MODEL.tokens(words)[: MOST_READ - num_left - num_other])
            message = [{"role": "user", "content": text}]
            body = {"model": "m", "messages": message, "temperature": 0}
            response = await client.post(MOTAB_CHAT, json=body)
            assert response.status_code == status, response.text
            if status == 400:
                assert f"but its model reads {MOST_READ}" in response.json()["error"]["message"]
