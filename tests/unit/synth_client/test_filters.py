from collections.abc import Sequence
from typing import Any

import pytest

from synth_client.errors import InputError
from synth_client.training_data.filters import Filters, Kept
from tests.support.records import (
    CORRECTION,
    FLAWED,
    SAFE,
    breached,
    record_of,
    several,
    spans_of,
    steps_of,
    unbroken,
)
from trajectory_records.record import Record

# The first has a breach, is right and long; the second has none, is wrong and short.
BREACHED, UNBROKEN = record_of(breached()), record_of(unbroken())


def sift(records: Sequence[Record], *filters: str) -> tuple[list[int], dict[str, int]]:
    """The indices of the records that pass, and how many each filter dropped."""
    kept = Kept()
    split = list(Filters(filters).split(lambda: iter(records), kept))
    assert [record for record, _ in split] == list(records)
    passed = [index for index, (_, passes) in enumerate(split) if passes]
    assert kept.num_kept == len(passed)
    assert kept.num_dropped == len(records) - len(passed)
    return passed, dict(kept.dropped)


LENGTH = len(BREACHED.output)
FLAWED_SHARE = len("".join(FLAWED)) / LENGTH


@pytest.mark.parametrize(
    ("text", "passed"),
    [
        ("correct", [0]),
        ("breach", [0]),
        ("no-breach", [1]),
        ("finish=stop", [0, 1]),
        ("finish=length", []),
        (f"chars>={LENGTH}", [0]),
        (f"chars>={LENGTH + 1}", []),
        (f"chars<={len(UNBROKEN.output)}", [1]),
        ("tokens<=60", [0, 1]),
        ("tokens<=59", []),
        ("bifurcation>=2", [0]),
        ("bifurcation<=1", []),
        ("depth<=1", [0]),
        ("depth>=2", []),
        ("value>=0.7", [1]),
        ("student>=1", [1]),
        (f"flawed<={FLAWED_SHARE + 1e-6:.6f}", [0, 1]),
        (f"flawed<={FLAWED_SHARE - 1e-4:.6f}", [1]),
        (f"teacher>={len(CORRECTION) / LENGTH - 1e-4:.6f}", [0]),
        (f"teacher>={len(CORRECTION) / LENGTH + 1e-4:.6f}", []),
    ],
)
def test_a_filter_lets_through_what_it_says(text: str, passed: list[int]) -> None:
    assert sift([BREACHED, UNBROKEN], text)[0] == passed


@pytest.mark.parametrize(
    ("of", "text", "is_kept"),
    [
        ("no-media-words", "In SVG it is <image>.", False),
        ("no-media-words", "a <video>b", False),
        ("no-media-words", "<audio>", False),
        ("no-media-words", "<img>, <Image>, <images>, image>, < image >", True),
        ("no-control-words", "It ends with <|im_end|>.", False),
        ("no-control-words", "<|start_header_id|>user", False),
        ("no-control-words", "a<|endoftext|>b", False),
        ("no-control-words", "<\uff5cUser\uff5c>", False),
        ("no-control-words", "<\uff5cend\u2581of\u2581sentence\uff5c>", False),
        ("no-control-words", "[INST] Hello [/INST]", False),
        ("no-control-words", "</s>", False),
        ("no-control-words", "<<SYS>>", False),
        ("no-control-words", "<start_of_turn>model", False),
        ("no-control-words", "<eos>", False),
        ("no-control-words", "<think>\n</think> <tool_call> if a <|b and c|> d, <S>, [inst]", True),
        ("no-control-words", "f <| g x |> h, <| im_end |>, <span>, <strong>, |im_end|", True),
    ],
)
def test_words_that_a_trainer_misreads_are_found_in_every_text(
    of: str, text: str, is_kept: bool
) -> None:
    spans = [{"role": "student", "start": 0, "end": len(text)}]
    said = record_of(unbroken(output=text, spans=spans, steps=[]))
    asked = record_of(unbroken(messages=[{"role": "user", "content": text}]))
    told = record_of(
        unbroken(messages=[{"role": "system", "content": text}, {"role": "user", "content": "?"}])
    )
    passed, dropped = sift([said, asked, told, UNBROKEN], of)
    assert passed == ([0, 1, 2, 3] if is_kept else [3])
    assert dropped == {of: 0 if is_kept else 3}


def test_an_answer_that_nobody_judged_is_not_correct() -> None:
    assert sift([record_of(breached() | {"correct": None})], "correct") == ([], {"correct": 1})


def test_a_record_with_any_flag_is_not_sound() -> None:
    flagged = [record_of(breached() | {"quality": [flag]}) for flag in ("repeated_step", "new")]
    assert sift([BREACHED, *flagged, UNBROKEN], "sound") == ([0, 3], {"sound": 2})


def test_the_first_filter_that_drops_a_record_is_the_one_that_counts() -> None:
    records = [BREACHED, UNBROKEN, record_of(unbroken(finish_reason="length"))]
    counts = sift(records, "finish=stop", "correct", "breach")
    assert counts == ([0], {"finish=stop": 1, "correct": 1, "breach": 0})


def test_without_filters_everything_passes() -> None:
    assert sift([BREACHED, UNBROKEN]) == ([0, 1], {})


def answering(question: str, text: str, value: float, **changes: Any) -> Record:
    steps = steps_of((*SAFE, text), (0.5, 0.5, value))
    output = "".join(SAFE) + text
    return record_of(
        unbroken(
            messages=[{"role": "user", "content": question}],
            output=output,
            spans=spans_of([("student", output)]),
            steps=steps,
            **changes,
        )
    )


SAMPLES = [
    answering("a", "longest of all", 0.9, correct=False),
    answering("a", "the longer", 0.6, correct=True),
    answering("b", "b", 0.5, correct=True),
    answering("a", "short", 0.5, correct=True),
    answering("a", "long", 0.7, correct=True),
    answering("a", "same", 0.7, correct=True),
]


@pytest.mark.parametrize(
    ("filters", "passed"),
    [
        (["unique=first"], [0, 2]),
        (["unique=shortest"], [2, 4]),
        (["unique=best"], [0, 2]),
        (["correct", "unique=first"], [1, 2]),
        (["correct", "unique=best"], [2, 4]),
        (["unique=best", "correct"], [2]),
    ],
)
def test_one_record_a_question_is_kept_of_those_that_came_so_far(
    filters: list[str], passed: list[int]
) -> None:
    assert sift(SAMPLES, *filters)[0] == passed


def test_a_dropped_duplicate_is_counted_for_unique() -> None:
    assert sift(SAMPLES, "correct", "unique=best")[1] == {"correct": 1, "unique=best": 3}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "right",
        "tokens",
        "tokens<8",
        "tokens<=-1",
        "tokens<=x",
        "unique",
        "unique=longest",
        "finish=error",
        "chars<=1e3",
        "correct=no",
        "unsafe<=3",
    ],
)
def test_what_is_no_filter_is_refused_with_those_there_are(text: str) -> None:
    with pytest.raises(InputError) as caught:
        Filters([text])
    assert str(caught.value) == (
        f"--filter {text}: no such filter; known filters are correct, breach, no-breach,"
        " sound, no-media-words, whole-answers, no-control-words,"
        " finish=stop|length|content_filter, unique=first|shortest|best, chars<=N, tokens<=N,"
        " value<=N, breaches<=N, bifurcation<=N, depth<=N, student<=N, flawed<=N, teacher<=N"
        " (or >=)"
    )


def test_two_kinds_of_unique_are_refused_and_a_repeat_is_not() -> None:
    with pytest.raises(InputError, match="given twice"):
        Filters(["unique=first", "unique=best"])
    assert Filters(["correct", "unique=first", "correct"]).names == ("correct", "unique=first")


@pytest.mark.parametrize(
    ("text", "passed"),
    [
        ("breach", [1, 2, 3]),
        ("no-breach", [0]),
        ("breaches>=2", [2, 3]),
        ("breaches<=0", [0]),
        ("breaches<=2", [0, 1, 2]),
        ("bifurcation<=2", [1, 2, 3]),  # of the first breach
        ("depth>=2", [3]),  # the deepest
        ("depth<=1", [1, 2]),
        ("sound", [0, 1, 2, 3]),
    ],
)
def test_filters_know_several_breaches(text: str, passed: list[int]) -> None:
    rounds = ((2, 2), (0, 1), (1, 3))
    records = [record_of(several(*rounds[:num], tail=1)) for num in range(4)]
    assert sift(records, text)[0] == passed
