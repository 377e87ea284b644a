"""Checks the section `server` of the configuration file: what the proxy itself is and bounds."""

import re
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

_LOOPBACK = {"127.0.0.1", "localhost", "::1"}
_HOST_NAME = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")


class Section(BaseModel):
    """A part of the configuration file; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class RecordsConfig(Section):
    """The file of records."""

    file: str = Field(min_length=1)
    rotate_mb: float | None = Field(1024, gt=0)
    """The size in MB at which the next file begins; None: never."""


class PageConfig(Section):
    """The page that people open in a browser."""

    runs: str | None = Field(None, min_length=1)
    """A folder whose files of records the page shows, and those of its subfolders."""
    questions: tuple[Annotated[str, Field(min_length=1, max_length=10_000)], ...] = ()
    """Questions that the page offers."""
    prices: dict[Literal["student", "scored", "teacher"], Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict
    )
    """Prices of a million tokens: written by students, scored by teachers, written by teachers."""


class ServerConfig(Section):
    """The proxy itself."""

    host: str = "127.0.0.1"
    port: int = Field(8800, ge=0, le=65535)
    """0 takes any free port."""
    health_port: int | None = Field(None, ge=0, le=65535)
    """Another port at which `/health` is answered, by a thread, however busy the server is."""
    api_keys: tuple[str, ...] = Field((), repr=False)
    """Keys that clients may use. None: no authentication, and loopback addresses only."""
    allowed_hosts: tuple[str, ...] = ()
    """More names that clients may send in `Host`. With none, every name is allowed if there are
    keys, and loopback names alone if there are none."""
    max_concurrent: int = Field(256, ge=1)
    """Trajectories under way at once; one more is answered with 429."""
    max_body_bytes: int = Field(4 * 1024 * 1024, ge=1)
    max_n: int = Field(64, ge=1)
    """The largest `n` of a request."""
    max_total_tokens: int = Field(131072, ge=1)
    """The largest `max_total_tokens` of a request and of a pair's `params`; a larger `max_tokens`
    is lowered to it."""
    max_connections: int = Field(2048, ge=1)
    """Connections of clients that each process holds open. One more closes the connection that has
    waited longest for a request."""
    request_timeout_s: float = Field(3600, gt=0)
    client_stall_timeout_s: float = Field(120, gt=0)
    """Seconds in which a client may read nothing of its stream; then its trajectories end."""
    records: RecordsConfig | None = None
    """Where every finished trajectory is appended as a record: a path, or a `RecordsConfig`."""
    page: PageConfig | None = PageConfig()
    """The page at `/`: true, false, or a `PageConfig`; None: there is none."""
    tracing: bool = False
    """Whether trajectories are reported as OpenTelemetry traces; the `OTEL_` variables of the
    environment say where they go."""

    @field_validator("records", mode="before")
    @classmethod
    def _records_may_be_a_path(cls, records: object) -> object:
        if isinstance(records, str):
            return {"file": records}
        if records is None or isinstance(records, dict | RecordsConfig):
            return records
        raise ValueError("must be a file's path, or {file: PATH, rotate_mb: NUMBER}")

    @field_validator("page", mode="before")
    @classmethod
    def _page_may_be_a_switch(cls, page: object) -> object:
        if isinstance(page, bool):
            return PageConfig() if page else None
        if page is None or isinstance(page, dict | PageConfig):
            return page
        raise ValueError("must be true, false, or {runs: FOLDER, questions: [...], prices: {...}}")

    @field_validator("api_keys")
    @classmethod
    def _keys_are_not_empty(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        if not all(keys):
            raise ValueError("an API key must not be empty")
        return keys

    @field_validator("allowed_hosts")
    @classmethod
    def _hosts_are_names(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            if not _HOST_NAME.fullmatch(host):
                message = (
                    f"must be names or addresses without a port, such as gpu1.lan, not '{host}'"
                )
                raise ValueError(message)
        return hosts

    @model_validator(mode="after")
    def _open_only_on_loopback(self) -> Self:
        if not self.api_keys and self.host not in _LOOPBACK:
            message = f"without api_keys the server listens on loopback only, not on '{self.host}'"
            raise ValueError(message)
        return self
