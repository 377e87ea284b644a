import time
import tracemalloc
from collections import defaultdict
from pathlib import Path
from typing import Any

import orjson
import pytest

from synth_client.errors import InputError
from synth_client.judging.judgement import Judgement
from synth_client.judging.numbers.plain_text import plain
from synth_client.judging.rules import PLAIN_RULES, check_rule, final_answer
from synth_client.judging.worker import load


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("", None),
        ("none at all", None),
        ("first 1, then 2", "2"),
        ("The answer is 36.", "36"),
        ("It costs $1,234,567.50.", "1234567.50"),
        ("1,2", "1,2"),
        ("12,3456", "12,3456"),
        ("x = -5", "-5"),
        ("7-5", "7-5"),
        ("(7)-5", "(7)-5"),
        ("well-5", "5"),
        ("\\boxed{-0.5}", "-0.5"),
        ("Answer:\n42\n", "42"),
        ("_42_ apples", "42"),
        ("USD42", "42"),
    ],
)
def test_the_last_number_is_read_as_it_is_written(text: str, number: str | None) -> None:
    assert PLAIN_RULES["number"](text, None) == Judgement(number, None)


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("", None),
        ("\\boxed{B}", "B"),
        ("So $\\boxed{\\text{(C)}}$.", "C"),
        ("\\boxed{A}, no, \\boxed{D}", "D"),
        ("\\boxed{A \\text{ or } B}", "A, B"),
        ("The answer is (B).", "B"),
        ("The answer is A because B is wrong.", "A"),
        ("**Answer:** E", "E"),
        ("Answer: $\\text{D}$", "D"),
        ("A good answer would help.\nAnswer: C", "C"),
        ("I choose it.\n\n(D)", "D"),
        ("A dog came.", None),
        ("The answer is F.", "F"),
        ("The answer is K.", None),
        ("Answer: Because", None),
        ("answer:", None),
    ],
)
def test_the_choice_is_the_boxed_the_announced_or_the_lone_letter(
    text: str, choice: str | None
) -> None:
    assert PLAIN_RULES["choice"](text, None) == Judgement(choice, None)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" \n", None),
        ("so \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("so \\boxed{ \\{1\\} }.", "\\{1\\}"),
        ("so \\boxed{1", "so \\boxed{1"),
        ("The answer is Paris.", "Paris"),
        ("**Answer:** New York\nthat is all", "New York"),
        ("I think.\nblue", "blue"),
    ],
)
def test_the_final_answer_is_the_box_what_is_announced_or_the_last_line(
    text: str, answer: str | None
) -> None:
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("rule", "output", "answer", "judgement"),
    [
        ("number", "It is 3.", "3", Judgement("3", True)),
        ("number", "It is 3.", " 3.0 ", Judgement("3", True)),
        ("number", "It is 1234.", "1,234", Judgement("1234", True)),
        ("number", "It is 72.", "He has 70 + 2. #### 72", Judgement("72", True)),
        ("number", "It is 3.", "36", Judgement("3", False)),
        ("number", "It is 3.", None, Judgement("3", None)),
        ("number", "Who knows?", "36", Judgement(None, False)),
        (
            "number",
            "It is 3.",
            "three",
            Judgement("3", None, "no number in the reference answer 'three'"),
        ),
        ("number", "<think>7</think>It is 3.", "3", Judgement("3", True)),
        ("number", "<think>It is 3.</think>Done.", "3", Judgement(None, False)),
        ("choice", "Answer: B", "B", Judgement("B", True)),
        ("choice", "Answer: B", "(C)", Judgement("B", False)),
        ("choice", "Hm.", "C", Judgement(None, False)),
        ("choice", "Answer: B", None, Judgement("B", None)),
        (
            "choice",
            "Answer: B",
            "7",
            Judgement("B", None, "the reference answer '7' is no letter A to J"),
        ),
        ("exact", "The answer is Paris.", "Paris ", Judgement("Paris", True)),
        ("exact", "The answer is Paris.", "paris", Judgement("Paris", False)),
        ("exact", "The answer is Paris.", None, Judgement("Paris", None)),
    ],
)
def test_a_plain_rule_judges(
    rule: str, output: str, answer: str | None, judgement: Judgement
) -> None:
    assert PLAIN_RULES[rule](output, answer) == judgement


@pytest.mark.parametrize("rule", ["math", "exact", "choice", "number", "my.rules:judge"])
def test_a_rule_has_one_of_the_names_or_is_a_callable(rule: str) -> None:
    assert check_rule(rule) == rule


@pytest.mark.parametrize("rule", ["", "maths", "rules:", ":judge", "my-rules:judge", "a:b:c"])
def test_an_unknown_rule_is_refused_with_those_there_are(rule: str) -> None:
    with pytest.raises(
        InputError, match="known rules are math, exact, choice, number and MODULE:FUNC"
    ):
        check_rule(rule)


HOSTILE = [
    "(" * 20_000,
    "answer " * 20_000,
    "answer is " + "(" * 900 + "5" + ")" * 900,
    "\\boxed{" * 20_000,
    "\\boxed{5} and \\boxed{6} " * 5_000,
    "\\boxed{" + "\\frac{" * 250 + "}",
    "\\boxed{" + "2^" * 900 + "2}",
    "<answer>" * 20_000,
    "A and " * 20_000,
    "$1 " * 20_000,
    "*a " * 20_000,
    "1 000 " * 20_000,
    "x\n" * 20_000,
    "Answer: 1e999999999",
    "Answer: 9" + "9" * 1500 + "e999",
    "Answer: " + "9" * 6000,
]


LONG = 1_000_000
# Each of these signs may repeat where a rule seeks something that it then lacks.
REPEATED = (
    *(
        "1",
        "1,",
        " ",
        "{",
        "}",
        "\\",
        "\\boxed{",
        "\\boxed{}",
        "\\boxed{1},",
        "\\boxed ",
        "\\{",
        "\n",
    ),
    *(
        "#### ",
        "\\frac{1}{2}",
        "\\frac{",
        "\\sqrt{",
        "\\text{",
        "a\n",
        "the answer is ",
        "answer",
        "*",
    ),
    *(
        "$",
        "$$",
        "\\[",
        "\\(",
        "-",
        ".",
        "1.",
        "1/",
        "1e",
        "2^",
        "(",
        "(A) ",
        "A ",
        "A, ",
        "1 or ",
        "=",
    ),
    *(
        "x=1 ",
        "1 1/2 ",
        "5 km ",
        "word ",
        "`",
        "_",
        "|",
        "<",
        "<<",
        "<answer>",
        "</answer>",
        "[",
        "1'",
    ),
    *("\u00a0", '"', "Answer:\n", "\u7b54\u6848", "\u00bd", "\u00b2", "</think>", "option A is "),
)


@pytest.mark.parametrize("rule", ["number", "choice", "exact"])
@pytest.mark.parametrize("form", ["{}", "{} 7", "\\boxed{{{}}}", "The answer is {}"])
def test_a_plain_rule_reads_a_bounded_part_of_a_long_text(rule: str, form: str) -> None:
    for sign in REPEATED:
        text = form.format(sign * (LONG // len(sign)))
        started = time.process_time()
        PLAIN_RULES[rule](text, "7")
        PLAIN_RULES[rule]("It is 7.", text)
        assert time.process_time() - started < 2, sign  # 0.2 s at most on an idle machine


@pytest.mark.parametrize("sign", ["\n", "\n ", "\n\t", "\n- ", "> \n", " "])
def test_blank_lines_are_read_once(sign: str) -> None:
    started = time.process_time()
    plain(sign * (20_000 // len(sign)))
    assert time.process_time() - started < 1  # 0.04 s on a machine that does other work, too


@pytest.mark.parametrize("rule", ["number", "choice", "exact"])
def test_a_plain_rule_takes_little_memory_for_boxes_in_boxes(rule: str) -> None:
    text = "\\boxed{" * (LONG // 8) + "}" * (LONG // 8)
    tracemalloc.start()
    PLAIN_RULES[rule](text, "7")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 * LONG


@pytest.mark.parametrize("rule", ["number", "choice", "exact"])
def test_boxes_in_boxes_of_a_short_text_are_read_once(rule: str) -> None:
    text = "\\boxed{" * 5000 + "7" + "}" * 5000
    tracemalloc.start()
    PLAIN_RULES[rule](text, "7")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40 * len(text)


@pytest.mark.parametrize("rule", ["number", "choice", "exact"])
def test_a_plain_rule_ends_soon_on_any_text(rule: str) -> None:
    started = time.process_time()
    for text in HOSTILE:
        for reference in ("5", "B"):
            assert PLAIN_RULES[rule](text, reference).correct is not True
    assert time.process_time() - started < 60


@pytest.mark.parametrize(
    ("reference", "verdict"),
    [('["7", "8"]', True), ('["8", "9"]', False), ('["9", "seven"]', None), ("[7, 8]", None)],
)
def test_a_reference_may_name_several_right_answers(reference: str, verdict: bool | None) -> None:
    assert PLAIN_RULES["number"]("It is 7.", reference).correct is verdict


# An output, the reference and the verdict, by rule and kind. A pair whose verdict
# is null is one in which the two may be equal.
PAIRS: list[dict[str, Any]] = [
    orjson.loads(line)
    for line in Path(__file__).with_name("answer_pairs.jsonl").read_bytes().splitlines()
]
NUM_PAIRS = 1500


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
