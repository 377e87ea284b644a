"""Scoring from a real vLLM's prefix cache: on Model Runner V2, and V1's safe refusal."""

import random
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from proxy.backends.base import Call, Context, Segment
from proxy.backends.servers.vllm import Vllm
from proxy.backends.servers.vllm_cached import CachedVllm
from proxy.backends.transport.http import UpstreamClient
from proxy.errors import UpstreamRefused
from tests.servers.conftest import SERVERS_PYTHON
from tests.servers.real import MODEL as V1_MODEL
from tests.servers.real import Real
from tests.support.paths import ROOT
from trainer.reproduce.servers import vllm

MODEL = "tiny"
FOLDER = ROOT / "trainer" / "reproduce" / "models" / "teacher"
VOCABULARY = range(2, 394)
BLOCK = 32
CALL = Call("test")


@pytest.fixture(scope="module")
def v2_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The demo's teacher on Model Runner V2, whose kernels Triton's interpreter runs."""
    log = tmp_path_factory.mktemp("v2") / "log.txt"
    settings = {
        "VLLM_USE_V2_MODEL_RUNNER": "1",
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": str(Path(__file__).with_name("triton_on_cpu")),
    }
    flags = ["--served-model-name", MODEL, "--enable-prompt-tokens-details", "--enable-scale-out"]
    flags += ["--block-size", str(BLOCK)]
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:  # for this server only
            for name, value in settings.items():
                patch.setenv(name, value)
            url = stack.enter_context(vllm(SERVERS_PYTHON, FOLDER, log, flags=flags))
        yield url


def client_of(url: str) -> UpstreamClient:
    return UpstreamClient("up", url, None, 8, lambda *_: None)


async def test_a_growing_text_costs_its_new_tokens_and_has_the_numbers_of_a_recomputation(
    v2_url: str,
) -> None:
    draw = random.Random()
    async with client_of(v2_url) as client:
        plain = await Vllm.connect(client, MODEL, None)
        cached = await CachedVllm.prove(plain, client, MODEL)
        context = Context(Segment("", tuple(draw.choices(VOCABULARY, k=50))))
        num_computed = 0
        for number in range(8):
            num_new = 2 if number in {3, 6} else 1
            for _ in range(num_new):
                # Some steps begin where a block ends.
                num = -len(context.token_ids) % BLOCK or BLOCK
                num = num if number in {2, 5} else draw.randrange(10, 30)
                context.append(Segment("a", tuple(draw.choices(VOCABULARY, k=num))))
            found = await cached.score(context, num_new, 20, CALL, entropy_known=number > 0)
            whole = await plain.score(context, num_new, 20, CALL, entropy_known=False)
            assert found.scoring is None
            assert found.num_cached_tokens is not None
            num_read = len(context.token_ids) - found.num_cached_tokens
            assert number == 0 or num_read <= found.num_tokens + BLOCK
            num_computed += num_read
            for step, same in zip(found.steps, whole.steps, strict=True):
                assert step.value == pytest.approx(same.value, rel=1e-3)
                if step.entropy is not None:
                    assert step.entropy == pytest.approx(same.entropy, abs=1e-3)
            assert all(step.entropy is not None for step in found.steps[number > 0 :])
            assert found.next_entropy == pytest.approx(whole.next_entropy, abs=1e-3)
    assert num_computed < 2 * len(context.token_ids)


async def test_a_text_that_the_cache_holds_is_computed_whole_and_right(v2_url: str) -> None:
    draw = random.Random()
    async with client_of(v2_url) as client:
        plain = await Vllm.connect(client, MODEL, None)
        cached = CachedVllm(plain, client, MODEL)
        ids = draw.choices(VOCABULARY, k=200)
        context = Context(Segment("", tuple(ids[:100])), [Segment("a", tuple(ids[100:]))])
        whole = await plain.score(context, 1, 20, CALL, entropy_known=False)
        found = await cached.score(context, 1, 20, CALL, entropy_known=True)
    assert found.scoring == "prompt_logprobs"
    assert found.steps[0].value == pytest.approx(whole.steps[0].value, rel=1e-3)


async def test_model_runner_v1_refuses_safely_and_survives(servers: dict[str, Real]) -> None:
    async with client_of(servers["vllm"].base_url) as client:
        plain = await Vllm.connect(client, V1_MODEL, None)
        for _ in range(3):
            with pytest.raises(UpstreamRefused, match="requires the V2 model runner"):
                await CachedVllm.prove(plain, client, V1_MODEL)
        # Also if the proof came from a server that was there before.
        context = Context(Segment("", tuple(range(40, 90))), [Segment("a", tuple(range(90, 99)))])
        scores = await CachedVllm(plain, client, V1_MODEL).score(
            context, 1, 20, CALL, entropy_known=True
        )
        same = await plain.score(context, 1, 20, CALL, entropy_known=True)
        await plain.check()
    assert scores.scoring == "prompt_logprobs"
    assert scores.steps[0].value == pytest.approx(same.steps[0].value, rel=1e-3)
