"""`motab probe` on the demo's pretrained pair: real models that it starts itself."""

from tests.support.paths import ROOT
from tests.support.proxy.probe_command import probe


def test_the_demo_s_models_can_do_what_the_demo_needs() -> None:
    report = probe(ROOT / "configs" / "demo_pretrained.yaml", 0)
    assert report["ok"]
    assert report["models"]["motab/demo"] == {
        "ok": True,
        "student": "student",
        "teacher": "teacher",
        "method": "motab",
        "scoring": "forced_decode",
        "reasons": [],
        "notes": [],
    }
    for upstream in report["upstreams"].values():
        checks = upstream["checks"]
        scoring = checks.pop("scoring")
        assert {name: check["result"] for name, check in checks.items()} == dict.fromkeys(
            checks, "ok"
        )
        assert checks["streams"]["values"]["num_chunks"] > 40
        assert checks["stop_strings"]["values"] == {"stops": True, "trims": True}
        forced = scoring["forced_decode"]
        assert forced["self_test"]["result"] == "ok"
        assert forced["self_test"]["values"]["num_tokens"] > 10
        assert forced["top_k"]["values"] == {"wanted": 20, "most": 128}
        assert 180 < forced["speed"]["values"]["num_tokens"] < 240
        # The last token before the step is computed again, to have what comes after it.
        cache = forced["prefix_cache"]["values"]
        assert cache["num_cached_tokens"] == cache["num_context_tokens"] - 1
        others = {name for name, way in scoring.items() if way["available"]["result"] == "no"}
        assert others == {
            "cached_logprobs",
            "prompt_logprobs",
            "echo",
            "judge_logprob",
            "judge_sample",
        }
