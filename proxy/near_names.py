"""Suggests the name that a misspelt one was meant to be."""

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from pydantic import TypeAdapter

_CUTOFF = 0.7
# Clients choose the names, and a comparison takes time that grows with the square of their length.
_LONGEST = 64
_QUOTED = re.compile(r"'([^']*)'")
UNKNOWN_FIELD = frozenset({"unexpected_keyword_argument", "extra_forbidden"})
"""Pydantic's names for the fault of a field that its model does not have."""


def near_name(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is most like `name`, in any case; None if none is like it."""
    if len(name) > _LONGEST:
        return None
    by_plain = {one.casefold(): one for one in known}
    found = get_close_matches(name.casefold(), by_plain, 1, _CUTOFF)
    return by_plain[found[0]] if found else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a question for the end of a message about an unknown name; "" if none is like it."""
    meant = near_name(name, known)
    return "" if meant is None or meant == name else f"; did you mean '{meant}'?"


def suggestion(
    kind: str,
    loc: Sequence[int | str],
    context: Mapping[str, Any],
    given: object,
    model: type | None,
) -> str:
    """Return `did_you_mean` for a fault that pydantic found in an input that was to be a `model`.

    `kind`, `loc` and `context` are pydantic's, and `given` is the value that it refused.
    """
    if kind in UNKNOWN_FIELD and model is not None:
        return did_you_mean(str(loc[-1]), fields_at(model, loc[:-1]))
    if kind == "union_tag_invalid":
        return did_you_mean(context["tag"], _QUOTED.findall(context["expected_tags"]))
    if kind in {"literal_error", "enum"} and isinstance(given, str):
        return did_you_mean(given, _QUOTED.findall(context["expected"]))
    if kind == "union_tag_not_found" and isinstance(given, dict):
        misspelt = near_name("kind", [key for key in given if isinstance(key, str)])
        return "" if misspelt is None else f"; did you mean 'kind' by '{misspelt}'?"
    return ""


def fields_at(model: type, path: Sequence[int | str]) -> frozenset[str]:
    """Return the names of the fields that the value at `path`, as pydantic writes it, may have."""
    schema = _schema(model)
    found: list[Mapping[str, Any]] = [schema]
    for part in path:
        found = [inner for one in found for inner in _inside(one, part, schema)]
    plain = [one for outer in found for one in _members(outer, schema)]
    return frozenset(name for one in plain for name in one.get("properties", {}))


@lru_cache(maxsize=16)
def _schema(model: type) -> Mapping[str, Any]:
    return TypeAdapter(model).json_schema()


def _inside(
    schema: Mapping[str, Any], part: int | str, root: Mapping[str, Any]
) -> list[Mapping[str, Any]]:
    """The schemas of the part of a value; of a union, the member that has that tag."""
    found: list[Mapping[str, Any]] = []
    for one in _members(schema, root):
        tags = one.get("discriminator", {}).get("mapping", {})
        others = one.get("additionalProperties")
        if part in tags:
            found.append({"$ref": tags[part]})
        elif part in one.get("properties", {}):
            found.append(one["properties"][part])
        elif isinstance(part, int) and isinstance(one.get("items"), dict):
            found.append(one["items"])
        elif isinstance(others, dict):
            found.append(others)
    return found


def _members(schema: Mapping[str, Any], root: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The schema itself, without references, or the members of a union that has no tags."""
    while "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
    if "discriminator" in schema:
        return [schema]
    members = [*schema.get("anyOf", ()), *schema.get("oneOf", ())]
    return [one for member in members for one in _members(member, root)] or [schema]
