"""Tests that nothing from elsewhere can forge a line of the log or command a terminal."""

import io
import json
import logging
import sys
from collections.abc import Iterator
from datetime import datetime

import pytest
from rich.console import Console

from proxy.log_context import REQUEST_ID
from proxy.secrets import hide
from proxy.serving.logs import JsonFormatter, SafeFormatter, escaped, show_logs

HOSTILE = {
    "line feed": "\n2026-01-01 INFO forged",
    "carriage return": "\rforged",
    "ANSI": "\x1b[2J\x1b]0;title\x07",
    "C1": "\x9b31m",
    "backspace": "\b\b\b",
    "null": "\x00",
    "next line": "\x85forged",
    "line separator": "\u2028forged",
    "paragraph separator": "\u2029forged",
    "bidi": "\u202egnol\u2066\u2069",
    "zero width": "\u200b\ufeff",
    "tag": "\U000e0041",
}
hostile = pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)


@pytest.fixture(params=["file", "terminal"])
def written(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[io.StringIO]:
    """The stream to which the log goes once it is shown."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):  # as without uvicorn's own format
        monkeypatch.setattr(logging.getLogger(name), "handlers", [])
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    console = Console(
        file=stream, force_terminal=request.param == "terminal", color_system=None, width=4000
    )
    show_logs(console, logging.INFO, "worker 1: ")
    yield stream
    logging.captureWarnings(capture=False)


@hostile
@pytest.mark.parametrize("name", ["proxy.api.errors", "uvicorn.error", "uvicorn.access", "asyncio"])
def test_a_message_is_one_line_of_printed_characters(
    written: io.StringIO, name: str, text: str
) -> None:
    logging.getLogger(name).error("user '%s' failed", f"a{text}b")
    (line,) = written.getvalue().rstrip("\n").split("\n")
    assert line.isprintable()
    assert "worker 1: user 'a" in line
    assert "b' failed" in line


@hostile
def test_the_lines_of_a_traceback_are_marked_as_such(written: io.StringIO, text: str) -> None:
    logging.getLogger("proxy").error("unexpected error", exc_info=ValueError(text))
    first, *others = written.getvalue().rstrip("\n").split("\n")
    assert "worker 1: unexpected error" in first
    assert "| ValueError: " in written.getvalue()
    for line in others:
        assert line.lstrip(" ").startswith("| ")
        assert line.isprintable()


@hostile
def test_a_line_for_programs_is_ascii_and_says_exactly_what_was_said(text: str) -> None:
    record = logging.LogRecord("proxy", logging.ERROR, "", 0, "said %s", (text,), None)
    record.fields = {"path": text, "status": 200}
    line = JsonFormatter("worker 2: ").format(record)
    assert line.isascii()
    assert line.isprintable()
    said = json.loads(line)
    assert said.pop("time").endswith("Z")
    assert said == {
        "level": "ERROR",
        "logger": "proxy",
        "message": f"said {text}",
        "process": "worker 2",
        "path": text,
        "status": 200,
    }


def test_a_line_for_programs_has_the_traceback_and_the_request() -> None:
    error = ValueError("a\nb")
    exc_info = (ValueError, error, None)
    record = logging.LogRecord("proxy", logging.ERROR, "", 0, "m", (), exc_info)
    token = REQUEST_ID.set("req-1")
    try:
        line = JsonFormatter().format(record)
    finally:
        REQUEST_ID.reset(token)
    assert "\n" not in line
    said = json.loads(line)
    assert said["traceback"].endswith("ValueError: a\nb")
    assert said["request_id"] == "req-1"
    assert datetime.fromisoformat(said["time"]).timestamp() == pytest.approx(record.created, abs=1)


@pytest.mark.parametrize("where", ["message", "path", "traceback"])
def test_no_secret_is_shown_to_programs(where: str) -> None:
    secret = 'sk-canary"of\nthe-log'
    hide([secret])
    error = ValueError(secret) if where == "traceback" else None
    exc_info = None if error is None else (ValueError, error, None)
    said = secret if where == "message" else "m"
    record = logging.LogRecord("proxy", logging.INFO, "", 0, "%s", (said,), exc_info)
    record.fields = {"path": secret if where == "path" else "/"}
    line = JsonFormatter().format(record)
    assert "canary" not in line
    assert "***" in json.loads(line)[where]


def test_what_people_write_is_shown_as_it_is() -> None:
    for text in ("Größe 数学 🎉 é", "C:\\n", "a b", "«x»"):
        assert escaped(text) == text


def test_half_a_surrogate_pair_which_no_stream_could_write_is_escaped() -> None:
    assert escaped("a\ud800b") == "a\\ud800b"


def test_no_secret_is_shown() -> None:
    hide(["sk-canary-of-the-log"])
    record = logging.LogRecord("proxy", logging.INFO, "", 0, "%s", ("sk-canary-of-the-log",), None)
    assert SafeFormatter().format(record) == "***"
