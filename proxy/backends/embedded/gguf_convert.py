"""From a Hugging Face folder to a GGUF file that llama.cpp serves: Llamas with a byte-level BPE.

Written against the names of `gguf` 0.19 and the files that transformers 5 saves. The weights stay
as exact as they are: 32-bit floats. Prompts and steps are tokenised with the folder's own
`tokenizer.json`, for llama.cpp knows only some ways to cut a text into words; the GGUF's vocabulary
serves to spell tokens.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from proxy.errors import ConfigError

if TYPE_CHECKING:
    import gguf
    import numpy as np
    from numpy.typing import NDArray

CONFIG: Final = "config.json"
TOKENIZER: Final = "tokenizer.json"
WEIGHTS: Final = "model.safetensors"
FILES: Final = (CONFIG, TOKENIZER, WEIGHTS)
_ARCHITECTURE: Final = "LlamaForCausalLM"
_OUTPUT: Final = "lm_head.weight"


def write_gguf(folder: Path, path: Path) -> None:
    """Write the model of `folder` to `path`. Raises `ConfigError` where it is of another kind."""
    import gguf  # noqa: PLC0415 - the package of an extra
    from gguf.utility import SafetensorsLocal  # noqa: PLC0415

    config = _checked_config(folder)
    tokenizer = _checked_tokenizer(folder)
    num_layers, num_heads = config["num_hidden_layers"], config["num_attention_heads"]
    num_kv_heads = config.get("num_key_value_heads") or num_heads
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.LLAMA])
    _add_shape(writer, config, num_kv_heads)
    _add_vocabulary(writer, config, tokenizer)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, num_layers)
    with SafetensorsLocal(folder / WEIGHTS) as tensors:
        for source, tensor in tensors.items():
            if source == _OUTPUT and config.get("tie_word_embeddings"):
                continue
            name = names.get_name(source, try_suffixes=(".weight", ".bias"))
            if name is None:
                raise _refusal(folder, f"{WEIGHTS} has '{source}', which no Llama has")
            weights = _floats(folder, source, tensor.dtype, tensor.mmap_bytes())
            weights = weights.reshape(tensor.shape)
            if source.endswith((".q_proj.weight", ".q_proj.bias")):
                weights = _interleaved(weights, num_heads)
            elif source.endswith((".k_proj.weight", ".k_proj.bias")):
                weights = _interleaved(weights, num_kv_heads)
            writer.add_tensor(name, weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _checked_config(folder: Path) -> dict[str, Any]:
    for name in FILES:
        if not (folder / name).is_file():
            raise _refusal(folder, f"there is no {name}")
    config: dict[str, Any] = json.loads((folder / CONFIG).read_text("utf-8"))
    architectures = config.get("architectures")
    if architectures != [_ARCHITECTURE]:
        raise _refusal(folder, f"its architecture is {architectures}, not {_ARCHITECTURE}")
    if _rope(config).get("rope_type", "default") != "default" or config.get("rope_scaling"):
        raise _refusal(folder, "its rotary embeddings are scaled")
    return config


def _checked_tokenizer(folder: Path) -> dict[str, Any]:
    tokenizer: dict[str, Any] = json.loads((folder / TOKENIZER).read_text("utf-8"))
    decoder = (tokenizer.get("decoder") or {}).get("type")
    if tokenizer["model"]["type"] != "BPE" or decoder != "ByteLevel":
        raise _refusal(folder, "its tokenizer is no byte-level BPE")
    return tokenizer


def _refusal(folder: Path, why: str) -> ConfigError:
    message = f"'{folder}' cannot be served as it is: {why}; convert it with llama.cpp's converter"
    return ConfigError(f"{message} and name the GGUF file")


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """Transformers 5 has an object; its predecessors had keys among the others."""
    return config.get("rope_parameters") or {"rope_theta": config.get("rope_theta", 10000.0)}


def _add_shape(writer: "gguf.GGUFWriter", config: dict[str, Any], num_kv_heads: int) -> None:
    import gguf  # noqa: PLC0415

    width, num_heads = config["hidden_size"], config["num_attention_heads"]
    head_width = config.get("head_dim") or width // num_heads
    writer.add_file_type(int(gguf.LlamaFileType.ALL_F32))
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(num_heads)
    writer.add_head_count_kv(num_kv_heads)
    writer.add_key_length(head_width)
    writer.add_value_length(head_width)
    writer.add_rope_dimension_count(head_width)
    writer.add_rope_freq_base(float(_rope(config)["rope_theta"]))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])


def _add_vocabulary(
    writer: "gguf.GGUFWriter", config: dict[str, Any], tokenizer: dict[str, Any]
) -> None:
    import gguf  # noqa: PLC0415

    size = config["vocab_size"]
    # Rows of the embedding that no token has.
    tokens = [f"<|unused-{index}|>" for index in range(size)]
    kinds = [int(gguf.TokenType.UNUSED)] * size
    for token, index in tokenizer["model"]["vocab"].items():
        tokens[index], kinds[index] = token, int(gguf.TokenType.NORMAL)
    for added in tokenizer["added_tokens"]:
        kind = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
        tokens[added["id"]], kinds[added["id"]] = added["content"], int(kind)
    merges = [
        merge if isinstance(merge, str) else " ".join(merge)
        for merge in tokenizer["model"]["merges"]
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_add_bos_token(False)  # noqa: FBT003 - gguf's way
    for index in _ids(config.get("eos_token_id"))[:1]:
        writer.add_eos_token_id(index)
    for index in _ids(config.get("bos_token_id"))[:1]:
        writer.add_bos_token_id(index)


def _ids(value: int | list[int] | None) -> list[int]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _floats(folder: Path, name: str, dtype: str, raw: "NDArray[Any]") -> "NDArray[np.float32]":
    import numpy as np  # noqa: PLC0415

    if dtype == "BF16":  # the upper half of a 32-bit float
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    if dtype not in {"F32", "F16"}:
        raise _refusal(folder, f"'{name}' of {WEIGHTS} is {dtype}, not F32, F16 or BF16")
    return raw.view(np.float32 if dtype == "F32" else np.float16).astype(np.float32)


def _interleaved(weights: "NDArray[np.float32]", num_heads: int) -> "NDArray[np.float32]":
    """A head's rows in the order of llama.cpp's rotary embedding.

    It turns neighbouring rows together; transformers turns a row of a head's first half together
    with the one at the same place of its second half.
    """
    half = weights.shape[0] // num_heads // 2
    heads = weights.reshape(num_heads, 2, half, *weights.shape[1:])
    return heads.swapaxes(1, 2).reshape(weights.shape)
