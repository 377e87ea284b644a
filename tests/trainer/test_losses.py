"""Masked and weighted trainings by `motab train` with LLaMA-Factory itself, on a tiny model."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from tests.support.records import CORRECTION, FLAWED, REVISE, SAFE, breached, record_of
from tests.support.synth_client.exports import written
from tests.support.trainer.llamafactory import Motab, in_trainer
from trajectory_records.record import Record

NUM_EXAMPLES = 6
TURN_END = "<|im_end|>\n"


def scored(number: int) -> Record:
    """A breached record whose tokens are its characters, as the tiny model's are."""
    fields = breached()
    fields |= {"id": f"{number}", "messages": [{"role": "user", "content": "?" * (9 * number + 1)}]}
    ends = list(range(1, len(fields["output"]) + 1))
    fields["token_logprobs"] = {
        "student": {"ends": ends, "logprobs": [-0.1 * ((i + number) % 7) for i in ends]},
        "teacher": {"ends": ends, "logprobs": [-0.1 * (i % 5) for i in ends]},
    }
    return record_of(fields)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("losses")


@pytest.fixture(scope="module")
def trained(model: Path, folder: Path) -> Any:
    """Trains with a loss, once each; the output folder and the losses by step."""

    @cache
    def train(name: str, loss: str, per_device: int = 2) -> tuple[Path, list[float]]:
        path = folder / name
        path.mkdir()
        source = written(path / "records.jsonl", [scored(i) for i in range(NUM_EXAMPLES)])
        recipe = {
            "model": str(model),
            "data": {"kind": "records", "path": str(source)},
            "loss": json.loads(loss),
            # Every step sees all examples: two at once of unequal lengths, three times.
            "training": {"max_steps": 3, "batch_size": 6, "max_tokens": 512, "warmup": 0},
            "hardware": {"kind": "cpu", "per_device": per_device},
            "output": str(path / "out"),
        }
        recipe["training"] |= {"learning_rate": 1e-3}
        (path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
        motab = Motab(path)
        assert motab.wait() == 0, motab.said
        return motab.output, [line["loss"] for line in motab.log if "loss" in line]

    return train


def checked(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads(
        in_trainer("check_losses.py", output).strip().splitlines()[-1]
    )
    return found


PLAIN = '{"kind": "sft"}'
ZERO = '{"kind": "weighted", "level": "token", "power": 0}'
MASKED = '{"kind": "sft", "mask": "correction"}'
WEIGHTED = '{"kind": "weighted", "level": "token", "mask": "unflawed"}'


def test_power_0_is_plain_sft(trained: Any) -> None:
    plain, losses = trained("plain", PLAIN)
    zero, of_zero = trained("zero", ZERO)
    assert of_zero == pytest.approx(losses, abs=1e-4)  # as many digits as are logged
    found = checked(zero)
    assert found["same_ids"]
    assert found["same_labels"]
    assert found["num"] == [NUM_EXAMPLES, NUM_EXAMPLES]
    assert {weight for row in found["weights"] for weight in row} == {1.0}
    assert float(in_trainer("compare_students.py", plain / "model", zero / "model")) < 1e-6


def test_a_mask_leaves_the_context_out_of_the_loss(trained: Any) -> None:
    output, losses = trained("masked", MASKED)
    found = checked(output)
    assert found["same_ids"]
    assert not found["same_labels"]
    assert found["learned"] == [REVISE + CORRECTION + TURN_END] * NUM_EXAMPLES
    assert losses[0] == pytest.approx(found["loss"], abs=1e-4)


def test_weights_are_those_of_the_formula_and_so_is_the_loss(trained: Any) -> None:
    output, losses = trained("weighted", WEIGHTED)
    found = checked(output)
    turn = "".join(SAFE) + REVISE + CORRECTION + TURN_END
    assert found["learned"] == [turn] * NUM_EXAMPLES
    start = len("".join([*SAFE, *FLAWED, REVISE]))
    raw = [
        [2.718281828459045 ** (-0.1 * ((i + number) % 7) + 0.1 * (i % 5)) for i in span]
        for number in range(NUM_EXAMPLES)
        for span in [range(start + 1, start + len(CORRECTION) + 1)]
    ]
    mean = sum(map(sum, raw)) / sum(map(len, raw))
    for labels, weights, of_teacher in zip(found["labels"], found["weights"], raw, strict=True):
        own = [w for label, w in zip(labels, weights, strict=True) if label != -100]
        num_before, num_turn_end = len("".join(SAFE) + REVISE), 2
        assert own[:num_before] == [1.0] * num_before
        assert own[-num_turn_end:] == [1.0] * num_turn_end
        wanted = [g / mean for g in of_teacher]
        assert own[num_before:-num_turn_end] == pytest.approx(wanted, rel=1e-6)
    assert losses[0] == pytest.approx(found["loss"], abs=1e-4)
    run = orjson.loads((output / "run.json").read_bytes())
    assert run["tokens"]["num_weighted"] == NUM_EXAMPLES * len(CORRECTION)
    assert run["tokens"]["mean_of_g"] == pytest.approx(mean)


def test_weights_by_prefix_are_those_of_the_formula() -> None:
    found = orjson.loads(in_trainer("check_prefix.py").strip().splitlines()[-1])
    # With the discount 1/2 and ratios 4, 1/2, 8 the prefixes have means of 1, 4 and
    # (4^(1/2) * 1/2)^(2/3) = 1; with 1/8, 2, 1 they have 1, 1/8 (so 1/4, the bound) and
    # ((1/8)^(1/2) * 2)^(2/3) = 2^(-1/3). A position alone has the weight 1.
    cube = 2 ** (-1 / 3)
    assert found["by_hand"] == [
        pytest.approx([1, 1, 4 / 2.125, 2 / (1 + cube), 1]),
        pytest.approx([1, 1, 1, 0.25 / 2.125, 2 * cube / (1 + cube)]),
    ]
    # Against a plain loop over random cases, in single precision.
    assert found["furthest"] < 1e-5
    assert max(found["renewed"]) < 1e-4
    assert max(found["frozen"]) < 1e-4


@pytest.mark.parametrize("renew", [True, False])
def test_the_loss_by_prefix_is_that_of_its_tokens(trained: Any, renew: bool) -> None:
    loss = {"kind": "weighted", "level": "prefix", "mask": "unflawed", "discount": 0.9}
    # An untrained model's ratios are beyond the usual bounds, and then all weights are 1.
    loss |= {"power": 4, "clip_low": 1e-6, "clip_high": 1e6}
    output, losses = trained(f"prefix-{renew}", json.dumps({**loss, "renew": renew}), 6)
    found = orjson.loads(in_trainer("check_prefix.py", output).strip().splitlines()[-1])
    assert losses[0] == pytest.approx(found["loss"], abs=1e-4)
    plain = json.dumps({"kind": "sft", "mask": "unflawed"})
    unweighted = trained("unflawed", plain, 6)[0]
    # An untrained model finds all tokens about as likely, so its loss shows little of the weights.
    apart = in_trainer("compare_students.py", output / "model", unweighted / "model")
    assert float(apart) > 1e-4
    run = orjson.loads((output / "run.json").read_bytes())
    assert run["tokens"]["num_weighted"] == NUM_EXAMPLES * len(CORRECTION)
    assert run["tokens"]["mean_of_g"] is None


def test_power_0_by_prefix_is_plain_sft(trained: Any) -> None:
    zero = '{"kind": "weighted", "level": "prefix", "power": 0, "mask": "unflawed"}'
    plain = '{"kind": "sft", "mask": "unflawed"}'
    of_zero, losses = trained("zero-prefix", zero, 6)[1], trained("unflawed", plain, 6)[1]
    assert of_zero == pytest.approx(losses, abs=1e-4)
