"""Fills the variables of a configuration, `${NAME}`, from the environment or from secret files."""

import os
import re
from pathlib import Path
from typing import Any, Final

from proxy.errors import ConfigError
from proxy.secrets import hide

VARIABLE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_FILE: Final = "_FILE"
_MAX_CHARACTERS: Final = 10_000


def expanded(value: Any, where: str) -> Any:  # noqa: ANN401
    """Return the value at the path `where` with every variable in its texts filled.

    Raises `ConfigError` for a variable that is not set, and for a secret file that cannot be used.
    """
    if isinstance(value, dict):
        return {key: expanded(item, f"{where}.{key}".lstrip(".")) for key, item in value.items()}
    if isinstance(value, list):
        return [expanded(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if not isinstance(value, str):
        return value
    return VARIABLE.sub(lambda match: _value_of(match[1], where), value)


def _value_of(name: str, where: str) -> str:
    """The variable's value, or the content of the file that NAME_FILE names, as images do."""
    found, file = os.environ.get(name), os.environ.get(name + _FILE)
    if found is not None and file is not None:
        message = f"the environment variables {name} and {name}{_FILE} are both set: unset one"
        raise ConfigError(f"{where}: {message}")
    if found is not None:
        return found
    if file is None:
        raise ConfigError(f"{where}: the environment variable {name} is not set")
    secret = _secret_in(Path(file), f"{where}: {name}{_FILE}: {file}")
    hide((secret,))
    return secret


def _secret_in(path: Path, what: str) -> str:
    """The one line of a secret file, without the line break that an editor ends it with."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            text = file.read(_MAX_CHARACTERS + 1)
    except OSError as error:
        raise ConfigError(f"{what}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{what}: not UTF-8 text ({error.reason})") from error
    if len(text) > _MAX_CHARACTERS:
        raise ConfigError(f"{what}: more than {_MAX_CHARACTERS} characters, so it is no secret")
    line = text.removesuffix("\n").removesuffix("\r")
    if not line:
        raise ConfigError(f"{what}: the file is empty")
    if len(line.splitlines()) > 1:
        raise ConfigError(f"{what}: must hold one line, the secret")
    return line
