"""Judges the pairs of `answer_pairs.jsonl`: what an output says, what the reference is, and the
verdict, by rule and kind. A pair whose verdict is null is one in which the two may be equal."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import orjson
import pytest

from synth_client.judging.worker import load

PAIRS: list[dict[str, Any]] = [
    orjson.loads(line)
    for line in Path(__file__).with_name("answer_pairs.jsonl").read_bytes().splitlines()
]
NUM_PAIRS = 900


@pytest.mark.parametrize(("rule", "kind"), sorted({(pair["rule"], pair["kind"]) for pair in PAIRS}))
def test_the_pairs_of_a_kind_are_judged_as_they_should(rule: str, kind: str) -> None:
    judge = load(rule)
    wrong = []
    for pair in PAIRS:
        if (pair["rule"], pair["kind"]) != (rule, kind):
            continue
        judgement = judge({"output": pair["output"], "answer": pair["reference"]})
        if judgement.correct is not pair["expected"]:
            wrong.append((pair["output"], pair["reference"], judgement))
        if judgement.correct is None:
            assert judgement.fault, pair
    assert wrong == []


def test_there_are_many_pairs_and_no_kind_has_one_verdict_only() -> None:
    assert len(PAIRS) >= NUM_PAIRS
    verdicts: dict[str, set[bool | None]] = defaultdict(set)
    for pair in PAIRS:
        verdicts[pair["kind"]].add(pair["expected"])
    assert [kind for kind, found in verdicts.items() if len(found) < 2] == []
