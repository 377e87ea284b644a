"""Compares real servers with simulators of the same speeds, which keep the same rules."""

from typing import Any, Literal

import pytest

from benchmarks.figures import Findings
from benchmarks.processes import PAIR, Pair, Served, connections, proxy, simulator
from benchmarks.servers.asked import Answer
from benchmarks.servers.counted import block_size
from benchmarks.servers.findings import with_simulators
from benchmarks.servers.level import Level, Part
from benchmarks.servers.side_by_side import Counts, Measured, SideBySide, run_simulators
from benchmarks.simulator.engine import Rates
from benchmarks.simulator.plan import Plan
from benchmarks.simulator.server import Kind
from tests.unit.benchmarks.test_servers import answering

FAST = Rates(decode_tok_s=2000, prefill_tok_s=1e6, trip_s=0.002)
METRICS = b"""# HELP vllm:cache_config_info Information of the LLMEngine CacheConfig
vllm:cache_config_info{block_size="32",cache_dtype="auto",engine="0"} 1.0
"""


def answer_of(num_steps: int, breach: int | None = None, num_discarded: int = 0) -> Answer:
    """An answer of steps of 10 tokens, which the teacher reads as 8, after a question of 20, the
    first 4 of which all questions share.
    """
    trace = {"steps": [{"student_tokens": 10}] * num_steps, "breach": breach}
    usage = {
        "student_tokens": 10 * num_steps + num_discarded,
        "student_tokens_discarded": num_discarded,
        "teacher_scored_tokens": 8 * num_steps,
        "score_calls": num_steps,
    }
    return Answer(1.0, 0.1, 10 * num_steps, trace, usage, 20, 4, 10 * num_steps)


def part_of(*answers: Answer) -> Part:
    return Part(2.0, answers, 100.0, 0.1)


LEVEL = Level(
    2,
    part_of(answer_of(3), answer_of(5)),
    part_of(answer_of(3), answer_of(5)),
    part_of(answer_of(2, breach=1, num_discarded=20), answer_of(5)),
    None,
)


def served(kind: Literal["sglang", "vllm", "llamacpp"], url: str = "http://127.0.0.1:9") -> Served:
    return Served(url, kind, "tiny", None)


async def test_a_server_says_how_large_its_blocks_are() -> None:
    with answering({"/metrics": METRICS}) as url:
        async with connections() as http:
            assert await block_size(http, served("vllm", url)) == 32
    with answering({"/metrics": b"sglang:num_running_reqs 0\n"}) as url:
        async with connections() as http:
            assert await block_size(http, served("sglang", url)) == 1


@pytest.mark.parametrize("kind", ["sglang", "vllm", "llamacpp"])
async def test_simulators_write_texts_of_the_same_shapes(
    kind: Literal["sglang", "vllm", "llamacpp"],
) -> None:
    block = 32 if kind == "vllm" else 1
    speeds = Measured(FAST, FAST, scale_out=False, block=block)
    found = await run_simulators(LEVEL, Pair(served(kind), served(kind)), speeds)
    # Four shared tokens are no whole block of 32, so a cache of blocks does not keep them.
    num_context = 104 if kind == "vllm" else 96
    assert (found.real.num_tokens, found.real.num_calls) == (80, 8)
    assert found.real.num_context == num_context
    assert (found.real_straying.wasted, found.real_straying.kept) == (20, 70)
    assert (found.simulated.num_steps, found.simulated.num_tokens) == (8, 80)
    assert found.simulated_straying.num_steps == 7
    assert found.simulated_straying.kept >= 70
    # Each text once; with vLLM's rule as often as there were calls for values.
    computed = found.simulated.computed / found.simulated.num_context
    assert 0.8 < computed <= (3 if kind == "vllm" else 1.2)
    compared = with_simulators(Findings(()), found)
    names = [figure.name for figure in compared.figures]
    assert names[1] == "2 at once, against simulators: scoring calls per step"
    assert compared.figures[1].value == 1
    assert compared.figures[1].detail.startswith("simulators ")
    assert compared.figures[1].detail.endswith(" of it")


def test_a_figure_that_is_zero_on_the_real_server_has_no_ratio() -> None:
    counts = Counts(1.0, 10, 12, 2, 2, 12.0, 0, 10)
    compared = with_simulators(Findings(()), SideBySide(1, counts, counts, counts, counts))
    details = {figure.name: figure.detail for figure in compared.figures}
    assert details["1 at once, against simulators: student tokens wasted / kept"] == "simulators 0"


@pytest.mark.parametrize("params", [{}, {"stitch": "clean"}, {"backtrack": "none"}])
@pytest.mark.parametrize("kind", ["sglang", "vllm"])
async def test_a_correction_computes_less_than_a_block(kind: Kind, params: dict[str, Any]) -> None:
    plan = Plan(3, 12, 54, 7)
    async with simulator(kind, FAST, errs=True) as student, simulator(kind, FAST) as teacher:
        async with proxy({PAIR: Pair(student, teacher, params)}) as motab:
            body = {"model": PAIR, "messages": [{"role": "user", "content": plan.question}]}
            answer = await motab.post("/v1/motab/completions", body)
        computed = (await teacher.counters()).tokens_prefilled
    trace, usage = answer["choices"][0]["motab"], answer["usage"]["motab"]
    assert trace["bifurcation"] == (7 if params.get("backtrack") == "none" else 6)
    if kind == "vllm":  # whose calls for values have nothing from the cache
        num_context = 31 + 54 * trace["bifurcation"]
        assert usage["teacher_cached_tokens"] == (num_context - 1) // 16 * 16
    else:  # each call computes a token before its own again, and so does the correction
        assert computed == 31 + usage["teacher_scored_tokens"] + usage["score_calls"] - 1 + 1
