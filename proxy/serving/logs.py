"""Sends the log to standard error, in a format for a terminal or for a file."""

import logging

from rich.console import Console
from rich.logging import RichHandler

_PACKAGES = ("motab", "proxy", "synth_client", "trainer", "trajectory_records")


def show_logs(console: Console, level: int, speaker: str = "") -> None:
    """Show our packages' logs from `level` on, and the libraries' warnings; each line begins with
    `speaker`.
    """
    if console.is_terminal:
        handler: logging.Handler = RichHandler(console=console, show_path=False)
        logging.basicConfig(
            level=logging.WARNING, format=f"{speaker}%(message)s", handlers=[handler]
        )
    else:  # a file, which has no width to wrap lines at
        line = f"%(asctime)s %(levelname)s {speaker}%(message)s"
        logging.basicConfig(level=logging.WARNING, format=line)
    for package in _PACKAGES:
        logging.getLogger(package).setLevel(level)
