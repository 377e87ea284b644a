"""Runs processes that end with this process, however it ends."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

from synth_client.files.atomic import output_errors
from trainer.errors import ServerFailed

START_TIMEOUT_S: Final = 600.0
"""The seconds that a server may take until it answers, where nothing else is said."""
_TAIL_LINES: Final = 20


def free_port() -> int:
    """Return a port that nothing listens at."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


@contextmanager
def server_process(
    command: Sequence[str],
    settings: Mapping[str, str],
    log: Path,
    ready_url: str,
    *,
    lock: int | None = None,
    timeout_s: float = START_TIMEOUT_S,
) -> Iterator[None]:
    """Run a server until the end of the block, which begins when `ready_url` answers 200."""
    with child_process(command, settings, log, lock=lock) as process:
        wait_until_ready([Starting(process, log, ready_url, timeout_s)])
        yield


@contextmanager
def child_process(
    command: Sequence[str], settings: Mapping[str, str], log: Path, *, lock: int | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a command until the end of the block, or of this process.

    `lock` is the descriptor of a lock that is held until the command has ended, too.
    """
    with output_errors(log):
        opened = log.open("wb")
    with (
        opened as file,
        subprocess.Popen(  # noqa: S603 - our own command line
            [sys.executable, str(Path(__file__).with_name("end_with_parent.py")), *command],
            stdout=file,
            stderr=file,
            stdin=subprocess.PIPE,
            env={**os.environ, **settings},
            # A separate group, because Ctrl-C is for us.
            start_new_session=True,
            pass_fds=() if lock is None else (lock,),
        ) as process,
    ):
        try:
            yield process
        finally:
            _stop(process)


@dataclass(frozen=True, slots=True)
class Starting:
    """A server that was started; it is up when the URL answers 200, within the time limit."""

    process: "subprocess.Popen[bytes]"
    log: Path
    ready_url: str
    timeout_s: float


def wait_until_ready(servers: Sequence[Starting]) -> None:
    """Return when all are up. Raises `ServerFailed` with the end of the log of one that is not."""
    began, waiting = time.monotonic(), list(servers)
    while waiting:
        for one in waiting:
            if one.process.poll() is not None:
                raise ServerFailed(
                    f"a server ended with code {one.process.returncode}: {tail_of(one.log)}"
                )
            if time.monotonic() > began + one.timeout_s:
                raise ServerFailed(
                    f"a server was not up after {one.timeout_s:g} s: {tail_of(one.log)}"
                )
        waiting = [one for one in waiting if not is_up(one.ready_url)]
        if waiting:
            time.sleep(0.25)


def is_up(ready_url: str) -> bool:
    """Return whether a URL answers 200."""
    try:
        return httpx.get(ready_url).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def tail_of(log: Path) -> str:
    """Return the end of a log, in words."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL_LINES:]
    return f"the end of {log} is\n" + "\n".join(lines)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    if process.stdin is not None:
        process.stdin.close()
    process.wait()
    try:
        os.killpg(process.pid, signal.SIGKILL)  # what it left behind
    except ProcessLookupError:
        return
