"""Whole trajectories on real servers, which are students and teachers of each other."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

import pytest

from benchmarks.processes import Served, connections
from benchmarks.servers.counted import block_size
from motab.demo import demo_questions
from proxy.backends.base import Call, Context, Draft, GatedWriter, Message, Question, Sampling
from proxy.config import Config
from proxy.core.params import Params
from proxy.engine.pair import Pair
from proxy.engine.runner import TrajectoryRun
from proxy.wiring.models import open_service
from tests.servers.real import MESSAGES, PAIRS, Real, post
from tests.support.patience import PATIENCE_S
from tests.support.proxy.runs import Observed


@pytest.mark.parametrize("model", PAIRS)
@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_whole_trajectories_come_out_right(base_url: str, model: str, threshold: float) -> None:
    body = {
        "model": model,
        "messages": MESSAGES,
        "temperature": 0.6,
        "seed": 1,
        "max_tokens": 100,
        "motab": {"base_threshold": threshold, "boundary": "static"},
    }
    answer = post(base_url, "motab/chat/completions", body)
    (choice,) = answer["choices"]
    text, trace = choice["message"]["content"], choice["motab"]
    assert "".join(text[span["start"] : span["end"]] for span in trace["spans"]) == text
    teacher = model.partition("+")[2]
    others = {"llama": "forced_decode", "openai": "echo"}
    assert trace["scoring"] == others.get(teacher, "prompt_logprobs")
    roles = [span["role"] for span in trace["spans"]]
    usage = answer["usage"]["motab"]
    if threshold:
        assert (trace["breach"], roles) == (0, ["flawed", "revise", "teacher"])
        assert usage["correction_calls"] == 1
    else:
        assert (trace["breach"], roles) == (None, ["student"])
        assert trace["steps"]
        assert usage["student_tokens"] == usage["student_tokens_discarded"] + sum(
            step["student_tokens"] for step in trace["steps"]
        )
    assert usage["score_calls"] <= len(trace["steps"])
    assert usage["teacher_cached_tokens"] is not None


@dataclass
class Watched:
    """A writer that remembers how many tokens each text follows, and how many were cached."""

    writer: GatedWriter
    contexts: list[tuple[int, int | None]] = field(default_factory=list)

    async def write_gated(
        self, context: Context, sampling: Sampling, max_tokens: int, call: Call, gate: asyncio.Event
    ) -> AsyncGenerator[Draft]:
        num_tokens = len(context.token_ids)
        async for draft in self.writer.write_gated(context, sampling, max_tokens, call, gate):
            if draft.end is not None:
                self.contexts.append((num_tokens, draft.num_cached_tokens))
            yield draft


async def corrections(pair: Pair, num: int) -> tuple[list[int | None], Watched]:
    """The bifurcations of the demo's first questions, and what their corrections follow."""
    teacher = pair.of("teacher")
    assert teacher.gated_writer is not None
    watched = Watched(teacher.gated_writer)
    teacher.gated_writer = watched  # type: ignore[assignment]
    found: list[int | None] = []
    for asked in demo_questions()[:num]:
        run = TrajectoryRun(
            pair,
            Question((Message("user", asked.messages[0].content),)),
            Params(base_threshold=0.5, delimiter="\n\n", max_total_tokens=120),
            Sampling(),
            Call(f"correction-{len(found)}"),
            Observed(),
            teacher.scorer("auto"),
        )
        outcome = await run.run()
        found.append(outcome.trajectory.bifurcation)
    return found, watched


async def test_a_correction_computes_less_than_a_block_of_its_context(
    servers: dict[str, Real],
) -> None:
    await check_corrections(servers["student"], servers["teacher"])


async def check_corrections(student: Real, teacher: Real) -> None:
    upstreams = {"s": student.upstream(), "t": teacher.upstream()}
    models = {"pair": {"student": "s", "teacher": "t"}}
    config = Config.model_validate({"upstreams": upstreams, "models": models})
    async with asyncio.timeout(5 * PATIENCE_S), open_service(config) as service:
        found, watched = await corrections(service.models["pair"].pair, 24)
    async with connections() as http:
        served = Served(teacher.base_url, teacher.kind, teacher.model, None)  # type: ignore[arg-type]
        block = await block_size(http, served)
    assert any(found), "every trajectory went back to its start, which nothing precedes"
    assert len(watched.contexts) == sum(bifurcation is not None for bifurcation in found)
    for num_tokens, num_cached in watched.contexts:
        assert num_cached == (num_tokens - 1) // block * block
