"""Defines every error that ends a run; the command shows its message and exits with 1.

The client knows the proxy only over HTTP, so these errors are separate from the proxy's.
"""

from proxy.secrets import masked


class ClientError(Exception):
    """Root of the tree. Work done before the error is on disk; the same command continues it.

    The message hides the keys that were sent, which a server may quote.
    """

    def __init__(self, message: str) -> None:
        super().__init__(masked(message))


class InputError(ClientError):
    """The input cannot be read; the message names the file and, if there is one, the line."""


class OutputError(ClientError):
    """The journal or the final files cannot be written or read."""


class RunMismatch(ClientError):
    """The journal next to the output is another run's, or in use by another process."""


class RunAborted(ClientError):
    """The server will answer no question of this run, so no more are asked."""


class ClusterError(ClientError):
    """Ray is not installed, cannot be reached, or has failed."""


class Interrupted(ClientError):
    """A signal ended the run before everything was done."""


def first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first error in a group and its nested groups: the cause of the others."""
    first = group.exceptions[0]
    return first_of(first) if isinstance(first, BaseExceptionGroup) else first
