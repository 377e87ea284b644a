"""Turns pydantic's errors into single sentences that name the field."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from proxy.near_names import UNKNOWN_FIELD, suggestion

_LONGEST_PATH = 200


@dataclass(frozen=True, slots=True)
class Complaint:
    """One of the faults that pydantic found. `loc` is the path to the value in the input, which is
    `given`, and `model` the type that the whole input was to have.
    """

    loc: tuple[int | str, ...]
    kind: str
    message: str
    context: Mapping[str, Any]
    given: object = None
    model: type | None = None

    @property
    def cause(self) -> object:
        """The error that a validator of ours raised; None if pydantic itself refused."""
        return self.context.get("error")

    def about(self, field: str) -> str:
        """Describe the fault of the field with that name; "" stands for the input as a whole."""
        said = self._said(field)
        return said + suggestion(self.kind, self.loc, self.context, self.given, self.model)

    def _said(self, field: str) -> str:
        match self.kind:
            case "value_error":
                return f"{field}: {self.cause}" if field else str(self.cause)
            case kind if kind in UNKNOWN_FIELD:
                return f"{field} is not a known field"
            case "missing" | "missing_argument":
                return f"{field} is missing"
            case "union_tag_invalid":
                tags, tag = self.context["expected_tags"], self.context["tag"]
                return f"{field}.kind: must be {tags}, not '{tag}'"
            case "union_tag_not_found":
                return f"{field}.kind is missing"
            case _:
                return f"{field}: {self.message[:1].lower()}{self.message[1:]}"


def complaints_of(error: ValidationError, model: type | None = None) -> list[Complaint]:
    """All faults of an input that was to be a `model`, in pydantic's order; but a field that is not
    known comes first, because a misspelt one is why another is missing.
    """
    complaints = [
        Complaint(
            found["loc"], found["type"], found["msg"], found.get("ctx", {}), found["input"], model
        )
        for found in error.errors()
    ]
    return sorted(complaints, key=lambda one: one.kind not in UNKNOWN_FIELD)


def shortened(path: str) -> str:
    """Return a field's path for a message; an unknown field may have a name of megabytes."""
    return path if len(path) <= _LONGEST_PATH else f"{path[:_LONGEST_PATH]}..."
