"""Run a command that ends when whoever started it is gone: `end_with_parent.py COMMAND ...`.

Standard input is a pipe that nothing is written to: its end is the end of the other side, even by
SIGKILL. The guard leads a process group, and ends it as a whole.
"""

import os
import signal
import subprocess
import sys
import threading
from typing import Final

_PATIENCE_S: Final = 20


def main() -> int:
    """The command's exit code."""
    # A handler, since a signal that is ignored would be ignored by the command, too.
    signal.signal(signal.SIGTERM, lambda *_: None)
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)  # noqa: S603 - as told
    threading.Thread(target=_end_with_other_side, args=(child,), daemon=True).start()
    return child.wait()


def _end_with_other_side(child: "subprocess.Popen[bytes]") -> None:
    os.read(sys.stdin.fileno(), 1)  # not by a buffer, whose lock would hold up the exit
    os.killpg(0, signal.SIGTERM)
    try:
        child.wait(_PATIENCE_S)
    except subprocess.TimeoutExpired:
        os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    raise SystemExit(main())
