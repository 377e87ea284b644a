"""Prints the report for people."""

from collections.abc import Iterator
from dataclasses import fields

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from proxy.probe.report import Check, PairReport, Report, UpstreamReport, no
from proxy.probe.scoring import NOT_OFFERED

_STYLES = {"ok": "green", "no": "yellow", "failed": "red", "not_applicable": "dim"}
_WORDS = {"not_applicable": "n/a"}
_LONGEST = 240
_LABELS = {
    "chat_template": "chat template",
    "stop_strings": "stop strings",
    "decode_logprobs": "log-probs written",
}
"""The labels of the checks that are not labelled by their own names."""
_WAY_LABELS = {
    "self_test": "  self-test",
    "top_k": "  top-k",
    "speed": "  speed",
    "prefix_cache": "  prefix cache",
}


def show(report: Report, console: Console) -> None:
    """Print a table for every upstream and one for the models."""
    for name, upstream in report.upstreams.items():
        console.print(_heading(name, upstream))
        table = _table("check", "result", "what was found")
        for label, check in _rows(upstream):
            style = _STYLES[check.result]
            word = Text(_WORDS.get(check.result, check.result), style)
            table.add_row(Text(label), word, _line(check.detail))
        console.print(table)
    console.print(Text("models", "bold"))
    table = _table("model", "result", "why")
    for name, model in report.models.items():
        word = Text("can", "green") if model.can else Text("cannot", "red")
        table.add_row(Text(name, overflow="fold"), word, _why(model))
    console.print(table)


def _table(first: str, second: str, third: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, expand=False, pad_edge=False)
    table.add_column(first, no_wrap=first == "check", max_width=30)
    table.add_column(second, no_wrap=True)
    table.add_column(third, overflow="fold")
    return table


def _heading(name: str, upstream: UpstreamReport) -> Text:
    at = "" if upstream.base_url is None else f" at {upstream.base_url}"
    limits = {
        "context": upstream.limits.context_tokens,
        "prompt": upstream.limits.input_tokens,
        "answer": upstream.limits.output_tokens,
    }
    known = [f"{what} {num:,} tokens" for what, num in limits.items() if num is not None]
    about = f"  {upstream.kind}{at}"
    if upstream.model is not None:
        about += f", {upstream.model} ({', '.join(known) or 'limits not known'})"
    return Text.assemble((name, "bold"), about)


def _rows(upstream: UpstreamReport) -> Iterator[tuple[str, Check]]:
    checks = upstream.checks
    for name in (field.name for field in fields(checks) if field.name != "scoring"):
        check: Check = getattr(checks, name)
        if upstream.model is None and check.result == "not_applicable":
            continue  # a scorer gives values and nothing else
        yield _LABELS.get(name, name), check
        if name in {"reachable", "model"} and check.result != "ok":
            return  # everything else is not applicable
    missing = []
    for rung, way in checks.scoring.items():
        if way.available.detail == NOT_OFFERED:
            missing.append(rung)
            continue
        yield rung, way.available
        if way.available.result == "ok":
            yield from ((label, getattr(way, field)) for field, label in _WAY_LABELS.items())
    if missing:
        yield "other scoring", no(f"{', '.join(missing)}: {NOT_OFFERED}")


def _why(model: PairReport) -> Text:
    lines = [_line(reason) for reason in model.reasons]
    if model.can:
        by = "" if model.scoring is None else f", scored by {model.scoring}"
        lines.append(Text(f"method {model.method}{by}"))
    lines += [Text("note: ", "yellow") + _line(note) for note in model.notes]
    return Text("\n").join(lines)


def _line(detail: str) -> Text:
    """Shorten to one paragraph, because a server's answer may be a whole page."""
    line = " ".join(detail.split())
    return Text(line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "\u2026")
