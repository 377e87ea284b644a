"""Runs a command that ends when its parent process is gone: `end_with_parent.py COMMAND ...`.

Standard input is a pipe that nobody writes to: it ends when the other side ends, even by SIGKILL.
The guard leads a process group, and ends it as a whole.
"""

import os
import signal
import subprocess
import sys
import threading
from typing import Final

_PATIENCE_S: Final = 20


def main() -> int:
    """Run the command and return its exit code."""
    # A handler, because a signal that is ignored here would be ignored by the command, too.
    signal.signal(signal.SIGTERM, lambda *_: None)
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)  # noqa: S603 - as asked
    threading.Thread(target=_end_with_other_side, args=(child,), daemon=True).start()
    return child.wait()


def _end_with_other_side(child: "subprocess.Popen[bytes]") -> None:
    os.read(sys.stdin.fileno(), 1)  # not buffered: a buffer's lock would hold up the exit
    os.killpg(0, signal.SIGTERM)
    try:
        child.wait(_PATIENCE_S)
    except subprocess.TimeoutExpired:
        os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    raise SystemExit(main())
