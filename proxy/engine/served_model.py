"""Decides which methods and scorers a pair of models may use."""

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any

from proxy.backends.base import Call, Scorer, TokenScorer
from proxy.core.params import PENALTIES, Method, SamplingValues
from proxy.core.segmenter import texts_of
from proxy.core.types import JUDGES, NO_PROBABILITIES, Author
from proxy.engine.pair import Pair
from proxy.engine.upstream import Upstream
from proxy.errors import RequestError, ScoringUnavailable, TokenizerFailed, UnsupportedField
from proxy.options import Options, OptionsError, parse_sampling


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A name that clients may use, and the pair behind it."""

    pair: Pair
    defaults: Mapping[str, Any]
    labels: dict[str, str | None]
    """The models' own names: `student` and `teacher`."""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """The student's sampling, where a request does not say otherwise."""

    def most_tokens(self, method: Method) -> int | None:
        """Return the most tokens that a text can have under this method, as far as the models'
        limits are known. Where both write, each limit of an answer holds for a part only.
        """
        student, teacher = self.pair.student, self.pair.teacher
        if method in {"student", "teacher"}:
            author = student if method == "student" else teacher
            return None if author is None else author.budget.most_written
        windows = [u.budget.most_in_window for u in (student, teacher) if u is not None]
        known = [window for window in windows if window is not None]
        return max(known) if known == windows else None

    def check_method(self, options: Options) -> None:
        """Raise `RequestError` if the pair lacks something that the method needs."""
        if options.method == "skd" and self.pair.student and self.pair.teacher:
            self._check_logprobs(self.pair.student)
        lacks_student = options.method != "teacher" and self.pair.student is None
        if lacks_student or (options.method != "student" and self.pair.teacher is None):
            alone = "teacher" if self.pair.student is None else "student"
            message = f"this model is a {alone} alone, it has no method '{options.method}'"
            raise RequestError(message, param="motab.method")

    def _check_logprobs(self, student: Upstream) -> None:
        if student.writes_logprobs == "no":
            message = (
                f"method 'skd' needs the student's log-probabilities, and upstream '{student.name}'"
                " gives none while it writes; kind vllm, sglang, llamacpp or embedded does"
            )
            raise RequestError(message, param="motab.method")

    def sampling_with(self, asked: Mapping[str, Any]) -> SamplingValues:
        """Return the student's sampling with what a request asks for. Raises `RequestError`."""
        try:
            return parse_sampling({**self.sampling, **asked})
        except OptionsError as error:
            raise RequestError(str(error), param=error.field) from error

    def check_sampling(
        self, options: Options, student: SamplingValues, asked: Container[str] = ()
    ) -> None:
        """Raise `UnsupportedField` if an author's server has no field for a value.

        The values in `asked` are at the request's top level, whoever writes.
        """
        authors = (("student", student, ""), ("teacher", options.teacher, "motab.teacher."))
        for author, values, path in authors:
            upstream = self.pair.student if author == "student" else self.pair.teacher
            writes_nothing = options.method in {"student", "teacher"} and options.method != author
            if upstream is None or writes_nothing:
                continue
            for name in sorted(upstream.unsampled):
                if not values.is_neutral(name):
                    message = (
                        f"the server of upstream '{upstream.name}' has no {name}: leave it out, or"
                        " serve the model as kind vllm, sglang or llamacpp"
                    )
                    at_top = options.method == "teacher" and name in asked
                    raise UnsupportedField(message, param=name if at_top else path + name)
        if options.method == "skd":
            self._check_scaled(student)

    def _check_scaled(self, student: SamplingValues) -> None:
        upstream = self.pair.student
        if upstream and upstream.writes_logprobs == "scaled" and student.has_penalties:
            message = (
                f"method 'skd' takes no penalties here: upstream '{upstream.name}' changes its"
                " log-probabilities by them"
            )
            name = next(x for x in PENALTIES if not student.is_neutral(x))
            raise RequestError(message, param=name)

    def check_temperature(self, options: Options, temperature: float) -> None:
        """Raise `RequestError` if the student's log-probabilities would give no U_t.

        Log-probabilities that a server scales by the temperature give U_t at 0 and 1 only.
        """
        student = self.pair.student
        if options.method != "skd" or student is None or student.writes_logprobs != "scaled":
            return
        if temperature not in {0.0, 1.0}:
            message = (
                f"method 'skd' needs temperature 0 or 1 here: upstream '{student.name}' scales its"
                " log-probabilities by the temperature"
            )
            raise RequestError(message, param="temperature")

    def scorer_of_method(self, options: Options, asked: Mapping[str, Any]) -> Scorer | None:
        """Return the scorer that the method needs; None if the method does not score.

        Raises as `scorer` does, and if marks would be compared with probabilities.
        """
        if not options.scores:
            return None
        if options.method == "motab":
            return self.scorer(options, asked)
        scorer = self._scorer(options)
        if scorer.scoring in NO_PROBABILITIES:
            message = (
                f"method '{options.method}' compares probabilities, but the values come from"
                f" '{scorer.scoring}', which gives none"
            )
            raise RequestError(message, param="motab.method")
        return scorer

    async def check_delimiter(self, options: Options, scorer: Scorer | None, call: Call) -> None:
        """Raise `RequestError` if `scorer` needs to know which tokens end with each step, and the
        teacher's server hides that at some of these delimiters.
        """
        if scorer is None or scorer.scoring in {*NO_PROBABILITIES, "echo"}:
            return
        for text in texts_of(options.delimiter):
            try:
                await self.pair.of("teacher").require_end_of(text, call)
            except TokenizerFailed as error:
                message = f"steps that end in {text!r} cannot be scored: {error}"
                raise RequestError(message, param="motab.delimiter") from error

    def fallbacks(self, options: Options, scorer: Scorer | None) -> tuple[Scorer, ...]:
        """Return the judges below `scorer`, for steps that it cannot mark.

        None if the client wants one way of scoring, or if `scorer` gives probabilities, with which
        a mark cannot be compared.
        """
        if scorer is None or scorer.scoring not in JUDGES or options.scoring != "auto":
            return ()
        scorers = self.pair.of("teacher").scorers
        return scorers[scorers.index(scorer) + 1 :]

    def _scorer(self, options: Options) -> Scorer:
        teacher = self.pair.teacher
        if teacher is None:
            raise RequestError("this model has no teacher to score with", param="model")
        if options.scoring == "http" or self._is_scored_by_its_own(options):
            return self._own_scorer()
        scorer = teacher.scorer(options.scoring)
        if scorer.scoring not in JUDGES:  # which take no entropy
            check_candidates(options.entropy_top_k, teacher, "motab.entropy_top_k")
        return scorer

    def _is_scored_by_its_own(self, options: Options) -> bool:
        """Return whether `auto` is the pair's own scorer: not where probabilities are compared."""
        is_open = options.scoring == "auto" and options.method != "skd"
        return is_open and self.pair.scorer is not None

    def _own_scorer(self) -> Scorer:
        if self.pair.scorer is None:
            message = (
                "this model has no scorer of its own: scoring 'http' needs 'scoring: {http: URL}'"
                " under the model in the server's configuration"
            )
            raise ScoringUnavailable(message)
        return self.pair.scorer.scorer("http")

    def token_scorer(self, author: Author, options: Options) -> TokenScorer:
        """Return the scorer that gives every token's log-probability under one of the models.

        Raises `RequestError` if that model is not there or its server gives none.
        """
        upstream = self.pair.student if author == "student" else self.pair.teacher
        if upstream is None:
            message = f"token_logprobs are of both models, and this one has no {author}"
            raise RequestError(message, param="model")
        wanted = options.scoring if author == "teacher" else "auto"
        for scorer in upstream.scorers:
            if wanted in {"auto", scorer.scoring} and isinstance(scorer, TokenScorer):
                return scorer
        ways = ", ".join(scorer.scoring for scorer in upstream.scorers) or "none"
        message = (
            f"upstream '{upstream.name}' cannot give token_logprobs, which takes prompt_logprobs,"
            f" echo or forced_decode (a judge gives marks of whole steps); it has: {ways}"
        )
        raise ScoringUnavailable(message)

    def scorer(self, options: Options, asked: Mapping[str, Any]) -> Scorer:
        """Return the scorer that the options call for.

        Raises `ScoringUnavailable`, and `RequestError` if the values of a judge or of a scorer
        would be compared with a boundary for V_t: they are a different quantity, and no entropy
        comes with them.
        """
        scorer = self._scorer(options)
        if scorer.scoring in NO_PROBABILITIES:
            whose = f"the {self.pair.scored_by(scorer)}'s values"
            about = f"{whose} come from '{scorer.scoring}' and are not probabilities"
            if options.boundary != "static":
                why = "no entropy comes with them"
                if options.boundary == "quantile":
                    why = "boundary_values are quantiles of probabilities"
                message = f"{about}: {why}, so boundary must be 'static'"
                raise RequestError(message, param="motab.boundary")
            if "base_threshold" not in {**self.defaults, **asked}:
                message = f"{about}: they need a base_threshold of their own"
                raise RequestError(message, param="motab.base_threshold")
        return scorer


def check_candidates(asked: float, upstream: Upstream, param: str) -> None:
    """Raise `RequestError` for more candidates than the upstream's model has tokens: some servers
    die of such a request.
    """
    most = upstream.limits.vocabulary
    if most is not None and asked > most:
        message = f"must be at most {most}, the number of tokens of upstream '{upstream.name}'"
        raise RequestError(f"{param} {message}, not {asked}", param=param)
