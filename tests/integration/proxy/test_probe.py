"""Tests what a probe finds out about fake vLLM servers."""

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from proxy.backends.servers.vllm_cached import ROUTE
from proxy.config import load_config
from proxy.errors import MotabError
from proxy.probe.report import Check, UpstreamChecks
from proxy.probe.run import probe
from tests.support.fake_vllm import MODEL, NUM_CACHED, FakeVllm
from tests.support.patience import PATIENCE_S, longer_and_longer
from tests.support.proxy.probes import ALL, LADDER, config_of, probed
from tests.support.replay import Reply, Seen, json_reply, replay
from tests.support.servers.vllm_v2 import VllmV2

DEAD = "http://127.0.0.1:9"


def results(checks: UpstreamChecks) -> dict[str, str]:
    """All results by name, the first rung's under its own names."""
    found = {
        name: getattr(checks, name).result
        for name in UpstreamChecks.__dataclass_fields__
        if name not in {"scoring", "reasoning"}
    }
    way = checks.scoring["prompt_logprobs"]
    return found | {name: getattr(way, name).result for name in type(way).__dataclass_fields__}


async def test_a_healthy_server_can_do_everything(tmp_path: Path) -> None:
    report = await probed(tmp_path, FakeVllm())
    checks = report.upstreams["t"].checks
    assert results(checks) == dict.fromkeys(ALL, "ok")
    assert checks.streams.values["num_tokens"] == checks.streams.values["num_chunks"] == 48
    assert checks.streams.values["ms_per_token"] >= 0
    assert checks.decode_logprobs.values == {"num_tokens": 24}
    assert checks.tokenizer.values == {"source": "server"}
    way = checks.scoring["prompt_logprobs"]
    assert way.self_test.values["num_tokens"] == 24
    assert way.self_test.values["worst_nats"] < 1e-9
    assert way.top_k.values == {"wanted": 20, "most": 20}
    assert way.prefix_cache.values["num_cached_tokens"] == NUM_CACHED
    assert way.speed.values["num_tokens"] > 200
    pair = report.models["pair"]
    assert (report.can, pair.reasons, pair.notes) == (True, (), ())
    assert (pair.method, pair.scoring) == ("motab", "prompt_logprobs")


@pytest.mark.parametrize("window", [512, 150])
@pytest.mark.parametrize("is_configured", [True, False])
async def test_a_small_window_is_probed_with_less_text(
    tmp_path: Path, window: int, *, is_configured: bool
) -> None:
    keys: dict[str, Any] = {"context_tokens": window} if is_configured else {}
    report = await probed(tmp_path, FakeVllm(window=window), **keys)
    checks = report.upstreams["t"].checks
    speed = checks.scoring["prompt_logprobs"].speed
    if window == 512:
        assert results(checks) == dict.fromkeys(ALL, "ok")
        assert 200 < speed.values["num_tokens"] + speed.values["num_context_tokens"] < window
    else:  # the question and one step are more
        assert speed.result == "no"
        assert "maximum context length is 150" in speed.detail
        assert checks.streams.result == "ok"


async def test_rungs_that_a_server_does_not_have_say_so(tmp_path: Path) -> None:
    checks = (await probed(tmp_path, FakeVllm())).upstreams["t"].checks
    assert list(checks.scoring) == LADDER
    cached, _, *others = LADDER
    assert checks.scoring[cached].available.result == "no"  # type: ignore[index]
    assert "--enable-scale-out" in checks.scoring[cached].available.detail  # type: ignore[index]
    for rung in others:
        way = checks.scoring[rung]  # type: ignore[index]
        assert (way.available.result, way.self_test.result) == ("no", "not_applicable")
        assert "not offered" in way.available.detail


async def test_a_teacher_that_proves_model_runner_v2_scores_from_its_cache(tmp_path: Path) -> None:
    async with replay() as server:
        FakeVllm().serve(server)
        server.on("POST", ROUTE, VllmV2().answer)
        models = {"pair": {"student": "t", "teacher": "t"}}
        report = await probe(config_of(tmp_path, {"t": server.client.base_url}, models))
    cached = report.upstreams["t"].checks.scoring["cached_logprobs"]
    assert cached.available.result == "ok"
    num_cached, num_before = map(
        cached.prefix_cache.values.__getitem__, ("num_cached_tokens", "num_context_tokens")
    )
    assert 0 <= num_before - num_cached < 16
    assert report.models["pair"].scoring == "cached_logprobs"


async def test_another_model_is_told_and_its_pair_cannot(tmp_path: Path) -> None:
    report = await probed(tmp_path, FakeVllm(served="other"))
    checks = report.upstreams["t"].checks
    told = results(checks)
    assert (told.pop("reachable"), told.pop("model")) == ("ok", "no")
    assert set(told.values()) == {"not_applicable"}
    (reason,) = report.models["pair"].reasons
    assert reason.startswith("teacher 't': model: /tokenize answered 404")
    assert f"`{MODEL}` does not exist" in reason
    assert not report.can


async def test_a_server_that_ignores_stop_strings_is_told_but_its_pair_can(tmp_path: Path) -> None:
    report = await probed(tmp_path, FakeVllm(ignores_stop=True))
    stop = report.upstreams["t"].checks.stop_strings
    assert (stop.result, stop.values) == ("no", {"stops": False, "trims": False})
    (note,) = report.models["pair"].notes
    assert "`stop`" in note
    assert report.can


async def test_a_stop_string_left_in_the_text_is_told(tmp_path: Path) -> None:
    report = await probed(tmp_path, FakeVllm(keeps_stop=True))
    stop = report.upstreams["t"].checks.stop_strings
    assert (stop.result, stop.values) == ("no", {"stops": True, "trims": False})


async def test_dropped_candidates_are_told_and_only_a_static_boundary_can(tmp_path: Path) -> None:
    report = await probed(tmp_path, FakeVllm(drops_top_k=True), {"boundary": "static"})
    way = report.upstreams["t"].checks.scoring["prompt_logprobs"]
    # vLLM's next token always comes with its candidates, so without them nothing is a score.
    assert way.available.result == "failed"
    assert "came" in way.available.detail
    assert not report.can


@pytest.mark.parametrize(("max_logprobs", "most"), [(5, 5), (19, 19), (2, 2), (63, 63)])
async def test_the_most_candidates_are_found(tmp_path: Path, max_logprobs: int, most: int) -> None:
    report = await probed(tmp_path, FakeVllm(max_logprobs=max_logprobs))
    top_k = report.upstreams["t"].checks.scoring["prompt_logprobs"].top_k
    assert top_k.values == {"wanted": 20, "most": most}
    assert top_k.result == ("ok" if most >= 20 else "no")
    pair = report.models["pair"]
    assert pair.can == (most >= 20)
    if not pair.can:
        cure = f"entropy_top_k: {most} or boundary: static would do"
        assert pair.reasons == (
            f"teacher 't': entropy_top_k is 20, {most} candidates come; {cure}",
        )


async def test_a_pair_needs_as_many_candidates_as_it_asks_for(tmp_path: Path) -> None:
    few = FakeVllm(max_logprobs=5)
    assert (await probed(tmp_path, few, {"entropy_top_k": 5})).can
    assert (await probed(tmp_path, few, {"boundary": "static"})).can
    assert not (await probed(tmp_path, FakeVllm(), {"entropy_top_k": 21})).can


async def test_log_probabilities_that_are_one_off_fail_the_self_test(tmp_path: Path) -> None:
    report = await probed(tmp_path, FakeVllm(logprobs_shift=1))
    way = report.upstreams["t"].checks.scoring["prompt_logprobs"]
    assert (way.available.result, way.self_test.result) == ("ok", "no")
    assert way.self_test.values["worst_nats"] > 0.1
    (reason,) = report.models["pair"].reasons
    assert reason.startswith("teacher 't': prompt_logprobs fails the self-test:")
    assert report.upstreams["s"].checks.scoring["prompt_logprobs"].self_test.result == "ok"


async def test_a_student_is_not_held_to_scoring(tmp_path: Path) -> None:
    async with replay() as student, replay() as teacher:
        FakeVllm(logprobs_shift=1).serve(student)
        FakeVllm().serve(teacher)
        urls = {"s": student.client.base_url, "t": teacher.client.base_url}
        models = {
            "pair": {"student": "s", "teacher": "t"},
            "reversed": {"student": "t", "teacher": "s"},
            "alone": {"student": "t", "teacher": "s", "params": {"method": "teacher"}},
        }
        report = await probe(config_of(tmp_path, urls, models))
    assert {name: model.can for name, model in report.models.items()} == {
        "pair": True,
        "reversed": False,
        "alone": True,
    }
    assert report.models["alone"].scoring is None


async def test_a_server_error_is_a_failure_and_not_a_no(tmp_path: Path) -> None:
    report = await probed(tmp_path, FakeVllm(broken=True))
    checks = report.upstreams["t"].checks
    assert (checks.model.result, checks.chat_template.result) == ("ok", "ok")
    assert checks.writes.result == "failed"
    assert checks.writes.detail.startswith("/v1/completions answered 500")
    assert checks.streams.result == "not_applicable"
    assert checks.scoring["prompt_logprobs"].available.result == "failed"
    told = report.models["pair"].reasons
    assert [reason.split(":")[1].strip() for reason in told] == [
        "does not write",
        "prompt_logprobs",
    ]


async def test_without_a_template_raw_prompts_are_probed_and_chats_are_noted(
    tmp_path: Path,
) -> None:
    report = await probed(tmp_path, FakeVllm(has_template=False))
    told = results(report.upstreams["t"].checks)
    assert told == {**dict.fromkeys(ALL, "ok"), "chat_template": "no"}
    assert report.can
    (note,) = report.models["pair"].notes
    assert note.startswith("teacher 't': chat requests will fail")


async def test_a_template_without_the_system_role_renders(tmp_path: Path) -> None:
    report = await probed(tmp_path, FakeVllm(refuses_system=True))
    template = report.upstreams["t"].checks.chat_template
    assert (template.result, template.values["takes_system"]) == ("ok", False)
    assert "system" in template.detail


async def test_a_template_that_leaves_the_question_out_does_not_render(tmp_path: Path) -> None:
    report = await probed(tmp_path, FakeVllm(), chat_template="Hello!")
    assert report.upstreams["t"].checks.chat_template.result == "no"


async def test_a_text_in_one_chunk_is_no_stream(tmp_path: Path) -> None:
    report = await probed(tmp_path, FakeVllm(one_chunk=True))
    streams = report.upstreams["t"].checks.streams
    assert streams.result == "no"
    assert streams.detail == "all 48 tokens came in one chunk"
    assert report.can


async def test_a_server_without_log_probabilities_in_writing_is_not_self_tested(
    tmp_path: Path,
) -> None:
    report = await probed(tmp_path, FakeVllm(refuses_logprobs=True))
    checks = report.upstreams["t"].checks
    assert checks.decode_logprobs.result == "no"
    assert checks.scoring["prompt_logprobs"].self_test.result == "not_applicable"
    (note,) = report.models["pair"].notes
    assert "not self-tested" in note


async def test_a_server_that_does_not_tell_of_its_cache_is_not_said_to_have_none(
    tmp_path: Path,
) -> None:
    report = await probed(tmp_path, FakeVllm(tells_cache=False))
    cache = report.upstreams["t"].checks.scoring["prompt_logprobs"].prefix_cache
    assert cache.result == "not_applicable"


async def test_what_is_down_or_odd_does_not_keep_the_others_from_being_probed(
    tmp_path: Path,
) -> None:
    async with AsyncExitStack() as stack:
        healthy, page, failing = [await stack.enter_async_context(replay()) for _ in range(3)]
        FakeVllm().serve(healthy)
        page.on("POST", "/tokenize", Reply((b"<html>",)))
        failing.on("POST", "/tokenize", json_reply({"error": "loading"}, 503))
        urls = {
            "good": healthy.client.base_url,
            "dead": DEAD,
            "page": page.client.base_url,
            "failing": failing.client.base_url,
        }
        models = {name: {"student": "good", "teacher": name} for name in ("good", "dead", "page")}
        report = await probe(config_of(tmp_path, urls, models))
    told = {
        name: (one.checks.reachable.result, one.checks.model.result)
        for name, one in report.upstreams.items()
    }
    assert told == {
        "good": ("ok", "ok"),
        "dead": ("failed", "not_applicable"),
        "page": ("ok", "failed"),
        "failing": ("ok", "failed"),
    }
    assert {name: model.can for name, model in report.models.items()} == {
        "good": True,
        "dead": False,
        "page": False,
    }
    (reason,) = report.models["dead"].reasons
    assert reason.startswith(f"teacher 'dead': not reachable: no connection to {DEAD}")


async def test_a_call_that_fails_once_is_made_again(tmp_path: Path) -> None:
    async with replay() as up:
        fake = FakeVllm()
        fake.serve(up)
        up.on("POST", "/v1/completions", json_reply({"error": "busy"}, 503), fake.complete)
        models = {"pair": {"student": "up", "teacher": "up"}}
        report = await probe(config_of(tmp_path, {"up": up.client.base_url}, models))
    assert results(report.upstreams["up"].checks) == dict.fromkeys(ALL, "ok")


async def test_one_of_several_calls_at_once_that_fails_fails_its_check(tmp_path: Path) -> None:
    fake = FakeVllm()

    def tokenize(seen: Seen) -> Reply:
        is_sample = "\U0001f680" in str(seen.body.get("prompt"))
        return json_reply({"error": "odd"}, 500) if is_sample else fake.tokenize(seen)

    async with replay() as up:
        fake.serve(up)
        up.on("POST", "/tokenize", tokenize)
        models = {"pair": {"student": "up", "teacher": "up"}}
        report = await probe(config_of(tmp_path, {"up": up.client.base_url}, models))
    checks = report.upstreams["up"].checks
    assert checks.tokenizer.result == "failed"
    assert checks.tokenizer.detail.startswith("/tokenize answered 500")
    assert results(checks) == {**dict.fromkeys(ALL, "ok"), "tokenizer": "failed"}
    assert [reason.split(":")[1] for reason in report.models["pair"].reasons] == [
        " tokenizer",
        " tokenizer",
    ]


async def test_an_embedded_model_that_is_not_there_is_told(tmp_path: Path) -> None:
    path = tmp_path / "motab.yaml"
    absent = {"kind": "embedded", "model": str(tmp_path / "absent.gguf")}
    models = {"pair": {"student": "up", "teacher": "absent"}}
    async with replay() as up:
        FakeVllm().serve(up)
        one = {"kind": "vllm", "base_url": up.client.base_url, "model": MODEL}
        config = {"upstreams": {"absent": absent, "up": one}, "models": models}
        path.write_text(json.dumps(config), encoding="utf-8")
        report = await probe(load_config(path))
    reachable = report.upstreams["absent"].checks.reachable
    assert (reachable.result, "absent.gguf" in reachable.detail) == ("failed", True)
    assert report.upstreams["absent"].base_url is None
    assert results(report.upstreams["up"].checks) == dict.fromkeys(ALL, "ok")


async def test_upstreams_of_one_server_are_asked_one_after_the_other(tmp_path: Path) -> None:
    async with replay() as up:
        FakeVllm().serve(up)
        url = up.client.base_url
        models = {"pair": {"student": "a", "teacher": "b"}}
        report = await probe(config_of(tmp_path, {"a": url, "b": url}, models))
    assert report.can
    sessions = [seen.headers["x-session-id"] for seen in up.seen if seen.path == "/v1/completions"]
    assert len(set(sessions)) == 2
    assert sessions == sorted(sessions, key=sessions.index)


async def test_a_server_that_hangs_is_left_after_the_limit(tmp_path: Path) -> None:
    async with replay() as hanging, replay() as later:
        hanging.on("POST", "/tokenize", Reply(hold=True))
        FakeVllm().serve(later)
        later.on("POST", "/v1/completions", Reply(hold=True))
        urls = {"hanging": hanging.client.base_url, "later": later.client.base_url}
        models = {"pair": {"student": "hanging", "teacher": "later"}}
        for limit_s in longer_and_longer(0.3):
            async with asyncio.timeout(PATIENCE_S):
                report = await probe(config_of(tmp_path, urls, models), limit_s=limit_s)
            told = f"no answer within {limit_s:g} s"
            assert report.upstreams["hanging"].checks.reachable.detail == told
            if report.upstreams["later"].checks.reachable.result == "ok":
                break
        else:
            pytest.fail("no limit was long enough")
    writes = report.upstreams["later"].checks.writes
    assert (writes.result, writes.detail) == ("failed", told)


async def test_a_pinned_way_that_the_teacher_lacks_is_a_reason(tmp_path: Path) -> None:
    report = await probed(tmp_path, FakeVllm(), {"scoring": "echo"})
    assert report.models["pair"].reasons == ("teacher 't': has no 'echo'; it has: prompt_logprobs",)


async def test_the_pairs_own_top_k_is_asked_for(tmp_path: Path) -> None:
    report = await probed(tmp_path, FakeVllm(max_logprobs=200), {"entropy_top_k": 150})
    top_k = report.upstreams["t"].checks.scoring["prompt_logprobs"].top_k
    assert top_k.values == {"wanted": 150, "most": 150}


async def test_a_defect_of_ours_is_not_told_as_the_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def defect(_: object) -> Check:
        raise ZeroDivisionError

    monkeypatch.setattr("proxy.probe.checks.streams", defect)
    with pytest.raises(BaseExceptionGroup) as caught:
        await probed(tmp_path, FakeVllm())
    assert caught.value.subgroup(ZeroDivisionError) is not None
    assert caught.value.subgroup(MotabError) is None
