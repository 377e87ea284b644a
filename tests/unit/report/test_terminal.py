from io import StringIO
from typing import Any

import pytest
from rich.console import Console, RenderableType
from rich.style import Style

from synth_client.report.terminal import legend, render_trajectory
from tests.support.records import (
    CORRECTION,
    FLAWED,
    SAFE,
    breached,
    left_out,
    record_of,
    spans_of,
    steps_of,
    unbroken,
)


def console() -> Console:
    return Console(
        width=80,
        record=True,
        file=StringIO(),
        force_terminal=True,
        color_system="truecolor",
        legacy_windows=False,
        _environ={},
    )


def lines_of(shown: RenderableType) -> list[str]:
    recorder = console()
    recorder.print(shown)
    return recorder.export_text().splitlines()


def text_of(fields: dict[str, Any], question: str = "How many?") -> str:
    return "\n".join(lines_of(render_trajectory(record_of(fields), question)))


def style_of(shown: RenderableType, text: str) -> Style:
    """The style of the first stretch that holds `text`."""
    recorder = console()
    for segment in recorder.render(shown):
        if text in segment.text:
            assert segment.style is not None
            return segment.style
    raise AssertionError(f"{text!r} is not shown")


def row_of(fields: dict[str, Any], index: int) -> list[str]:
    """The words of the table's row of step `index`."""
    rows = text_of(fields).splitlines()
    header = next(number for number, row in enumerate(rows) if row.split()[:2] == ["step", "V"])
    return rows[header + 2 + index].split()


@pytest.mark.parametrize(
    ("text", "style"),
    [
        (SAFE[0].strip(), "green"),
        (SAFE[1].strip(), "green"),
        (FLAWED[0].strip(), "red"),
        (FLAWED[1].strip(), "red"),
        ("However,", "bold yellow"),
        ("The answer is 36", "cyan"),
    ],
)
def test_each_role_of_the_output_has_its_colour(text: str, style: str) -> None:
    record = record_of(breached())
    assert style_of(render_trajectory(record, "How many?"), text) == Style.parse(style)


def test_question_and_output_are_shown_with_their_brackets() -> None:
    shown = text_of(breached(), "Is [bold]12[/bold] one of [a, b]?")
    assert "Is [bold]12[/bold] one of [a, b]?" in shown
    for text in (*SAFE, *FLAWED, "However,", *CORRECTION.split("\n\n")):
        assert text.strip() in shown


def test_text_that_looks_like_broken_markup_is_shown_as_it_is() -> None:
    text = "[/nothing] [red]x[/red] :smile: \\[a] [link=file:///x]y[/link]"
    fields = unbroken(
        id="[/id]",
        output=text,
        spans=spans_of([("student", text)]),
        steps=steps_of([text], [0.9]),
        predicted="[/3]",
        answer="[/4]",
    )
    shown = text_of(fields, "[/question]")
    for literal in (text, "[/id]", "[/question]", "Answer [/3]: wrong, expected [/4]."):
        assert literal in shown


def test_control_characters_of_a_model_do_not_reach_the_terminal() -> None:
    text = "a\x1b[2Jb\x07\r\x9b5m\tc\x7f"
    fields = unbroken(output=text, spans=spans_of([("student", text)]), steps=[])
    recorder = console()
    recorder.print(render_trajectory(record_of(fields), "q\x1b]0;x\x07"))
    exported = recorder.export_text()
    assert not set("\x1b\x07\r\x9b\x7f") & set(exported)
    assert "a␛[2Jb␇␍\ufffd5m" in exported


def test_no_heap_of_blank_lines_follows_the_output() -> None:
    text = "Done.\n\n\n\n"
    fields = unbroken(output=text, spans=spans_of([("student", text)]), steps=[])
    lines = lines_of(render_trajectory(record_of(fields), "How many?"))
    assert lines[4].strip() == ""
    assert lines[5].split()[0] == "step"


def test_the_table_gives_the_numbers_of_each_step() -> None:
    assert row_of(breached(), 0)[:6] == ["0", "0.810", "0.121", "0.500", "-", "safe"]
    assert row_of(breached(), 1)[:6] == ["1", "0.740", "0.121", "0.500", "-0.070", "safe"]


def test_the_table_marks_breach_and_bifurcation() -> None:
    assert row_of(breached(), 2)[5:9] == ["safe", "t*", "So", "he"]
    assert row_of(breached(), 3)[5:8] == ["breach", "That", "makes"]


def test_a_breach_at_the_first_step_carries_both_marks() -> None:
    fields = breached()
    fields |= {"breach": 0, "bifurcation": 0, "steps": steps_of(SAFE[:1], [0.04])}
    assert row_of(fields, 0)[5:7] == ["breach", "t*"]


def test_a_step_left_out_of_the_output_is_shown_in_the_table_only() -> None:
    shown = text_of(left_out())
    assert shown.count("That makes 15.") == 1
    assert row_of(left_out(), 3)[5:10] == ["breach", "(left", "out)", "That", "makes"]


def test_a_step_without_a_score_shows_no_number() -> None:
    fields = unbroken(steps=steps_of(SAFE, [None, None]))
    assert row_of(fields, 1)[:6] == ["1", "-", "-", "-", "-", "unscored"]


@pytest.mark.parametrize(
    ("fields", "verdict"),
    [
        (breached(), "Breach at step 3, went back to step 2. Answer 36: right."),
        (unbroken(), "No breach. Answer 3: wrong, expected 36."),
        (unbroken(answer=None, correct=None), "No breach. Answer 3: unknown."),
        (
            unbroken(
                method="skd",
                steps=[
                    {**unbroken()["steps"][0], "start": None, "end": None, "safe": False},
                    *unbroken()["steps"],
                ],
            ),
            "1 of the student's steps rejected. Answer 3: wrong, expected 36.",
        ),
        (unbroken(predicted=None), "No breach. No answer: wrong, expected 36."),
        (
            unbroken(finish_reason="length"),
            "No breach. Cut at the token limit. Answer 3: wrong, expected 36.",
        ),
    ],
)
def test_the_last_line_says_how_it_went(fields: dict[str, Any], verdict: str) -> None:
    assert text_of(fields).splitlines()[-1].strip() == verdict


def test_nothing_is_wider_than_80_columns_and_no_word_of_the_output_is_lost() -> None:
    words = [f"word{number}" for number in range(60)]
    text = " ".join([*words, "=" * 200])
    fields = unbroken(
        output=text, spans=spans_of([("student", text)]), steps=steps_of([text], [0.9])
    )
    lines = lines_of(render_trajectory(record_of(fields), text))
    assert max(map(len, lines)) <= 80
    assert sum(line.count("=") for line in lines) == 400
    for word in words:
        assert sum(word in line.split() for line in lines) >= 2


def test_a_long_step_takes_one_row_of_the_table() -> None:
    long = "word " * 60
    text = long + SAFE[1]
    fields = unbroken(
        output=text, spans=spans_of([("student", text)]), steps=steps_of([long, SAFE[1]], [0.9] * 2)
    )
    assert row_of(fields, 0)[-1].endswith("…")
    assert row_of(fields, 1)[0] == "1"


def test_the_legend_shows_each_role_in_its_colour_and_fits_80_columns() -> None:
    assert style_of(legend(), "student, safe") == Style.parse("green")
    assert style_of(legend(), "student, flawed") == Style.parse("red")
    assert style_of(legend(), "revise token") == Style.parse("bold yellow")
    assert style_of(legend(), "teacher") == Style.parse("cyan")
    assert len(lines_of(legend())) == 3


def test_the_verdict_says_which_correction_was_kept_and_every_answer() -> None:
    answers = ["5", None, "[bold]7\x1b[2J", None]
    chosen = {"index": 2, "by": "majority", "answers": answers, "lost": [1]}
    shown = " ".join(text_of(breached() | {"chosen": chosen}).split())
    said = "Correction 2 (of 0 to 3) kept, by the majority; answers: 5, lost, "
    assert f"{said}[bold]7\u241b[2J, none." in shown
    assert "Correction" not in text_of(breached())
