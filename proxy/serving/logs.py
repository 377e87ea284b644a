"""Sends the log to standard error, in a format for a terminal or for a file.

Ids, users, names of models and words of servers come from elsewhere: in a line they can neither
begin another line nor command a terminal, and no secret is shown.
"""

import logging
from typing import Any

from rich.console import Console
from rich.logging import RichHandler

from proxy.secrets import masked

_PACKAGES = ("motab", "proxy", "synth_client", "trainer", "trajectory_records")


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


def show_logs(console: Console, level: int, speaker: str = "") -> None:
    """Show our packages' logs from `level` on, and the libraries' warnings; each line begins with
    `speaker`.
    """
    if console.is_terminal:
        handler: logging.Handler = RichHandler(console=console, show_path=False)
        handler.setFormatter(SafeFormatter(f"{speaker}%(message)s"))
    else:  # a file, which has no width to wrap lines at
        handler = logging.StreamHandler()
        handler.setFormatter(SafeFormatter(f"%(asctime)s %(levelname)s {speaker}%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.captureWarnings(capture=True)
    for package in _PACKAGES:
        logging.getLogger(package).setLevel(level)
