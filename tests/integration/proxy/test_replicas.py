"""Upstreams with several replicas, as the configuration opens them."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import orjson
import pytest
from aiohttp import web

from proxy.api.service import Service
from proxy.backends.base import Call
from proxy.config import Config
from proxy.errors import UpstreamError, UpstreamRefused, UpstreamUnreachable
from proxy.wiring.models import open_service
from tests.support.patience import PATIENCE_S
from tests.support.proxy.api import in_process, samples_of
from tests.support.proxy.toy_pair import PARAMS, STUDENT, TEACHER
from tests.support.replay import json_reply, replay
from tests.support.toy_servers import Fault, Kind, Model, Toy, Trouble, toy_server

TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}: "
KINDS: tuple[Kind, ...] = ("vllm", "sglang", "llamacpp")


class LimitedToy(Toy):
    """A toy that says how many tokens it takes."""

    context_tokens = 4096

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/v1/models":
            row = {"id": "toy", "max_model_len": self.context_tokens}
            return web.Response(body=orjson.dumps({"data": [row]}))
        if request.path == "/server_info":
            return web.Response(status=404)
        return await Toy.handle(self, request)


@dataclass
class Fleet:
    """The replicas of both upstreams."""

    student: list[Toy]
    teacher: list[Toy]

    def config(self, *, server: dict[str, Any] | None = None, **upstream: Any) -> Config:
        def one(toys: Sequence[Toy]) -> dict[str, Any]:
            return {
                "kind": toys[0].kind,
                "base_urls": [toy.base_url for toy in toys],
                "model": "toy",
                "chat_template": TEMPLATE,
                "reasoning": "none",
                **upstream,
            }

        pair = {"student": "student", "teacher": "teacher", "params": PARAMS}
        return Config.model_validate(
            {
                "server": server or {},
                "upstreams": {"student": one(self.student), "teacher": one(self.teacher)},
                "models": {"pair": pair},
            }
        )


@asynccontextmanager
async def fleet(kind: Kind, num: int = 2) -> AsyncIterator[Fleet]:
    async with AsyncExitStack() as stack:

        async def some(model: Model) -> list[Toy]:
            make = LimitedToy
            return [
                await stack.enter_async_context(toy_server(kind, model, make)) for _ in range(num)
            ]

        yield Fleet(await some(STUDENT), await some(TEACHER))


async def ask(client: httpx.AsyncClient, name: str, question: str = "Q") -> tuple[str, Any]:
    """The text and the breach of a seeded trajectory; its session is `name`-0."""
    body = {
        "model": "pair",
        "messages": [{"role": "user", "content": question}],
        "seed": 7,
        "temperature": 0.8,
        "motab": {"trace": "full"},
    }
    answer = await client.post(
        "/v1/chat/completions", json=body, headers={"x-request-id": name}, timeout=PATIENCE_S
    )
    assert answer.status_code == 200, answer.text
    (choice,) = answer.json()["choices"]
    return choice["message"]["content"], choice["motab"]["breach"]


async def ask_all(client: httpx.AsyncClient, names: Sequence[str]) -> list[tuple[str, Any]]:
    return await asyncio.gather(*(ask(client, name, f"Q{i}") for i, name in enumerate(names)))


async def until_all_are_in(service: Service) -> None:
    async with asyncio.timeout(PATIENCE_S):
        for upstream in service.upstreams():
            assert upstream.replicas is not None
            while set(upstream.replicas.states().values()) != {"ok"}:  # noqa: ASYNC110 - no event
                await asyncio.sleep(0.01)


def homes(toys: Sequence[Toy], session: str) -> list[int]:
    """The replicas at which a trajectory was."""
    return [i for i, toy in enumerate(toys) if toy.num_requests[session]]


@pytest.mark.parametrize("kind", KINDS)
async def test_every_trajectory_stays_on_one_replica_and_all_replicas_have_as_many(
    kind: Kind,
) -> None:
    async with (
        fleet(kind) as toys,
        open_service(toys.config()) as service,
        in_process(service) as client,
    ):
        names = [f"t{i}" for i in range(8)]
        told = await ask_all(client, names)
        samples = await samples_of(client)
    assert any(breach is not None for _, breach in told)
    for replicas in (toys.student, toys.teacher):
        found = [homes(replicas, f"{name}-0") for name in names]
        assert all(len(one) <= 1 for one in found)  # a student may have written nothing to score
        used = [one[0] for one in found if one]
        assert abs(used.count(0) - used.count(1)) <= 1
    for role, replicas in (("student", toys.student), ("teacher", toys.teacher)):
        for toy in replicas:
            assert samples["motab_replica_up", toy.base_url, role] == 1
            assert samples["motab_replica_trajectories", toy.base_url, role] == 0
            assert samples["motab_replica_running_requests", toy.base_url, role] == 0
            assert samples["motab_replica_requests_total", "ok", toy.base_url, role] > 0


TROUBLES: tuple[Trouble, ...] = ("drop", "half", "truncate", "error", "429", "500", "503")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("role", ["student", "teacher"])
async def test_a_call_that_a_replica_fails_is_repeated_on_another_without_a_change(
    role: str, kind: Kind
) -> None:
    async with fleet(kind) as toys:
        replicas: list[Toy] = getattr(toys, role)
        config = toys.config(retries={"attempts": 4, "total_s": PATIENCE_S})
        async with open_service(config) as service, in_process(service) as client:
            await ask(client, "first")  # it asks what is asked once
            calm = await ask(client, "calm")
            assert calm[1] is not None
            (home,) = homes(replicas, "calm-0")
            num = replicas[home].num_requests["calm-0"]
            # A whole answer that breaks off is no JSON, and no repetition helps.
            troubles = [one for one in TROUBLES if one != "truncate"]
            hit = 0
            for index, trouble in enumerate(troubles):
                await until_all_are_in(service)
                name = f"hit{index}"
                request = (index * 5) % num
                for toy in replicas:
                    toy.faults[f"{name}-0"] = Fault(request, 0.5, trouble)
                try:
                    assert await ask(client, name) == calm
                finally:
                    for toy in replicas:
                        toy.faults.clear()
                failed = [toy for toy in replicas if f"{name}-0" in toy.happened]
                hit += len(failed) > 0
                if len(failed) == 1:  # what came after that was elsewhere
                    assert failed[0].num_requests[f"{name}-0"] == request + 1
                elif failed:
                    assert len(homes(replicas, f"{name}-0")) == 2
            assert hit == len(troubles)


async def test_a_replica_that_is_down_at_the_start_is_visible_and_does_not_matter(
    caplog: pytest.LogCaptureFixture,
) -> None:
    key = {"authorization": "Bearer a-key-of-ours"}
    async with fleet("vllm") as toys:
        down = Toy("vllm", STUDENT)
        down.base_url = "http://127.0.0.1:9"
        toys.student.append(down)
        config = toys.config(server={"api_keys": ["a-key-of-ours"]})
        async with open_service(config) as service, in_process(service) as client:
            known, unknown = await client.get("/ready", headers=key), await client.get("/ready")
            samples = await samples_of(client)
            client.headers.update(key)
            await ask_all(client, [f"t{i}" for i in range(6)])
    assert (known.status_code, unknown.status_code) == (200, 200)
    states = known.json()["replicas"]
    assert states["teacher"] == dict.fromkeys((toy.base_url for toy in toys.teacher), "ok")
    assert [states["student"][toy.base_url] for toy in toys.student[:2]] == ["ok", "ok"]
    assert "no connection to http://127.0.0.1:9" in states["student"][down.base_url]
    assert "replicas" not in unknown.json()
    assert samples["motab_replica_up", down.base_url, "student"] == 0
    assert "replica http://127.0.0.1:9 is out, 2 of 3 are in" in caplog.text


async def test_a_start_fails_where_every_replica_is_down() -> None:
    async with fleet("vllm") as toys:
        for port, toy in enumerate(toys.teacher, 9):
            toy.base_url = f"http://127.0.0.1:{port}"
        with pytest.raises(UpstreamUnreachable, match="upstream 'teacher'"):
            async with open_service(toys.config()):
                pass


async def opening(toys: Fleet) -> UpstreamError:
    with pytest.raises(UpstreamRefused) as caught:
        async with open_service(toys.config()):
            pass
    return caught.value


@pytest.mark.parametrize("kind", KINDS)
async def test_a_replica_with_another_tokenizer_is_refused_by_its_name(kind: Kind) -> None:
    async with fleet(kind) as toys:
        toys.student[1] = toys.teacher[0]
        error = str(await opening(toys))
    assert "upstream 'student': replica http://127.0.0.1" in error
    assert "it cuts a text into other tokens" in error


async def test_a_replica_with_another_model_is_refused_by_its_name() -> None:
    async with fleet("vllm") as toys, replay() as other:
        other.on("GET", "/v1/models", json_reply({"data": [{"id": "other"}]}))
        other.on("POST", "/tokenize", json_reply({"tokens": [7, 8], "token_strs": ["a", "b"]}))
        toys.student[1].base_url = other.client.base_url
        error = str(await opening(toys))
    assert "it serves other, not the configured model 'toy'" in error
    assert other.client.base_url in error


async def test_the_smallest_replica_sets_the_limits_and_a_smaller_one_stays_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "proxy")
    async with fleet("vllm", 3) as toys:
        first, second, late = toys.student
        assert isinstance(second, LimitedToy)
        assert isinstance(late, LimitedToy)
        second.context_tokens, late.context_tokens = 1024, 512
        toys.student.remove(late)
        async with open_service(toys.config()) as service:
            student = service.models["pair"].pair.of("student")
            assert student.limits.context_tokens == 1024
            assert student.replicas is not None
            with pytest.raises(UpstreamRefused, match="it takes less than the others"):
                await student.replicas.replace([first.base_url, late.base_url])
            late.context_tokens = 2048
            await student.replicas.replace([first.base_url, late.base_url])
            assert student.replicas.states() == {first.base_url: "ok", late.base_url: "ok"}
            assert "is drained" in caplog.text


async def test_a_second_server_is_compared_with_the_only_one_so_far() -> None:
    async with fleet("sglang") as toys:
        alone = Fleet(toys.student[:1], toys.teacher)
        async with open_service(alone.config()) as service, in_process(service) as client:
            student = service.models["pair"].pair.of("student")
            assert student.replicas is not None
            both = [toy.base_url for toy in toys.student]
            with pytest.raises(UpstreamRefused, match="than the first server: it cuts a text"):
                await student.replicas.replace([both[0], toys.teacher[0].base_url])
            await student.replicas.replace(both)
            await ask_all(client, [f"t{i}" for i in range(4)])
    assert all(toy.writes for toy in toys.student)


async def test_with_every_replica_down_a_call_ends_as_with_one_server_down() -> None:
    async with AsyncExitStack() as stack:
        students = (await stack.enter_async_context(fleet("vllm"))).student
        going = await stack.enter_async_context(AsyncExitStack())
        teachers = (await going.enter_async_context(fleet("vllm"))).teacher
        config = Fleet(students, teachers).config(retries={"attempts": 3, "total_s": 10})
        service = await stack.enter_async_context(open_service(config))
        client = await stack.enter_async_context(in_process(service))
        await going.aclose()
        body = {"model": "pair", "messages": [{"role": "user", "content": "Q"}]}
        answer = await client.post("/v1/chat/completions", json=body, timeout=PATIENCE_S)
        ready = (await client.get("/ready")).json()
    assert answer.status_code == 502
    error = answer.json()["error"]
    assert error["code"] == "upstream_unreachable"
    assert "(3 attempts)" in error["message"]
    assert ready["status"] == "unready"
    assert all("no connection" in state for state in ready["replicas"]["teacher"].values())


async def test_a_second_of_a_student_costs_all_of_its_replicas_that_write() -> None:
    async with fleet("vllm") as toys:
        config = toys.config(gpus=2)
        async with open_service(config) as service:
            pair = service.models["pair"].pair
            student, teacher = pair.of("student"), pair.of("teacher")
            assert (student.gpus_writing, teacher.gpus) == (2, 2)
            assert pair.schedule("motab", teacher.scorers[0]).price_ratio == 1
            calls = [Call("t"), Call("u")]
            with calls[0].stay.kept(), calls[1].stay.kept():
                for call in calls:
                    await student.reader.encode(["a"], call)
                assert student.gpus_writing == 4
                assert pair.schedule("motab", teacher.scorers[0]).price_ratio == 0.5
