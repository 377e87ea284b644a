"""Decides whether a configured pair can do what its method needs, from its upstreams' checks."""

from collections.abc import Mapping

from proxy.config import ModelConfig
from proxy.core.types import NO_PROBABILITIES, Scoring
from proxy.engine.pair import Pair
from proxy.engine.served_model import ServedModel
from proxy.engine.upstream import Upstream
from proxy.errors import RequestError
from proxy.options import Options, parse_options
from proxy.probe.report import Check, PairReport, UpstreamChecks, UpstreamReport


def judge_pair(
    model: ModelConfig,
    reports: Mapping[str, UpstreamReport],
    upstreams: Mapping[str, Upstream],
    scorer: str | None = None,
) -> PairReport:
    """Return the verdict on one model. `upstreams` holds the upstreams that could be opened, and
    `scorer` is the name of the model's own scorer, if it has one.
    """
    options = parse_options(model.options)
    roles = {"student": model.student, "teacher": model.teacher}
    if options.method in roles:
        roles = {options.method: roles[options.method]}
    reasons: list[str] = []
    notes: list[str] = []
    for role, name in roles.items():
        checks = reports[name].checks
        reasons += [f"{role} '{name}': {reason}" for reason in _writing_faults(checks)]
        notes += [f"{role} '{name}': {note}" for note in _notes(checks)]
    own = None if scorer is None else upstreams.get(scorer)
    pair = Pair(upstreams.get(model.student), upstreams.get(model.teacher), scorer=own)
    served = ServedModel(pair, model.options, {}, model.sampling)
    if pair.student is not None and pair.teacher is not None:
        try:
            served.check_method(options)
        except RequestError as error:
            reasons.append(str(error))
    scoring: Scoring | None = None
    # A teacher that does not even answer is among the reasons already.
    if options.scores and scorer is not None and own is None:
        reasons += [f"scorer: {fault}" for fault in _opening_faults(reports[scorer].checks)]
    elif options.scores and model.teacher in upstreams:
        teacher = f"teacher '{model.teacher}': "
        try:
            scoring = _scoring(served, options)
        except RequestError as error:
            why = str(error).removeprefix(f"upstream '{model.teacher}' ")
            reasons.append(teacher + why if own is None else str(error))
        else:
            by = own.name if own is not None and scoring == "http" else model.teacher
            whose = teacher if by == model.teacher else "scorer: "
            checks = reports[by].checks
            reasons += [whose + why for why in _scoring_faults(checks, scoring, options)]
            self_test = checks.scoring[scoring].self_test
            if self_test.result == "not_applicable" and scoring not in NO_PROBABILITIES:
                notes.append(f"{teacher}{scoring} was not self-tested: {self_test.detail}")
    return PairReport(
        student=model.student,
        teacher=model.teacher,
        method=options.method,
        scoring=scoring,
        reasons=tuple(dict.fromkeys(reasons)),
        notes=tuple(dict.fromkeys(notes)),
    )


def _scoring(served: ServedModel, options: Options) -> Scoring:
    """The rung that would score a request. Raises the `RequestError` that the request would get."""
    scorer = served.scorer_of_method(options, {})
    if scorer is None:
        raise RequestError(f"method '{options.method}' does not score", param="motab.method")
    return scorer.scoring


def _opening_faults(checks: UpstreamChecks) -> list[str]:
    for name, check in (("not reachable", checks.reachable), ("model", checks.model)):
        if check.result != "ok":
            return [f"{name}: {check.detail}"]
    return []


def _writing_faults(checks: UpstreamChecks) -> list[str]:
    if faults := _opening_faults(checks):
        return faults
    if checks.tokenizer.result in {"no", "failed"}:
        faults.append(f"tokenizer: {checks.tokenizer.detail}")
    if checks.writes.result != "ok":
        faults.append(f"does not write: {checks.writes.detail}")
    return faults


def _scoring_faults(checks: UpstreamChecks, scoring: Scoring, options: Options) -> list[str]:
    way = checks.scoring[scoring]
    if way.available.result != "ok":
        return [f"{scoring}: {way.available.detail}"]
    faults = []
    if way.self_test.result in {"no", "failed"}:
        faults.append(f"{scoring} fails the self-test: {way.self_test.detail}")
    if options.method == "motab" and options.boundary == "adaptive":
        faults += _top_k_faults(way.top_k, options.entropy_top_k)
    return faults


def _top_k_faults(top_k: Check, wanted: int) -> list[str]:
    if top_k.result in {"failed", "not_applicable"}:
        return [f"top-k: {top_k.detail}"]
    most = int(top_k.values["most"])
    if most >= wanted:
        return []
    cure = f"entropy_top_k: {most} or boundary: static" if most else "boundary: static"
    return [f"entropy_top_k is {wanted}, {most} candidates come; {cure} would do"]


def _notes(checks: UpstreamChecks) -> list[str]:
    """The limits that users of a working upstream will meet."""
    if checks.writes.result != "ok":
        return []
    about = {
        "chat requests will fail, only raw prompts work; chat template": checks.chat_template,
        "text does not come while it is written; streams": checks.streams,
        "requests with `stop` will come out wrong; stop strings": checks.stop_strings,
    }
    return [f"{what}: {c.detail}" for what, c in about.items() if c.result in {"no", "failed"}]
