"""Keeps what the log says of the request that a task works for."""

from contextvars import ContextVar
from typing import Final

ACCESS_LOG: Final = "motab.access"
"""The logger of answered requests; its records have `fields`, by name."""
REQUEST_ID: Final[ContextVar[str]] = ContextVar("request_id", default="")
"""The request's id; empty in a task that works for no request."""
