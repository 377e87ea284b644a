"""GGUF model files: found on disk or inside Python packages, and unpacked for exact scoring."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING

from proxy.errors import ConfigError

if TYPE_CHECKING:
    import gguf

_PACKAGE_PREFIX = "package:"
_FINGERPRINT_BYTES = 16 * 1024 * 1024


def cache_dir() -> Path:
    """Where files that motab makes for itself are kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "motab"


def gguf_path(model: str) -> Path:
    """The GGUF file that `model` names: a path, or `package:NAME` for one inside a package.

    A package that carries its file in parts (and an `assemble` function) is put together once,
    in the cache. Raises `ConfigError` where there is no such file or package.
    """
    if not model.startswith(_PACKAGE_PREFIX):
        path = Path(model).expanduser()
        if not path.is_file():
            raise ConfigError(f"no GGUF file at '{path}'; name a file, or package:NAME")
        return path
    name = model.removeprefix(_PACKAGE_PREFIX)
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError as error:
        message = f"the package '{name}' is not installed (`make demo` installs the demo's models)"
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
        with _written_aside(target) as aside:
            module.assemble(aside)
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
        with _written_aside(target) as aside:
            _write_f16(source, aside)
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
def _written_aside(target: Path) -> Iterator[Path]:
    """A path to write to; renamed to `target` at the end, so that no half file is left behind."""
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_suffix(f".{os.getpid()}.tmp")
    try:
        yield aside
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)
