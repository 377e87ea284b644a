"""Model files: found on disk or inside Python packages, and turned into what is to be served."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module, metadata
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from proxy.backends.embedded.gguf_convert import FILES, write_gguf
from proxy.errors import ConfigError

if TYPE_CHECKING:
    import gguf

_LIBRARY = ("gguf", "numpy", "xllamacpp")
_PACKAGE_PREFIX = "package:"
_FINGERPRINT_BYTES = 16 * 1024 * 1024


def require_library() -> None:
    """Raise `ConfigError` where a package that serves GGUF files is not installed."""
    if missing := [name for name in _LIBRARY if find_spec(name) is None]:
        message = f"embedded models need {', '.join(missing)}: pip install 'motab[embedded]'"
        raise ConfigError(message)


def cache_dir() -> Path:
    """The folder that keeps motab's own files between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "motab"


def model_path(model: str) -> Path:
    """The GGUF file or Hugging Face folder that `model` names.

    It is a path, or `package:NAME` for the GGUF file inside an installed distribution, or
    `package:NAME/PATH` for a file or folder inside a package that can be imported. A distribution
    that carries its file in parts (and an `assemble` function) is put together once, in the
    cache. Raises `ConfigError` where there is no such thing.
    """
    if not model.startswith(_PACKAGE_PREFIX):
        path = Path(model).expanduser()
        if not path.exists():
            raise ConfigError(f"no GGUF file or folder at '{path}'; name one, or package:NAME")
        return path
    name, _, inside = model.removeprefix(_PACKAGE_PREFIX).partition("/")
    return _within(name, inside) if inside else _distributed(name)


def _within(package: str, inside: str) -> Path:
    try:
        path = Path(str(files(package))) / inside
    except ModuleNotFoundError as error:
        raise ConfigError(f"the package '{package}' cannot be imported") from error
    if not path.exists():
        raise ConfigError(f"the package '{package}' has no '{inside}'")
    return path


def _distributed(name: str) -> Path:
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError as error:
        hint = "`make demo-pretrained` installs that demo's models"
        message = f"the package '{name}' is not installed ({hint})"
        raise ConfigError(message) from error
    for file in distribution.files or ():
        if file.suffix == ".gguf":
            return Path(str(distribution.locate_file(file)))
    return _assembled(name)


def _assembled(package: str) -> Path:
    no_file = f"the package '{package}' carries no GGUF file"
    try:
        module = import_module(package.replace("-", "_"))
    except ImportError as error:
        raise ConfigError(no_file) from error
    if not hasattr(module, "assemble"):
        raise ConfigError(no_file)
    target = cache_dir() / "models" / f"{package}.gguf"
    if not target.exists():
        with _atomic_path(target) as partial:
            module.assemble(partial)
    return target


def converted(folder: Path) -> Path:
    """The GGUF file of a Hugging Face folder: in the cache, made once for what the folder holds.

    Raises `ConfigError` for a model that `write_gguf` cannot convert.
    """
    held = hashlib.sha256()
    for path in (folder / name for name in FILES):
        held.update(_fingerprint(path).encode() if path.is_file() else b"none")
    target = cache_dir() / "models" / f"{folder.name}-{held.hexdigest()[:12]}-f32.gguf"
    if not target.exists():
        with _atomic_path(target) as partial:
            write_gguf(folder, partial)
    return target


def dequantized(path: Path) -> Path:
    """The same weights as 16-bit floats: the file itself, or its copy in the cache, made once.

    llama.cpp rounds activations to 8 bits wherever weights are quantised, which moves the values of
    short steps by several percent; with 16-bit weights it does not (docs/servers).
    """
    import gguf  # noqa: PLC0415 - the package of an extra

    source = gguf.GGUFReader(path)
    floats = {gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16}
    if all(tensor.tensor_type in floats for tensor in source.tensors):
        return path
    target = cache_dir() / "models" / f"{path.stem}-{_fingerprint(path)}-f16.gguf"
    if not target.exists():
        with _atomic_path(target) as partial:
            _write_f16(source, partial)
    return target


def _write_f16(source: "gguf.GGUFReader", path: Path) -> None:
    import gguf  # noqa: PLC0415
    import numpy as np  # noqa: PLC0415

    writer = gguf.GGUFWriter(path, source.fields["general.architecture"].contents())
    for field in source.fields.values():
        # The writer makes these itself.
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        kind = field.types[0]
        item_kind = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        value = field.contents()
        if field.name == "general.file_type":
            value = int(gguf.LlamaFileType.MOSTLY_F16)
        writer.add_key_value(field.name, value, kind, sub_type=item_kind)
    for tensor in source.tensors:
        weights = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        # Norms and biases are vectors and stay in full precision, as llama.cpp's converter has it.
        is_vector = len(tensor.shape) == 1
        writer.add_tensor(tensor.name, weights.astype(np.float32 if is_vector else np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _fingerprint(path: Path) -> str:
    """Tells files of one name apart without reading all of them: size, header, first weights."""
    with path.open("rb") as file:
        head = hashlib.sha256(file.read(_FINGERPRINT_BYTES))
    head.update(str(path.stat().st_size).encode())
    return head.hexdigest()[:12]


@contextmanager
def _atomic_path(target: Path) -> Iterator[Path]:
    """A path to write to, whose file takes the place of `target` when the body ends.

    An error leaves no half file behind, and neither does a power cut: the next run would serve it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(f".{os.getpid()}.tmp")
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(target)
        os.fsync(folder)  # or the new name could be lost
    finally:
        os.close(folder)
        partial.unlink(missing_ok=True)
