"""Sends the log to standard error, in a format for a terminal, for a file, or for programs.

Ids, users, names of models and words of servers come from elsewhere: in a line they can neither
begin another line nor command a terminal, and no secret is shown.
"""

import json
import logging
import sys
import threading
from datetime import UTC, datetime
from enum import StrEnum
from types import TracebackType
from typing import Any, Final

from rich.console import Console
from rich.logging import RichHandler

from proxy.log_context import ACCESS_LOG, REQUEST_ID
from proxy.secrets import masked

_PACKAGES = ("motab", "proxy", "synth_client", "trainer", "trajectory_records")
_DELETE: Final = "\x7f"
_log = logging.getLogger(__name__)


class LogFormat(StrEnum):
    """The form of the log's lines."""

    TEXT = "text"
    JSON = "json"


def escaped(text: str) -> str:
    """Return `text` with escapes in place of everything that is not printed as a character."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class SafeFormatter(logging.Formatter):
    """Formats a record as one line; lines of a traceback follow it, each after a bar."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return the line. What the format adds to the message is ours."""
        return escaped(masked(super().formatMessage(record)))

    def formatException(self, ei: Any) -> str:  # noqa: ANN401, N802 - as logging's own
        """Return the traceback; its last line quotes an error, which may hold anything."""
        return _barred(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802 - logging's name
        return _barred(super().formatStack(stack_info))


def _barred(lines: str) -> str:
    return "\n".join(f"| {escaped(line)}" for line in masked(lines).split("\n"))


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object in ASCII, so that the line survives any encoding."""

    def __init__(self, speaker: str = "") -> None:
        super().__init__()
        self._process = speaker.removesuffix(": ")

    def format(self, record: logging.LogRecord) -> str:
        """Return the line. Fields that the record has none of are left out."""
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        found: dict[str, object] = {
            "time": when.replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "process": self._process,
            "request_id": REQUEST_ID.get(),
            **getattr(record, "fields", {}),
            "traceback": self.formatException(record.exc_info) if record.exc_info else "",
            "stack": record.stack_info or "",
        }
        shown = {name: _masked(value) for name, value in found.items() if value != ""}
        return json.dumps(shown).replace(_DELETE, "\\u007f")


def _masked(value: object) -> object:
    return masked(value) if isinstance(value, str) else value


def show_logs(
    console: Console, level: int, speaker: str = "", log_format: LogFormat = LogFormat.TEXT
) -> None:
    """Show our packages' logs from `level` on, and the libraries' warnings; each line names
    `speaker`. Requests are logged in the format for programs alone.
    """
    handler: logging.Handler = logging.StreamHandler()
    if log_format is LogFormat.JSON:
        handler.setFormatter(JsonFormatter(speaker))
        sys.excepthook = _log_exception
        threading.excepthook = _log_exception_of_thread
    elif console.is_terminal:
        handler = RichHandler(console=console, show_path=False)
        handler.setFormatter(SafeFormatter(f"{speaker}%(message)s"))
    else:  # a file, which has no width to wrap lines at
        handler.setFormatter(SafeFormatter(f"%(asctime)s %(levelname)s {speaker}%(message)s"))
    is_json = log_format is LogFormat.JSON
    # The command shows its log as text before it has read which format is wanted.
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=is_json)
    logging.captureWarnings(capture=True)
    for package in _PACKAGES:
        logging.getLogger(package).setLevel(level)
    logging.getLogger(ACCESS_LOG).setLevel(logging.INFO if is_json else logging.WARNING)


def shown_format() -> LogFormat:
    """Return the format in which the log is shown now."""
    formatters = (handler.formatter for handler in logging.getLogger().handlers)
    is_json = any(isinstance(formatter, JsonFormatter) for formatter in formatters)
    return LogFormat.JSON if is_json else LogFormat.TEXT


def _log_exception(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    _log.critical("the process ends by an unexpected error", exc_info=(kind, error, trace))


def _log_exception_of_thread(args: threading.ExceptHookArgs) -> None:
    _log.critical("a thread ends by an unexpected error", exc_info=args.exc_value)
