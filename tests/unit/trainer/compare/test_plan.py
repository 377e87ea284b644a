from pathlib import Path
from typing import Any

import pytest

from proxy.config import load_config
from tests.support.paths import ROOT
from tests.support.proxy.configs import complaint_of, with_value, written
from tests.support.trainer.plans import loaded_plan, plan_in
from trainer.compare.estimate import outline
from trainer.compare.plan import load_plan
from trainer.errors import PlanError

PLANS = sorted((ROOT / "configs" / "plans").glob("*.yaml"))


def complaint(folder: Path, path: str, value: object) -> str:
    content = with_value(plan_in(folder), path.split("/"), value)
    return complaint_of(load_plan, written(content, folder / "plan.yaml"), PlanError)


def test_a_plan_has_the_papers_questions_once_and_one_seed_unless_it_says_more(
    tmp_path: Path,
) -> None:
    plan = loaded_plan(tmp_path)
    assert (plan.seeds, plan.baseline, plan.budget) == ((1,), "sft", None)
    assert plan.arms["sft"].loss == {"kind": "sft"}
    assert (plan.arms["motab"].tries, plan.arms["motab"].filters) == (1, ())


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("arm", {}, "arm is not a known field; did you mean 'arms'?"),
        ("pair/base_url", "127.0.0.1", "pair.base_url: string should match pattern"),
        ("pair/modle", "x", "pair.modle is not a known field; did you mean 'model'?"),
        ("arms", {}, "arms: dictionary should have at least 1 item"),
        ("baseline", "motabs", "motabs is no arm; the arms are sft, motab; did you mean 'motab'?"),
        ("arms/sft/params", {}, "arms.sft.params.method is missing"),
        ("arms/sft/params/method", "tutor", "arms.sft.params.method: input should be"),
        ("arms/motab/params/base_treshold", 0.5, "did you mean 'base_threshold'?"),
        ("arms/motab/params/base_threshold", 2.0, "base_threshold must be in [0, 1]"),
        ("arms/motab/params/stitch", "cleen", "did you mean 'clean'?"),
        ("arms/sft/tries", 0, "arms.sft.tries: input should be greater than or equal to 1"),
        ("arms/sft/filters", ["corect"], "arms.sft.filters: corect: no such filter"),
        ("arms/sft/loss", {"mask": "all"}, "arms.sft.loss.kind is missing"),
        ("arms/sft/loss", {"kind": "sft", "mask": "al"}, "arms.sft.loss.mask: input should be"),
        ("arms/sft/loss", {"kind": "weighted"}, "arms.sft.loss.level is missing"),
        ("arms/sft/label", "a|b", "arms.sft.label: string should match pattern"),
        ("questions/verify", "nmber", "questions.verify: no such rule: 'nmber'"),
        ("questions/source", "gone.jsonl", "questions.source: gone.jsonl: no such file"),
        (
            "questions/allowed_failures",
            1,
            "questions.allowed_failures: input should be less than 1",
        ),
        ("benchmarks/sums/source", "./gone", "sums.source: ./gone: no such file"),
        ("benchmarks/sums/prompt", "Solve", "sums: prompt: has no {problem}"),
        ("benchmarks/sums/verify", "maths", "sums.verify: no such rule: 'maths'"),
        ("benchmarks/math", {"samples": 1}, "math.source: math: no such file"),
        ("serve/command", "serve --port {port}", "serve: command: has no {model}"),
        ("serve/command", "serve {model}", "serve: command: has no {port}"),
        ("serve/command", 'serve "{model} {port}', "serve.command: No closing quotation"),
        ("serve/ready", "health", "serve: ready: must be a path, such as /health, not health"),
        ("pair/servers", [{"command": "x"}], "pair.servers.0.ready is missing"),
        ("pair/servers", [{"command": "x", "ready": "/up"}], "servers.0.ready: must be a URL"),
        ("seeds", [1, 1], "seeds: names a seed twice"),
        ("seeds", [], "seeds: tuple should have at least 1 item"),
        ("budget", {"kind": "token"}, "budget.kind: must be 'tokens', 'money', not 'token'"),
        ("budget", {"kind": "tokens"}, "budget.teacher_tokens is missing"),
        ("budget", {"kind": "money", "amount": 3}, "budget: kind: money needs prices above 0"),
        ("prices", {"techer": 1}, "prices.techer: must be one of"),
        ("assume", {"problems": {"sum": 3}}, "assume.problems.sum: is no benchmark of this plan"),
        ("assume", {"passing": {"rft": 0.5}}, "assume.passing.rft: is no arm of this plan"),
        ("assume", {"tokens": {"tutor": {}}}, "assume.tokens.tutor: is the method of no arm"),
        ("recipe", "gone.yaml", "recipe: gone.yaml: No such file or directory"),
    ],
)
def test_a_wrong_value_is_named_with_the_file_the_key_and_the_cure(
    path: str, value: object, message: str, tmp_path: Path
) -> None:
    assert message in complaint(tmp_path, path, value)


@pytest.mark.parametrize("content", ["", "- a", "a: [", "\udcff"])
def test_a_file_that_is_no_plan_is_named(content: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(PlanError, match=str(path)):
        load_plan(path)


def test_a_plan_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"gone.yaml: No such file or directory"):
        load_plan(tmp_path / "gone.yaml")


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.name)
def test_every_plan_opens_with_its_command_and_shows_its_stages(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    plan = load_plan(path)
    assert f"#   motab compare {path.relative_to(ROOT)}" in path.read_text(encoding="utf-8")
    said = outline(plan)
    assert "?" not in said  # everything is estimated
    rows: list[Any] = [line for line in said.splitlines() if line.startswith("| data |")]
    assert len(rows) >= 2


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.name)
def test_every_plan_starts_a_proxy_that_has_its_pair(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    pair = load_plan(path).pair
    (words,) = (one.command.split() for one in pair.servers if "motab serve" in one.command)
    config = load_config(Path(words[words.index("--config") + 1]))
    assert pair.model in config.models
    assert pair.base_url == f"http://{config.server.host}:{config.server.port}/v1"
    # Every replica is started.
    urls = {url for one in config.upstreams.values() for url in one.model_dump()["base_urls"]}
    assert urls == {one.ready.removesuffix("/health") for one in pair.servers} - {
        pair.servers[-1].ready
    }
