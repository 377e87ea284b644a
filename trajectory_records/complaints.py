"""Turns pydantic's errors into sentences for people, each with the path of its field."""

from collections.abc import Collection

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from proxy.near_names import suggestion


def complaints_of(
    error: ValidationError,
    *,
    most: int = 3,
    unions: Collection[str] = (),
    model: type | None = None,
) -> str:
    """Return the first faults in one line; a misspelt key comes before the key that it replaced.

    `unions` names the root's fields that are tagged unions, because pydantic puts the tag into the
    paths of their fields. Of a `model`, a name like a misspelt one is suggested.
    """
    details = sorted(
        error.errors(include_url=False),
        key=lambda detail: detail["type"] != "extra_forbidden",
    )
    sentences = "; ".join(
        _sentence(detail, unions) + _suggestion(detail, model) for detail in details[:most]
    )
    num_hidden = len(details) - most
    return f"{sentences} (and {num_hidden} more)" if num_hidden > 0 else sentences


def _suggestion(detail: ErrorDetails, model: type | None) -> str:
    context = detail.get("ctx", {})
    return suggestion(detail["type"], detail["loc"], context, detail["input"], model)


def _sentence(detail: ErrorDetails, unions: Collection[str]) -> str:
    path = [str(key) for key in detail["loc"]]
    if len(path) > 2 and path[0] in unions:
        del path[1]
    field, context = ".".join(path), detail.get("ctx", {})
    match detail["type"]:
        case "extra_forbidden":
            return f"{field} is not a known field"
        case "missing":
            return f"{field} is missing"
        case "union_tag_not_found":
            return f"{field}.kind is missing"
        case "union_tag_invalid":
            return f"{field}.kind: must be {context['expected_tags']}, not '{context['tag']}'"
        case "value_error":
            message = detail["msg"].removeprefix("Value error, ")
        case _:
            message = f"{detail['msg'][:1].lower()}{detail['msg'][1:]}"
    return f"{field}: {message}" if field else message
