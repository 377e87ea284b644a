"""Defines how training fails. Like the client's errors, these end the command with one line."""

from synth_client.errors import ClientError


class RecipeError(ClientError):
    """The recipe cannot be trained; the message names the key and what would be right."""


class TrainerMissing(ClientError):
    """The training environment does not exist, or lacks a package that the recipe needs."""


class HarnessMissing(ClientError):
    """The environment with EvalScope does not exist, or is not usable."""


class RunExists(ClientError):
    """The output folder holds something else, or another process is training there."""


class TrainingFailed(ClientError):
    """The trainer ended with an error. The command ends with `exit_code`, too."""

    def __init__(self, message: str, *, exit_code: int, tail: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.tail = tail


class ServerFailed(ClientError):
    """A server that a reproduction runs did not start, or did not answer."""


class GateFailed(ClientError):
    """A pair of models and a task cannot show a difference between methods."""


class PlanError(ClientError):
    """The plan of a comparison cannot be carried out; the message names the key."""
