"""Finds the tokenizer and the model file that the configuration of an upstream names."""

import asyncio
from pathlib import Path

from proxy.backends.embedded.gguf_files import converted, dequantized, model_path, require_library
from proxy.backends.tokens.chat_template import ChatTemplate
from proxy.backends.tokens.tokenizer import TIKTOKEN, LocalReader, load_tokenizer
from proxy.config import (
    EmbeddedConfig,
    LlamaCppConfig,
    OpenAIConfig,
    SGLangConfig,
    VllmConfig,
)
from proxy.errors import ConfigError

ServerUpstream = VllmConfig | SGLangConfig | LlamaCppConfig | OpenAIConfig | EmbeddedConfig


async def local_reader(
    name: str, config: ServerUpstream, template: ChatTemplate | None
) -> LocalReader | None:
    """Return the tokenizer that the configuration names; None if the server's own is used.

    Raises `ConfigError`.
    """
    source = _tokenizer_of(config)
    if source == "server":
        return None
    try:
        reader = await asyncio.to_thread(load_tokenizer, source, template)
        reader.sends_text = isinstance(config, OpenAIConfig)
    except ConfigError as error:
        raise ConfigError(f"upstreams.{name}.{error}") from error
    if source.startswith(TIKTOKEN) and not reader.has_template:
        message = f"{source} has no chat template: set chat_template as well"
        raise ConfigError(f"upstreams.{name}.tokenizer: {message}")
    return reader


def _tokenizer_of(config: ServerUpstream) -> str:
    if not isinstance(config, EmbeddedConfig):
        return config.tokenizer
    path = model_path(config.model)
    return str(path) if path.is_dir() else "server"


def model_file(config: EmbeddedConfig) -> Path:
    """Return the GGUF file to serve, which is made first if the model is a folder.

    Raises `ConfigError`.
    """
    require_library()
    path = model_path(config.model)
    if path.is_dir():
        return converted(path)
    return dequantized(path) if config.dequantize else path
