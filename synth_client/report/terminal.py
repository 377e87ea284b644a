"""Shows a trajectory in the terminal: who wrote what, and how the teacher judged each step."""

from collections.abc import Mapping
from typing import Final

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from proxy.core.types import Role
from trajectory_records.parts import Chosen
from trajectory_records.record import ROLE_LABELS, Record

ROLE_STYLES: Final[Mapping[Role, str]] = {
    "student": "green",
    "flawed": "red",
    "revise": "bold yellow",
    "teacher": "cyan",
}
_BREACH_STYLE = "bold red"
_BIFURCATION_STYLE = "bold yellow"

# Model output must not control the terminal: control characters become visible signs.
_VISIBLE: Final[dict[int, str]] = {
    **{code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"},
    0x7F: "\u2421",
    **dict.fromkeys(range(0x80, 0xA0), "\ufffd"),
}


def render_trajectory(record: Record, question: str) -> RenderableType:
    """Return the question, the output coloured by role, a table of the steps, and the verdict.

    For 80 columns or more; trailing blank lines of the output are not shown.
    """
    return Group(
        Panel(_literal(question), title=_literal(record.id), title_align="left"),
        _output(record),
        _step_table(record),
        _verdict_line(record),
    )


def legend() -> RenderableType:
    """Explain the colours and columns of `render_trajectory`."""
    roles = Text(" | ").join(Text(ROLE_LABELS[role], style) for role, style in ROLE_STYLES.items())
    columns = Text.assemble(
        "V value, eps boundary, H entropy (nats), td change of the value.\n",
        ("breach", _BREACH_STYLE),
        ": V below eps. ",
        ("t*", _BIFURCATION_STYLE),
        ": the teacher goes back to this step. Steps count from 0.",
        style="dim",
    )
    return Group(roles, columns)


def _output(record: Record) -> Text:
    output = Text()
    for piece in record.pieces():
        output.append_text(_literal(piece.text, ROLE_STYLES[piece.role]))
    output.rstrip()
    return output


def _step_table(record: Record) -> Table:
    table = Table(box=box.SIMPLE_HEAD, expand=True, pad_edge=False, padding=(0, 1, 0, 0))
    for header in ("step", "V", "eps", "H", "td"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("text", no_wrap=True, overflow="ellipsis", ratio=1)
    for index, step in enumerate(record.steps):
        table.add_row(
            Text(str(index)),
            _number(step.value),
            _number(step.boundary),
            _number(step.entropy),
            _number(step.td_error, signed=True),
            _mark(record, index),
            _snippet(record, index),
        )
    return table


def _snippet(record: Record, index: int) -> Text:
    words = (record.step_text(index) or "").split()
    if record.steps[index].start is None:
        words.insert(0, "(left out)")
    return _literal(" ".join(words), ROLE_STYLES[record.step_role(index)])


def _mark(record: Record, index: int) -> Text:
    verdict = record.step_verdict(index)
    styles = {"safe": "green", "unsafe": "red", "breach": _BREACH_STYLE, "unscored": "dim"}
    mark = Text(verdict, styles[verdict])
    if any(index == one.bifurcation for one in record.all_breaches):
        mark.append(" t*", _BIFURCATION_STYLE)
    return mark


def _number(number: float | None, *, signed: bool = False) -> Text:
    if number is None:
        return Text("-", "dim")
    return Text(f"{number:+.3f}" if signed else f"{number:.3f}")


def _verdict_line(record: Record) -> Text:
    line = Text()
    breaches = record.all_breaches
    num_rejected = sum(step.safe is False for step in record.steps)
    if not breaches and num_rejected:
        line.append(f"{num_rejected} of the student's steps rejected.", _BREACH_STYLE)
    elif not breaches:
        line.append("No breach.")
    for place, one in enumerate(breaches):
        line.append(" " if place else "")
        line.append(f"Breach at step {one.breach}", _BREACH_STYLE)
        line.append(", ")
        line.append(f"went back to step {one.bifurcation}", _BIFURCATION_STYLE)
        line.append(".")
    if record.chosen is not None:
        line.append(" ").append_text(_choice(record.chosen))
    if record.finish_reason == "length":
        line.append(" Cut at the token limit.")
    line.append(" ")
    return line.append_text(_answer(record))


def _choice(chosen: Chosen) -> Text:
    read = ["none" if answer is None else answer for answer in chosen.answers]
    for index in chosen.lost or ():
        read[index] = "lost"
    kept = f"Correction {chosen.index} (of 0 to {len(read) - 1}) kept, by the {chosen.by}"
    return _literal(" ".join(f"{kept}; answers: {', '.join(read)}.".split()))


def _answer(record: Record) -> Text:
    line = _literal("No answer" if record.predicted is None else f"Answer {record.predicted}")
    if record.correct is None:
        return line.append(": unknown.")
    if record.correct:
        return line.append(": ").append("right", "bold green").append(".")
    line.append(": ").append("wrong", _BREACH_STYLE)
    if record.answer is not None:
        line.append(", expected ").append_text(_literal(record.answer))
    return line.append(".")


def _literal(text: str, style: str = "") -> Text:
    """`text` taken literally: a Text does not interpret markup."""
    return Text(text.translate(_VISIBLE), style)
