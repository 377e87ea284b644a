"""Reads YAML strictly: a key that a mapping has twice is an error, so that no value is lost, and
a document is bounded, because a few aliases of aliases stand for billions of values.
"""

from collections.abc import Iterator
from typing import Any

import yaml

_MERGE = "tag:yaml.org,2002:merge"
_MAX_CHARACTERS = 1_000_000
_MAX_VALUES = 100_000


def load_yaml(text: str) -> Any:  # noqa: ANN401
    """Parse a document.

    Raises `YAMLError`, also for a repeated key, with its path and lines, and for a document of more
    characters, values or levels than a file of settings has.
    """
    if len(text) > _MAX_CHARACTERS:
        raise yaml.YAMLError(
            f"it has {len(text)} characters, and at most {_MAX_CHARACTERS} are read"
        )
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        _Check(loader).walk(root, "", ())
        return loader.construct_document(root)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    except (
        ValueError,
        LookupError,
        AttributeError,
    ) as error:  # PyYAML's own, for such as `!!int x`
        raise yaml.YAMLError(f"a value does not fit its type: {error}") from error
    finally:
        loader.dispose()


class _Check:
    """Walks a document once, because an alias can stand for its node in many places."""

    def __init__(self, loader: yaml.SafeLoader) -> None:
        self._loader = loader
        self._sizes: dict[int, int] = {}

    def walk(self, node: yaml.Node, path: str, above: tuple[yaml.Node, ...]) -> int:
        """Return the number of values in `node`, aliases resolved.

        Raises for a repeated key in it, for an alias of a node around it, and for too many values.
        """
        if any(node is one for one in above):
            raise yaml.YAMLError(f"{path} contains itself")
        if id(node) not in self._sizes:
            inside = (
                self.walk(child, at, (*above, node)) for child, at in self._children(node, path)
            )
            self._sizes[id(node)] = size = 1 + sum(inside)
            if size > _MAX_VALUES:
                where = path or "the document"
                raise yaml.YAMLError(
                    f"{where} has more than {_MAX_VALUES} values, aliases resolved"
                )
        return self._sizes[id(node)]

    def _children(self, node: yaml.Node, path: str) -> Iterator[tuple[yaml.Node, str]]:
        if isinstance(node, yaml.SequenceNode):
            yield from ((item, f"{path}[{index}]") for index, item in enumerate(node.value))
        if not isinstance(node, yaml.MappingNode):
            return
        lines: dict[object, int] = {}
        for key, value in node.value:
            where = f"{path}.{key.value}".lstrip(".") if _is_scalar(key) else path
            if _is_scalar(key) and key.tag != _MERGE:
                name, line = self._loader.construct_object(key), key.start_mark.line + 1
                if name in lines:
                    first = lines[name]
                    at = f"line {line}" if first == line else f"lines {first} and {line}"
                    raise yaml.YAMLError(f"{where} stands twice, in {at}: keep one of them")
                lines[name] = line
            yield value, where


def _is_scalar(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode)
