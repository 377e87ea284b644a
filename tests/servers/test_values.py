"""Real trajectories of the demo's pairs: V and H against transformers in float32, same weights."""

from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import JsonValue

from motab.demo import DemoPair, demo_config, demo_questions
from proxy.backends.base import Message
from proxy.backends.embedded.gguf_files import model_path
from proxy.backends.tokens.chat_template import ChatTemplate
from proxy.config import Config, SGLangConfig
from proxy.serving.serve import running
from synth_client.asking.client import SynthClient
from synth_client.questions.question import Synthesis, units_of
from tests.servers.real import Real
from tests.servers.reference import Case, forward_pass
from trajectory_records.record import Record

NUM_QUESTIONS = 4


@dataclass(frozen=True)
class Close:
    """The rounding that a step's value (relative) and entropy (nats) may show."""

    value: float
    entropy: float


# llama.cpp rounds weights and cache to 16 bits.
EMBEDDED, ON_SGLANG = Close(0.02, 0.05), Close(1e-3, 1e-3)


def both_ways(of: DemoPair) -> Config:
    """A pair of the demo, and the same two models with their roles exchanged."""
    config = demo_config(of)
    pair = config.models["motab/demo"]
    swapped = pair.model_copy(update={"student": pair.teacher, "teacher": pair.student})
    exact = {
        name: upstream.model_copy(update={"dequantize": True})
        for name, upstream in config.upstreams.items()
    }
    models = {"motab/demo": pair, "motab/swapped": swapped}
    return config.model_copy(update={"models": models, "upstreams": exact})


def on_sglang(config: Config, servers: dict[str, Real]) -> Config:
    """The tiny pair on real servers."""
    upstreams = {
        name: SGLangConfig(kind="sglang", base_url=servers[name].base_url, model=name)
        for name in config.upstreams
    }
    return config.model_copy(update={"upstreams": upstreams})


async def trajectories(of: DemoPair, config: Config, model: str) -> list[Record]:
    params: dict[str, JsonValue] = {"max_total_tokens": 160}
    synthesis = Synthesis(model=model, temperature=0.6, seed=0, params=params)
    units = [unit for q in demo_questions(of)[:NUM_QUESTIONS] for unit in units_of(q, synthesis, 1)]
    async with running(config) as base_url, SynthClient(base_url, synthesis) as client:
        return [await client.synthesise(unit) for unit in units]


def reference(of: DemoPair, teacher: str, records: list[Record]) -> list[list[dict[str, Any]]]:
    config = demo_config(of).upstreams[teacher]
    path = model_path(config.model)
    source = config.chat_template or (path / "chat_template.jinja").read_text(encoding="utf-8")
    template = ChatTemplate(source)
    cases = [
        Case(
            template.render(tuple(Message(m.role, m.content) for m in record.messages)),
            [record.step_text(index) or "" for index in range(len(record.steps))],
        )
        for record in records
    ]
    return forward_pass(path, cases)


@pytest.mark.parametrize(
    ("of", "close"),
    [
        pytest.param(DemoPair.TINY, EMBEDDED, id="tiny"),
        pytest.param(DemoPair.PRETRAINED, EMBEDDED, id="pretrained"),
        pytest.param(DemoPair.TINY, ON_SGLANG, id="tiny-sglang"),
    ],
)
@pytest.mark.parametrize(
    ("model", "teacher"), [("motab/demo", "teacher"), ("motab/swapped", "student")]
)
async def test_values_and_entropies_agree_with_a_float32_forward_pass(
    of: DemoPair, close: Close, model: str, teacher: str, request: pytest.FixtureRequest
) -> None:
    config = both_ways(of)
    if close is ON_SGLANG:
        config = on_sglang(config, request.getfixturevalue("servers"))
    records = await trajectories(of, config, model)
    num_steps = 0
    for record, expected in zip(records, reference(of, teacher, records), strict=True):
        for step, truth in zip(record.steps, expected, strict=True):
            num_steps += 1
            assert step.teacher_tokens == len(truth["token_ids"])
            assert step.value == pytest.approx(truth["value"], rel=close.value)
            assert step.entropy == pytest.approx(truth["entropy"], abs=close.entropy)
    assert num_steps > NUM_QUESTIONS, "trajectories of one step show too little"
