"""Tests that nothing from elsewhere can forge a line of the log or command a terminal."""

import io
import logging
import sys
from collections.abc import Iterator

import pytest
from rich.console import Console

from proxy.secrets import hide
from proxy.serving.logs import SafeFormatter, escaped, show_logs

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


def test_what_people_write_is_shown_as_it_is() -> None:
    for text in ("Größe 数学 🎉 é", "C:\\n", "a b", "«x»"):
        assert escaped(text) == text


def test_half_a_surrogate_pair_which_no_stream_could_write_is_escaped() -> None:
    assert escaped("a\ud800b") == "a\\ud800b"


def test_no_secret_is_shown() -> None:
    hide(["sk-canary-of-the-log"])
    record = logging.LogRecord("proxy", logging.INFO, "", 0, "%s", ("sk-canary-of-the-log",), None)
    assert SafeFormatter().format(record) == "***"
