"""Reads YAML strictly: a key that a mapping has twice is an error, so that no value is lost."""

from collections.abc import Iterator
from typing import Any

import yaml

_MERGE = "tag:yaml.org,2002:merge"


def load_yaml(text: str) -> Any:  # noqa: ANN401
    """Parse a document. Raises `YAMLError`, also for a repeated key, with its path and lines."""
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        _Check(loader).walk(root, "", ())
        return loader.construct_document(root)
    finally:
        loader.dispose()


class _Check:
    """Walks a document once, because an alias can stand for its node in many places."""

    def __init__(self, loader: yaml.SafeLoader) -> None:
        self._loader = loader
        self._seen: set[int] = set()

    def walk(self, node: yaml.Node, path: str, above: tuple[yaml.Node, ...]) -> None:
        """Raise for a repeated key in `node`, and for an alias of a node around it."""
        if any(node is one for one in above):
            raise yaml.YAMLError(f"{path} contains itself")
        if id(node) in self._seen:
            return
        self._seen.add(id(node))
        for child, where in self._children(node, path):
            self.walk(child, where, (*above, node))

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
