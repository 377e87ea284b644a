"""The command `motab doctor`: probes a configuration, tries it, and says what to set."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Final

import orjson
import typer
from rich.console import Console

from motab.findings import Finding, of_probe, of_rate, of_settings, of_trial, wants_pilot
from motab.options import ConfigFile, Wait
from motab.trial import NUM_QUESTIONS, Say, Trial, trial_questions, trials
from proxy import __version__
from proxy.config import Config, RemoteUpstream, load_config
from proxy.errors import ConfigError
from proxy.near_names import did_you_mean
from proxy.probe.identify import ServerSettings, settings_of
from proxy.probe.report import Report
from proxy.probe.run import probe
from proxy.serving.logs import escaped
from proxy.serving.serve import run
from synth_client.cli import options
from synth_client.cli.shared import parse_prices
from synth_client.questions.question import Question

SCHEMA: Final = 1
_STYLES: Final = {"fault": "red", "advice": "yellow", "ok": "green"}


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The findings about a model. `trial` is None if the model could not be tried."""

    findings: tuple[Finding, ...]
    trial: Trial | None

    @property
    def healthy(self) -> bool:
        """Return whether nothing keeps the model from doing its work."""
        return not any(finding.level == "fault" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return it for scripts."""
        trial = None if self.trial is None else _numbers(self.trial)
        return {
            "ok": self.healthy,
            "findings": [asdict(finding) for finding in self.findings],
            "trial": trial,
        }


def doctor_command(
    config: ConfigFile,
    *,
    model: Annotated[
        str | None, typer.Option(help="One of the configured models. Default: all.")
    ] = None,
    questions: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help=f"A file or dataset, of which the first {NUM_QUESTIONS} questions are asked."
            " Default: questions that come with motab.",
        ),
    ] = None,
    price: options.Prices = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object (docs/first-use.md).")
    ] = False,
    wait: Wait = 0.0,
) -> None:
    """Probe the servers, try five questions, and say what to set. Exit code 1 if a pair cannot
    work.
    """
    loaded = _only(load_config(config), model)
    asked = trial_questions(questions)
    prices = parse_prices(price)
    with Console(stderr=True).status("Probing the servers ...") as status:

        def say(text: str) -> None:
            status.update(escaped(text))

        report, found = run(_diagnose(loaded, asked, prices, wait, say))
    healthy = all(one.healthy for one in found.values())
    if as_json:
        content = {
            "schema": SCHEMA,
            "motab_version": __version__,
            "ok": healthy,
            "models": {name: one.to_json() for name, one in found.items()},
            "probe": report.to_json(),
        }
        typer.echo(orjson.dumps(content, option=orjson.OPT_INDENT_2))
    else:
        _show(found, Console(highlight=False, soft_wrap=True))
    if not healthy:
        raise typer.Exit(1)


def _only(config: Config, model: str | None) -> Config:
    """The configuration of one model and its upstreams, or the whole."""
    if model is None:
        return config
    if model not in config.models:
        known = ", ".join(config.models)
        meant = did_you_mean(model, config.models)
        raise ConfigError(f"--model {model}: the file has no such model; it has {known}{meant}")
    return _with_models(config, [model])


def _with_models(config: Config, names: Sequence[str]) -> Config:
    """The configuration of these models and their upstreams alone."""
    models = {name: config.models[name] for name in names}
    named = {one for pair in models.values() for one in (pair.student, pair.teacher)}
    upstreams = {name: one for name, one in config.upstreams.items() if name in named}
    return config.model_copy(update={"models": models, "upstreams": upstreams})


async def _diagnose(
    config: Config,
    questions: Sequence[Question],
    prices: Mapping[str, float],
    wait_s: float,
    say: Say,
) -> tuple[Report, dict[str, Diagnosis]]:
    report = await probe(config, wait_s)
    settings = await _settings(config, report)
    can = [name for name, pair in report.models.items() if pair.can]
    tried, pilots = await _tried(config, can, questions, say)
    found = {}
    for name, pair in config.models.items():
        own = {key: one for key, one in settings.items() if key in {pair.student, pair.teacher}}
        findings = [*of_probe(name, config, report), *of_settings(config, own)]
        trial = tried.get(name)
        if trial is not None:
            findings += of_trial(trial, prices)
            pilot = pilots.get(name, trial)
            findings += of_rate(trial.records, pilot.records)
        found[name] = Diagnosis(tuple(findings), trial)
    return report, found


async def _settings(config: Config, report: Report) -> dict[str, list[ServerSettings]]:
    """Return what the servers of each upstream say about their start."""
    found = {}
    for name, upstream in config.upstreams.items():
        is_up = report.upstreams[name].checks.reachable.result == "ok"
        if isinstance(upstream, RemoteUpstream) and is_up:
            asking = (settings_of(name, url, upstream.api_key) for url in upstream.urls)
            found[name] = await asyncio.gather(*asking)
    return found


async def _tried(
    config: Config,
    names: Sequence[str],
    questions: Sequence[Question],
    say: Say,
) -> tuple[dict[str, Trial], dict[str, Trial]]:
    """Ask all models that can work and, where all strayed, once more with no threshold.

    A record's values end at its breach, so only trajectories without one show what a lower
    threshold would do.
    """
    # A model that cannot work would keep the proxy from starting.
    working = _with_models(config, names)
    tried = await trials(working, names, {}, questions, say)
    strict = [name for name, trial in tried.items() if wants_pilot(trial.records)]
    return tried, await trials(working, strict, {"base_threshold": 0}, questions, say)


def _numbers(trial: Trial) -> dict[str, Any]:
    records = trial.records
    return {
        "num_questions": len(records) + len(trial.errors),
        "num_failed": len(trial.errors),
        "num_breached": sum(record.breach is not None for record in records),
        "num_cut": sum(record.finish_reason == "length" for record in records),
        "num_right": sum(record.correct is True for record in records),
        "seconds": round(trial.seconds, 3),
        "student_tokens": sum(record.usage.motab.student_tokens for record in records),
        "teacher_tokens": sum(record.usage.motab.teacher_tokens or 0 for record in records),
        "teacher_scored_tokens": sum(r.usage.motab.teacher_scored_tokens for r in records),
    }


def _show(found: Mapping[str, Diagnosis], console: Console) -> None:
    for name, diagnosis in found.items():
        verdict = "healthy" if diagnosis.healthy else "not healthy"
        console.print(f"{name}: {verdict}", markup=False, style="bold")
        for finding in diagnosis.findings:
            line = f"  {finding.level + ':':<8}{' '.join(finding.text.split())}"
            console.print(escaped(line), markup=False, style=_STYLES[finding.level])
