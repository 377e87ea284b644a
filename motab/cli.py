"""The command `motab`."""

import logging
import re
from importlib import import_module
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from typer.core import TyperGroup
from typer.main import get_command

from proxy import __version__
from proxy.errors import MotabError
from proxy.near_names import did_you_mean
from proxy.serving.logs import LogFormat, escaped, show_logs, shown_format
from synth_client.errors import ClientError

_COMMANDS: Final = {
    "init": "motab.init:init_command",
    "doctor": "motab.doctor:doctor_command",
    "serve": "motab.serve:serve_command",
    "probe": "motab.probe:probe_command",
    "demo": "motab.demo:demo_command",
    "synth": "synth_client.cli.synth:synth_command",
    "verify": "synth_client.cli.records:verify_command",
    "filter": "synth_client.cli.records:filter_command",
    "export": "synth_client.cli.records:export_command",
    "report": "synth_client.cli.report:report_command",
    "rescore": "synth_client.cli.report:rescore_command",
    "score": "synth_client.cli.score:score_command",
    "eval": "trainer.cli.evaluate:eval_command",
    "train": "trainer.cli.train:train_command",
    "compare": "trainer.cli.compare:compare_command",
    "reproduce": "trainer.cli.reproduce:reproduce_command",
}


_QUOTED: Final = re.compile(r"'([^']*)'")
_NO_CHOICE: Final = re.compile(r"'[^']*' is not one of '.*'")


class _Commands(TyperGroup):
    """Imports a command's module when the command is asked for, because all of them together take
    a second of every start.
    """

    def __init__(self, **settings: Any) -> None:  # noqa: ANN401 - as Typer passes them
        super().__init__(**settings)
        not_loaded: Any = dict.fromkeys(_COMMANDS)
        self.commands = not_loaded

    # Click's types, which some versions of Typer keep private.
    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ANN401
        if cmd_name in _COMMANDS and self.commands[cmd_name] is None:
            module, function = _COMMANDS[cmd_name].split(":")
            alone = typer.Typer(add_completion=False)
            alone.command(cmd_name)(getattr(import_module(module), function))
            self.commands[cmd_name] = get_command(alone)
        return super().get_command(ctx, cmd_name)

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401
        """Suggest the value that a misspelt one was meant to be, as Typer does for options."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            if wrong := _NO_CHOICE.search(error.message):
                value, *choices = _QUOTED.findall(wrong[0])
                error.message = error.message.rstrip(".") + did_you_mean(value, choices)
            raise


app = typer.Typer(
    cls=_Commands,
    help="Distil reasoning without exposure bias: MOTAB decoding in front of any LLM servers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
_log = logging.getLogger(__name__)
_errors = Console(stderr=True)


def main() -> None:
    """Run the command. Exit code 0, 1 failed, 2 usage."""
    try:
        app()
    except (MotabError, ClientError) as error:
        if shown_format() is LogFormat.JSON:
            _log.error("%s", error)
            raise SystemExit(1) from error
        # A server's words may be in it, which shall neither look like another line nor be obeyed.
        text = "\n  ".join(escaped(line) for line in str(error).splitlines())
        _errors.print(f"motab: {text}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise SystemExit(1) from error


def _version(wanted: bool) -> None:  # noqa: FBT001
    if wanted:
        typer.echo(f"motab {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    version: Annotated[  # noqa: ARG001
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Log everything, the embedded servers' output too.")
    ] = False,
) -> None:
    show_logs(_errors, logging.DEBUG if verbose else logging.INFO)
