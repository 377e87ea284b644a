"""The command `motab init`: writes a configuration from the URLs of two servers."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from motab.draft import Draft
from motab.found import KIND_NAMES, Side, amend, first_draft
from motab.options import KeyVariable, ModelName, Tokenizer, Wait
from proxy.config import parse_config
from proxy.core.types import Author
from proxy.errors import ConfigError, StartError
from proxy.probe.identify import Asked, Identity, identify
from proxy.probe.report import Check, PairReport, Report, UpstreamReport
from proxy.probe.run import probe
from proxy.remote_config import checked_url
from proxy.secrets import hide, keys_in_url, secrets_of_url, without_userinfo
from proxy.serving.logs import escaped
from proxy.serving.serve import run
from proxy.variables import VARIABLE, expanded
from synth_client.files.atomic import write_whole

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Parameters that no check of a probe depends on.
_OF_WINDOWS: Final = {"max_total_tokens"}
_ROLES: Final[tuple[Author, ...]] = ("student", "teacher")


def init_command(
    *,
    student_url: Annotated[str, typer.Argument(help="The student's server, such as http://h:1.")],
    teacher_url: Annotated[str, typer.Argument(help="The teacher's server.")],
    output: Annotated[Path, typer.Option(dir_okay=False, help="The new file.")] = Path(
        "motab.yaml"
    ),
    student_model: ModelName = None,
    teacher_model: ModelName = None,
    student_key_variable: KeyVariable = None,
    teacher_key_variable: KeyVariable = None,
    student_tokenizer: Tokenizer = None,
    teacher_tokenizer: Tokenizer = None,
    wait: Wait = 0.0,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Ask two servers what they are, probe them, and write a configuration of the pair."""
    _check_free(output, force=force)
    wishes: dict[Author, _Wish] = {
        "student": _Wish(
            "student", student_url, student_model, student_key_variable, student_tokenizer
        ),
        "teacher": _Wish(
            "teacher", teacher_url, teacher_model, teacher_key_variable, teacher_tokenizer
        ),
    }
    with Console(stderr=True).status("Asking the servers ..."):
        made = run(_made(wishes, output, wait))
    _check_free(output, force=force)
    write_whole(output, made.text.encode())
    made.show(output, Console(highlight=False, soft_wrap=True))
    if not made.pair.can:
        raise typer.Exit(1)


@dataclass(frozen=True, slots=True)
class _Wish:
    """The command's words on one of the servers."""

    role: Author
    url: str
    model: str | None
    key_variable: str | None
    tokenizer: str | None

    def root(self) -> str:
        """Return the server's root as the file shall have it. Raises `ConfigError`."""
        where = f"{self.role.upper()}_URL"
        url = self.url.strip().rstrip("/").removesuffix("/v1").rstrip("/")
        # What the file gets from a variable stands there by the variable's name.
        bare = VARIABLE.sub("", url)
        if any(secrets_of_url(bare)) or any(keys_in_url(bare)):
            hide((*secrets_of_url(bare), *keys_in_url(bare)))
            message = "seems to hold a key, which the file would show: put the key into an"
            raise ConfigError(f"{where} {message} environment variable, and write '${{NAME}}'")
        try:
            filled = checked_url(expanded(url, where))
            hide((*secrets_of_url(filled), *keys_in_url(filled)))
        except ValueError as error:
            raise ConfigError(f"{where} {error}") from error
        return url

    def asked(self) -> Asked:
        """Return the question to the server. Raises `ConfigError`."""
        where = f"--{self.role}-key-variable"
        name, key = self.key_variable, None
        if name is not None:
            if not _NAME.fullmatch(name):
                raise ConfigError(f"{where} is the name of an environment variable, not a key")
            key = expanded(f"${{{name}}}", where)
            hide((key,))
        return Asked(self.role, expanded(self.root(), where), key, self.model)


@dataclass(frozen=True, slots=True)
class _Made:
    """A configuration that was read back, and what its probe found."""

    text: str
    report: Report

    @property
    def pair(self) -> PairReport:
        (pair,) = self.report.models.values()
        return pair

    def show(self, output: Path, console: Console) -> None:
        """Say what was found, and what comes next."""
        for role in _ROLES:
            console.print(f"{role}: {_described(self.report.upstreams[role])}", markup=False)
        for note in self.pair.notes:
            console.print(f"note: {escaped(note)}", markup=False)
        console.print(f"Wrote {output}", markup=False)
        if self.pair.can:
            console.print(f"Next: motab doctor --config {output}", markup=False)
        for reason in self.pair.reasons:
            console.print(f"This pair cannot work yet: {escaped(reason)}", markup=False)


async def _made(wishes: Mapping[Author, _Wish], output: Path, wait_s: float) -> _Made:
    asked = {role: wish.asked() for role, wish in wishes.items()}
    found = {role: await identify(one, wait_s) for role, one in asked.items()}
    _check_different(asked, found)
    draft = first_draft(
        {
            role: Side(role, wish.root(), found[role], wish.key_variable, wish.tokenizer)
            for role, wish in wishes.items()
        }
    )
    report = await _probed(draft, output)
    before = draft.params.keys() - _OF_WINDOWS
    amend(draft, report)
    if not _can(report) and draft.params.keys() - _OF_WINDOWS != before:
        # Other parameters may be all that the pair lacks.
        report = await _probed(draft, output)
    _say_first(draft, report, output)
    text = draft.text()
    parse_config(text, output)
    return _Made(text, report)


async def _probed(draft: Draft, output: Path) -> Report:
    """Probe the draft. Raises `StartError` where a server cannot be used as it was found."""
    report = await probe(parse_config(draft.text(), output))
    for role in _ROLES:
        checks = report.upstreams[role].checks
        for check in (checks.reachable, checks.model):
            if check.result in {"no", "failed"}:
                raise StartError(f"the {role}'s server cannot be used: {_advised(role, check)}")
    return report


def _advised(role: Author, check: Check) -> str:
    advice = f" (--{role}-tokenizer names another)" if "tokenizer" in check.detail else ""
    return check.detail + advice


def _can(report: Report) -> bool:
    return all(pair.can for pair in report.models.values())


def _say_first(draft: Draft, report: Report, output: Path) -> None:
    """Put above everything what users of the file should do next."""
    (pair,) = report.models.values()
    draft.about = [f"Written by motab init. Next: motab doctor --config {output}"]
    draft.about += [f"This pair cannot work yet: {reason}" for reason in pair.reasons]
    draft.about += [f"Note: {note}" for note in pair.notes]
    draft.about.append(
        "Prices are open: motab synth and report take --price KIND=PRICE, per million tokens."
    )


def _check_different(asked: Mapping[Author, Asked], found: Mapping[Author, Identity]) -> None:
    places = {(asked[role].url, found[role].model) for role in _ROLES}
    if len(places) == 1:
        url, model = places.pop()
        raise ConfigError(
            f"student and teacher are the same model, {model} at {without_userinfo(url)}: give two"
            " servers, or --student-model and --teacher-model"
        )


def _described(found: UpstreamReport) -> str:
    window = found.limits.context_tokens
    known = "window not known" if window is None else f"window {window} tokens"
    scoring = [way for way, one in found.checks.scoring.items() if one.available.result == "ok"]
    scores = f", can score by {scoring[0]}" if scoring else ""
    name = KIND_NAMES[found.kind].removeprefix("A ")
    return escaped(f"{found.model} ({name}), {known}{scores}")


def _check_free(output: Path, *, force: bool) -> None:
    if output.exists() and not force:
        raise ConfigError(f"{output} is there already: choose another --output, or use --force")
