"""`motab probe` on a real vLLM, SGLang and llama.cpp server, which serve the same model."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.servers.real import SCORING, Real
from tests.support.proxy.probe_command import probe


@pytest.fixture(scope="module")
def report(servers: dict[str, Real], tmp_path_factory: pytest.TempPathFactory) -> Any:
    config = {
        "upstreams": {
            **{name: servers[name].upstream() for name in (*SCORING, "llama")},
            "absent": servers["vllm"].upstream(model="another"),
        },
        "models": {
            "llama+vllm": {"student": "llama", "teacher": "vllm"},
            "vllm+llama": {"student": "vllm", "teacher": "llama"},
            "sglang+sglang": {"student": "sglang", "teacher": "sglang"},
            "deep": {"student": "vllm", "teacher": "vllm", "params": {"entropy_top_k": 21}},
            "absent": {"student": "vllm", "teacher": "absent"},
        },
    }
    path: Path = tmp_path_factory.mktemp("probe") / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return probe(path, 1)


@pytest.mark.parametrize("server", SCORING)
def test_it_writes_streams_stops_and_tells(report: Any, server: str) -> None:
    checks = report["upstreams"][server]["checks"]
    told = {name: check["result"] for name, check in checks.items() if name != "scoring"}
    assert told == dict.fromkeys(told, "ok")
    assert checks["streams"]["values"]["num_chunks"] > 10
    assert checks["stop_strings"]["values"] == {"stops": True, "trims": True}
    assert checks["chat_template"]["values"]["takes_system"]


@pytest.mark.parametrize("server", SCORING)
def test_it_scores_by_prompt_log_probabilities_and_passes_the_self_test(
    report: Any, server: str
) -> None:
    way = report["upstreams"][server]["checks"]["scoring"]["prompt_logprobs"]
    assert way["available"]["result"] == "ok"
    assert way["self_test"]["values"]["worst_nats"] < 1e-3
    assert way["self_test"]["values"]["num_tokens"] > 10


def test_vllm_on_model_runner_v1_says_what_it_lacks_to_score_from_its_cache(report: Any) -> None:
    missing = report["upstreams"]["vllm"]["checks"]["scoring"]["cached_logprobs"]["available"]
    assert missing["result"] == "no"
    assert "--enable-scale-out" in missing["detail"]
    assert "requires the V2 model runner" in missing["detail"]


def test_vllm_gives_as_many_candidates_as_max_logprobs_allows(report: Any) -> None:
    scoring = report["upstreams"]["vllm"]["checks"]["scoring"]
    assert scoring["prompt_logprobs"]["top_k"]["values"] == {"wanted": 21, "most": 20}


@pytest.mark.parametrize(
    ("server", "way"), [("sglang", "prompt_logprobs"), ("llama", "forced_decode")]
)
def test_scoring_makes_use_of_the_prefix_cache(report: Any, server: str, way: str) -> None:
    cache = report["upstreams"][server]["checks"]["scoring"][way]["prefix_cache"]
    assert cache["result"] == "ok"
    assert cache["values"]["num_cached_tokens"] == cache["values"]["num_context_tokens"] - 1


def test_scoring_makes_no_use_of_vllms_prefix_cache(report: Any) -> None:
    cache = report["upstreams"]["vllm"]["checks"]["scoring"]["prompt_logprobs"]["prefix_cache"]
    assert (cache["result"], cache["values"]["num_cached_tokens"]) == ("no", 0)


def test_all_give_a_text_the_same_values(report: Any) -> None:
    vllm, sglang, llama = (
        report["upstreams"][name]["checks"]["scoring"][way]["available"]["values"]["step_values"]
        for name, way in (
            ("vllm", "prompt_logprobs"),
            ("sglang", "prompt_logprobs"),
            ("llama", "forced_decode"),
        )
    )
    assert vllm == pytest.approx(sglang, abs=1e-3)
    assert vllm == pytest.approx(llama, rel=0.02)


def test_pairs_are_judged_by_what_they_ask_for(report: Any) -> None:
    models = report["models"]
    assert {name: model["ok"] for name, model in models.items()} == {
        "llama+vllm": True,
        "vllm+llama": True,
        "sglang+sglang": True,
        "deep": False,
        "absent": False,
    }
    assert models["llama+vllm"]["scoring"] == "prompt_logprobs"
    assert models["vllm+llama"]["scoring"] == "forced_decode"
    assert models["deep"]["reasons"][0].startswith("teacher 'vllm': entropy_top_k is 21, 20 ")
    (reason,) = models["absent"]["reasons"]
    assert reason.startswith("teacher 'absent': model: /tokenize answered 404")
    assert "`another` does not exist" in reason
