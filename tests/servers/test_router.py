"""Puts SGLang's own router in front of two real SGLang servers: what keeps a trajectory's cache."""

import random
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from motab.demo import DemoPair, demo_config
from proxy.backends.base import Call, Context, Segment
from proxy.backends.servers.sglang import SGLang
from proxy.errors import RouterTokenises
from tests.servers.real import MESSAGES, MODEL, Real, leave_idle, post
from tests.servers.sglang_cpu import sglang_router
from tests.support.proxy.live import proxy

WORKERS = ("sglang", "sglang8")
VOCABULARY = range(1000, 40000)
NUM_PROMPT, NUM_STEP, NUM_CALLS = 200, 20, 6
TRAJECTORIES = ("one", "two", "three")


@pytest.fixture(scope="module")
def routers(
    servers: dict[str, Real], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Real]]:
    """One server, and routers by their policies in front of two."""
    logs = tmp_path_factory.mktemp("routers")
    urls = [servers[name].base_url for name in WORKERS]
    with ExitStack() as stack:
        started = {
            policy: stack.enter_context(sglang_router(urls, policy, logs / f"{policy}.txt"))
            for policy in ("manual", "round_robin")
        }
        yield {name: Real("sglang", url) for name, url in started.items()} | {
            "one server": servers["sglang"]
        }


@pytest.fixture(scope="module")
def base_url(
    routers: dict[str, Real], smollm2_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The proxy, in front of every router as of one server."""
    template = demo_config(DemoPair.PRETRAINED).upstreams["student"].chat_template
    upstreams = {
        name: server.upstream(
            tokenizer=str(smollm2_folder), chat_template=template, context_tokens=2048
        )
        for name, server in routers.items()
    }
    models = {f"own {name}": {"student": name, "teacher": name} for name in routers}
    path = tmp_path_factory.mktemp("proxy") / "config.yaml"
    path.write_text(yaml.safe_dump({"upstreams": upstreams, "models": models}), encoding="utf-8")
    with proxy(path) as url:
        yield url


async def recomputed(server: Real) -> list[int]:
    """The number of tokens that each scoring call computed although a call before it had them.

    Trajectories of random tokens, which no cache holds, take turns.
    """
    draw = random.Random()
    texts = {
        name: Context(Segment("", tuple(draw.choices(VOCABULARY, k=NUM_PROMPT))))
        for name in TRAJECTORIES
    }
    again = []
    async with server.client() as client:
        backend = await SGLang.connect(client, MODEL, None, reads=False)
        for _ in range(NUM_CALLS):
            for name, context in texts.items():
                known = len(context.token_ids) - 1  # the scores of a step begin there
                context.append(Segment("a", tuple(draw.choices(VOCABULARY, k=NUM_STEP))))
                scores = await backend.score(context, 1, 5, Call(name), entropy_known=False)
                assert scores.num_cached_tokens is not None
                again.append(known - scores.num_cached_tokens)
    return again[len(TRAJECTORIES) :]  # without the prompts


async def test_a_router_that_honours_the_routing_key_keeps_every_trajectorys_cache(
    routers: dict[str, Real],
) -> None:
    assert set(await recomputed(routers["one server"])) == {0}
    assert set(await recomputed(routers["manual"])) == {0}


async def test_a_router_that_ignores_the_routing_key_has_contexts_computed_again(
    routers: dict[str, Real],
) -> None:
    again = await recomputed(routers["round_robin"])
    # An odd number of trajectories takes turns, so each comes to the two servers alternately. A
    # server has all of the step before the last, of which one call before wanted all but a token.
    first, others = again[: len(TRAJECTORIES)], again[len(TRAJECTORIES) :]
    assert set(first) == {NUM_PROMPT + NUM_STEP - 1}
    assert set(others) == {NUM_STEP - 1}


def test_a_trajectory_stays_on_one_server_and_has_the_text_of_one_server(
    base_url: str, servers: dict[str, Real]
) -> None:
    workers = [servers[name] for name in WORKERS]
    texts, num_servers = {}, {}
    for name in ("one server", "manual", "round_robin"):
        before = [worker.num_requests() for worker in workers]
        options = {"base_threshold": 0.0, "delimiter": " "}
        body: dict[str, Any] = {"model": f"own {name}", "messages": MESSAGES, "motab": options}
        answer = post(base_url, "chat/completions", body | {"temperature": 0.0, "max_tokens": 60})
        texts[name] = answer["choices"][0]["message"]["content"]
        assert answer["usage"]["motab"]["score_calls"] > 1
        after = [worker.num_requests() for worker in workers]
        num_servers[name] = sum(now > then for now, then in zip(after, before, strict=True))
    assert len(set(texts.values())) == 1
    assert num_servers == {"one server": 1, "manual": 1, "round_robin": 2}


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_killing_the_client_stops_the_server_behind_the_router(
    stream: bool, base_url: str, servers: dict[str, Real]
) -> None:
    body = {
        "model": "own manual",
        # Greedily, it counts on for ever.
        "prompt": " ".join(map(str, range(1, 30))) + " ",
        "temperature": 0.0,
        "max_tokens": 1500,
        "stream": stream,
        "motab": {"delimiter": " ", "base_threshold": 0.0, "entropy_scale": 0.0},
    }
    leave_idle([servers[name] for name in WORKERS], base_url, body)


async def test_the_routers_own_tokenizer_is_refused(routers: dict[str, Real]) -> None:
    async with routers["manual"].client() as client:
        with pytest.raises(RouterTokenises, match="set the upstream's `tokenizer`"):
            await SGLang.connect(client, MODEL, None)
