import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from proxy.backends.embedded.gguf_files import converted, model_path
from proxy.errors import ConfigError

WIDTH, NUM_HEADS, NUM_KV_HEADS, HIDDEN = 8, 2, 1, 12
HEAD = WIDTH // NUM_HEADS
VOCABULARY = {"a": 1, "b": 2, "ab": 3}
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 6,
    "hidden_size": WIDTH,
    "intermediate_size": HIDDEN,
    "num_hidden_layers": 1,
    "num_attention_heads": NUM_HEADS,
    "num_key_value_heads": NUM_KV_HEADS,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_theta": 5000.0, "rope_type": "default"},
    "tie_word_embeddings": True,
    "eos_token_id": [0],
    "bos_token_id": None,
}
TOKENIZER = {
    "added_tokens": [{"id": 0, "content": "<|end|>", "special": True}],
    "decoder": {"type": "ByteLevel"},
    "model": {"type": "BPE", "vocab": VOCABULARY, "merges": [["a", "b"]]},
}
Q, K = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "motab" / "models"


def rows(count: int) -> np.ndarray:
    """Every row is its own number."""
    return np.repeat(np.arange(count, dtype=np.float32)[:, None], WIDTH, axis=1)


def model_folder(
    folder: Path, *, kind: str = "F32", tokenizer: Any = TOKENIZER, **changes: Any
) -> Path:
    weights = {
        "model.embed_tokens.weight": rows(6),
        "model.norm.weight": np.linspace(0, 1, WIDTH, dtype=np.float32),
        Q: rows(NUM_HEADS * HEAD),
        K: rows(NUM_KV_HEADS * HEAD),
        "lm_head.weight": rows(6),
    }
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    content = b""
    for name, values in weights.items():
        # A bfloat16 is the upper half of a float32.
        raw = (values.view(np.uint32) >> 16).astype(np.uint16) if kind == "BF16" else values
        span = [len(content), len(content) + raw.nbytes]
        header[name] = {"dtype": kind, "shape": list(values.shape), "data_offsets": span}
        content += raw.tobytes()
    written = json.dumps(header).encode()
    folder.mkdir(exist_ok=True)
    prefix = len(written).to_bytes(8, "little")
    (folder / "model.safetensors").write_bytes(prefix + written + content)
    (folder / "config.json").write_text(json.dumps(CONFIG | changes), encoding="utf-8")
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    return folder


def tensors_of(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}


def test_heads_are_laid_out_as_llama_cpp_turns_them(tmp_path: Path) -> None:
    tensors = tensors_of(converted(model_folder(tmp_path / "m")))
    # Rows i and i + HEAD / 2 of a head, which transformers turns together, become neighbours.
    assert tensors["blk.0.attn_q.weight"][:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert tensors["blk.0.attn_k.weight"][:, 0].tolist() == [0, 2, 1, 3]
    assert tensors["token_embd.weight"][:, 0].tolist() == [0, 1, 2, 3, 4, 5]


def test_a_tied_output_is_left_out_and_another_is_kept(tmp_path: Path) -> None:
    assert "output.weight" not in tensors_of(converted(model_folder(tmp_path / "tied")))
    untied = model_folder(tmp_path / "untied", tie_word_embeddings=False)
    assert "output.weight" in tensors_of(converted(untied))


def test_half_floats_become_the_numbers_that_they_stand_for(tmp_path: Path) -> None:
    tensors = tensors_of(converted(model_folder(tmp_path / "m", kind="BF16")))
    assert tensors["blk.0.attn_k.weight"].dtype == np.float32
    assert tensors["blk.0.attn_k.weight"][:, 0].tolist() == [0, 2, 1, 3]


def test_the_vocabulary_says_which_tokens_are_text(tmp_path: Path) -> None:
    fields = gguf.GGUFReader(converted(model_folder(tmp_path / "m"))).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    assert tokens == ["<|end|>", "a", "b", "ab", "<|unused-4|>", "<|unused-5|>"]
    control, normal, unused = (
        int(gguf.TokenType[name]) for name in ("CONTROL", "NORMAL", "UNUSED")
    )
    expected = [control, normal, normal, normal, unused, unused]
    assert fields["tokenizer.ggml.token_type"].contents() == expected
    assert fields["tokenizer.ggml.merges"].contents() == ["a b"]
    assert fields["tokenizer.ggml.eos_token_id"].contents() == 0
    assert not fields["tokenizer.ggml.add_bos_token"].contents()
    assert "tokenizer.ggml.bos_token_id" not in fields
    assert fields["llama.rope.freq_base"].contents() == 5000


def test_a_folder_is_converted_once_and_again_when_it_holds_something_else(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    first = converted(folder)
    made = first.stat().st_mtime_ns
    assert converted(folder) == first
    assert first.stat().st_mtime_ns == made
    assert converted(model_folder(folder, rms_norm_eps=1e-5)) != first


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "its architecture is"),
        ({"rope_parameters": {"rope_theta": 1e4, "rope_type": "llama3"}}, "embeddings are scaled"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "embeddings are scaled"),
        ({"kind": "I8"}, "is I8, not F32, F16 or BF16"),
        ({"tokenizer": {**TOKENIZER, "decoder": {"type": "Metaspace"}}}, "no byte-level BPE"),
    ],
)
def test_what_cannot_be_converted_is_refused_and_leaves_nothing(
    changes: dict[str, Any], why: str, tmp_path: Path, own_cache: Path
) -> None:
    with pytest.raises(ConfigError, match=f"'.*m' cannot be served as it is: .*{why}"):
        converted(model_folder(tmp_path / "m", **changes))
    assert list(own_cache.iterdir()) == []


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    with pytest.raises(ConfigError, match=r"there is no config\.json"):
        converted(tmp_path / "m")


def test_a_folder_inside_a_package_is_found() -> None:
    folder = model_path("package:trainer/reproduce/models/student")
    assert (folder / "config.json").is_file()


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("package:trainer/no/such", "the package 'trainer' has no 'no/such'"),
        ("package:no-such/models", "the package 'no-such' cannot be imported"),
    ],
)
def test_what_a_package_does_not_have_is_a_configuration_error(model: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        model_path(model)
