"""Every way in which a run of the client fails; the command says the message and exits with 1.

The client knows the proxy over HTTP only, so these stand apart from the proxy's own tree.
"""


class ClientError(Exception):
    """Root of the tree. What was done before it is on disk, and the same command goes on."""


class InputError(ClientError):
    """The input cannot be read; the message names the file and, where there is one, the line."""


class OutputError(ClientError):
    """The journal or the final files cannot be written or read."""


class RunMismatch(ClientError):
    """The journal beside the output is another run's, or in use by another process."""


class RunAborted(ClientError):
    """The server will answer no question of this run, so none is asked any more."""


class ClusterError(ClientError):
    """Ray is not there, cannot be reached, or has failed."""


class Interrupted(ClientError):
    """A signal ended the run before everything was done."""


def first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error of a group and of the groups in it: the cause of the others."""
    first = group.exceptions[0]
    return first_of(first) if isinstance(first, BaseExceptionGroup) else first
