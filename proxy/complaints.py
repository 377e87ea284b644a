"""Turns pydantic's errors into single sentences that name the field."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

_LONGEST_PATH = 200


@dataclass(frozen=True, slots=True)
class Complaint:
    """One of the faults that pydantic found. `loc` is the path to the value in the input."""

    loc: tuple[int | str, ...]
    kind: str
    message: str
    context: Mapping[str, Any]

    @property
    def cause(self) -> object:
        """The error that a validator of ours raised; None if pydantic itself refused."""
        return self.context.get("error")

    def about(self, field: str) -> str:
        """Describe the fault of the field with that name; "" stands for the input as a whole."""
        match self.kind:
            case "value_error":
                return f"{field}: {self.cause}" if field else str(self.cause)
            case "unexpected_keyword_argument" | "extra_forbidden":
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


def complaints_of(error: ValidationError) -> list[Complaint]:
    """All faults of an input, in pydantic's order."""
    return [
        Complaint(found["loc"], found["type"], found["msg"], found.get("ctx", {}))
        for found in error.errors()
    ]


def shortened(path: str) -> str:
    """Return a field's path for a message; an unknown field may have a name of megabytes."""
    return path if len(path) <= _LONGEST_PATH else f"{path[:_LONGEST_PATH]}..."
