"""Checks the settings that every server has which motab calls, and those of a scorer."""

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, field_validator

from proxy.secrets import without_userinfo
from proxy.server_config import Section


class RetriesConfig(Section):
    """The retries of a call that an upstream failed."""

    attempts: int = Field(4, ge=1)
    """Attempts in all; 1 switches retries off."""
    total_s: float = Field(60, gt=0)
    """No new attempt begins more than this many seconds after the first."""


class CalledServer(Section):
    """A server, or replicas of one."""

    max_concurrent: int = Field(64, ge=1)
    """Requests under way at once at all its replicas together, for writing and for scoring each;
    short calls come on top."""
    gpus: float = Field(1, gt=0)
    """The number of GPUs of one of its replicas, or their cost: the weight of a second of a
    server's time when the student's and the teacher's are compared."""
    retries: RetriesConfig = RetriesConfig()
    answer_timeout_s: float = Field(600, gt=0)
    """Seconds that a whole answer, or a stream's first event, may take, including the wait in the
    server's queue and the reading of the prompt."""

    @property
    def urls(self) -> list[str]:
        """The URLs of its servers, as far as someone else runs them at known ones."""
        return []


def _fits_into_a_header(key: str) -> str:
    if not (key.isascii() and key.isprintable() and key):
        raise ValueError("must be printable ASCII, because it is sent in a header")
    return key


ApiKey = Annotated[str, AfterValidator(_fits_into_a_header)]


def checked_url(url: str) -> str:
    """Return the URL without a slash at its end. Raises ValueError for what is no server's URL."""
    parts = urlsplit(url)
    try:
        has_port = parts.port != 0
    except ValueError:  # no number, or beyond 65535
        has_port = False
    if parts.scheme not in {"http", "https"} or not parts.hostname or not has_port:
        shown = without_userinfo(url)
        raise ValueError(f"must be a URL such as http://127.0.0.1:30011, not '{shown}'")
    if parts.query or parts.fragment:  # either may hold a key, so it is not shown
        raise ValueError("must be a URL without a query (?) and a fragment (#)")
    return url.rstrip("/")


def require_different(urls: list[str]) -> list[str]:
    """Return the URLs. Raises ValueError if one stands there twice."""
    shown = [without_userinfo(url) for url in urls]
    if twice := next((url for url in shown if shown.count(url) > 1), None):
        raise ValueError(f"has '{twice}' twice: name every replica once")
    return urls


class ScorerConfig(CalledServer):
    """A server of the user's own that scores the steps of a pair, in the teacher's place."""

    http: list[str] = Field(min_length=1, repr=False)
    """The roots of its replicas; a single one may be given as a text."""
    api_key: ApiKey | None = Field(None, repr=False)

    @property
    def urls(self) -> list[str]:
        """The roots of all its servers."""
        return self.http

    @field_validator("http", mode="before")
    @classmethod
    def _may_be_one(cls, urls: object) -> object:
        if isinstance(urls, str):
            return [urls]
        if isinstance(urls, list):
            return urls
        raise ValueError("must be a URL such as http://127.0.0.1:9000, or a list of them")

    @field_validator("http")
    @classmethod
    def _are_urls(cls, urls: list[str]) -> list[str]:
        return require_different([checked_url(url) for url in urls])


def scorer_name(model: str) -> str:
    """Return the name of a model's scorer among the upstreams."""
    return f"scoring/{model}"
