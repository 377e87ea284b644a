"""The composition root: from a configuration to running upstreams, models and the service."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TypeVar

from proxy.api.metrics import Metrics
from proxy.api.service import ServedModel, Service
from proxy.backends.base import Call, MarkupReader
from proxy.backends.calls import Calls
from proxy.backends.chat_text import CountingReader
from proxy.backends.embedded import embedded_server
from proxy.backends.gguf_files import dequantized, gguf_path
from proxy.backends.http import UpstreamClient
from proxy.backends.litellm import HostedModel, LiteLLM
from proxy.backends.litellm_library import load_library
from proxy.backends.llamacpp import LlamaCpp
from proxy.backends.openai import OpenAI
from proxy.backends.reasoning import detect_reasoning
from proxy.backends.retry import RetryPolicy
from proxy.backends.sglang import SGLang
from proxy.backends.template import ChatTemplate
from proxy.backends.tokenizer import TIKTOKEN, LocalReader, load_tokenizer
from proxy.backends.vllm import Vllm
from proxy.config import (
    Config,
    EmbeddedConfig,
    LiteLLMConfig,
    LlamaCppConfig,
    OpenAIConfig,
    SGLangConfig,
    UpstreamConfig,
    VllmConfig,
)
from proxy.core.reasoning import Reasoning
from proxy.engine.limits import Upstream
from proxy.engine.runner import Pair
from proxy.errors import ConfigError, RequestError, UpstreamError
from proxy.options import parse_options

_Backend = Vllm | SGLang | LlamaCpp | OpenAI

_POLL_S = 1.0
T = TypeVar("T")


@asynccontextmanager
async def open_service(config: Config, wait_s: float = 0.0) -> AsyncIterator[Service]:
    """Everything that `config` names, running; stopped and closed at the end.

    An upstream that does not answer is an `UpstreamError`, after `wait_s` seconds of trying.
    """
    metrics = Metrics()
    async with AsyncExitStack() as stack:
        upstreams = {
            name: await stack.enter_async_context(open_upstream(name, config, metrics, wait_s))
            for name in config.upstreams
        }
        yield Service(config.server, _models(config, upstreams), metrics)


@asynccontextmanager
async def open_upstream(
    name: str, config: Config, metrics: Metrics, wait_s: float = 0.0
) -> AsyncIterator[Upstream]:
    """One of the upstreams that `config` names, running; stopped and closed at the end.

    Raises the `UpstreamError` with which it still answers, or does not, after `wait_s` seconds.
    """
    num_embedded = sum(isinstance(u, EmbeddedConfig) for u in config.upstreams.values())
    # Servers that decode at once on the same cores slow each other down many times over.
    threads = max(1, (os.cpu_count() or 1) // max(1, num_embedded))
    async with AsyncExitStack() as stack:
        yield await _open_upstream(name, config.upstreams[name], threads, metrics, stack, wait_s)


async def _open_upstream(
    name: str,
    config: UpstreamConfig,
    threads: int,
    metrics: Metrics,
    stack: AsyncExitStack,
    wait_s: float,
) -> Upstream:
    if isinstance(config, LiteLLMConfig):
        return await _open_hosted(name, config, metrics, stack, wait_s)
    try:
        template = None if config.chat_template is None else ChatTemplate(config.chat_template)
    except ConfigError as error:
        raise ConfigError(f"upstreams.{name}.{error}") from error
    if isinstance(config, EmbeddedConfig):
        server = await stack.enter_async_context(
            embedded_server(
                name,
                await asyncio.to_thread(_model_file, config),
                config.slots,
                config.context_tokens,
                config.threads or threads,
            )
        )
        base_url, api_key = server.base_url, None
    else:
        base_url, api_key = config.base_url, config.api_key
    client = await stack.enter_async_context(
        UpstreamClient(
            name,
            base_url,
            api_key,
            # Writing, scoring, and the short calls (tokens, health) beside them.
            max_connections=4 * config.max_concurrent,
            observe=metrics.upstream_request,
            on_retry=metrics.upstream_retry,
        )
    )
    local = await _local_reader(name, config, template)

    async def connected() -> Upstream:
        backend = await _connect(client, config, template, local)
        await backend.check()
        reader = local or backend
        return Upstream(
            name,
            reader,
            backend,
            backend.scorers,
            config.max_concurrent,
            why_not=backend.why_not,
            reasoning=await _reasoning(name, config, reader),
            markup=reader,
        )

    upstream = await _once_up(connected, wait_s)
    client.retry = RetryPolicy(config.retries.attempts, config.retries.total_s)
    return upstream


async def _reasoning(
    name: str,
    config: VllmConfig | SGLangConfig | LlamaCppConfig | EmbeddedConfig,
    reader: MarkupReader,
) -> Reasoning:
    """How the upstream's model thinks: as configured, or as its template shows."""
    found = Reasoning()
    if config.reasoning in {"auto", "think"}:
        found = await detect_reasoning(reader, Call("connect"))
    if config.reasoning not in {"auto", found.kind}:
        found = Reasoning(config.reasoning)
    if found.kind == "harmony" and isinstance(config, EmbeddedConfig | LlamaCppConfig):
        message = (
            "llama.cpp's server does not write the special tokens of the harmony format (gpt-oss): "
            "serve the model with vllm or sglang, or set reasoning: none"
        )
        raise ConfigError(f"upstreams.{name}.reasoning: {message}")
    return found


async def _open_hosted(
    name: str, config: LiteLLMConfig, metrics: Metrics, stack: AsyncExitStack, wait_s: float
) -> Upstream:
    library = load_library()  # first: it brings the usual encodings of tiktoken
    try:
        tokens = await asyncio.to_thread(load_tokenizer, config.tokenizer, None, counts=True)
    except ConfigError as error:
        raise ConfigError(f"upstreams.{name}.{error}") from error
    reader = CountingReader(name, tokens)
    calls = Calls(name, metrics.upstream_request, on_retry=metrics.upstream_retry)
    models = None
    if config.base_url is not None:
        models = await stack.enter_async_context(
            UpstreamClient(name, config.base_url, config.api_key, 1, metrics.upstream_request)
        )
    hosted = HostedModel(
        config.model,
        config.api_key,
        config.base_url,
        config.continuation,
        keep_reasoning=config.reasoning == "keep",
    )
    backend = LiteLLM(library, calls, models, hosted, reader)
    stack.push_async_callback(backend.aclose)
    await _once_up(backend.connect, wait_s)
    calls.retry = RetryPolicy(config.retries.attempts, config.retries.total_s)
    # Its thoughts stand in tags; what it reads is the text as it is, for it has no prompt to tag.
    reasoning = Reasoning("think" if config.reasoning == "keep" else "none")
    return Upstream(
        name, reader, backend, backend.scorers, config.max_concurrent, reasoning=reasoning
    )


async def _once_up(connect: Callable[[], Awaitable[T]], wait_s: float) -> T:
    """What `connect` gives, tried for `wait_s` seconds. Until a server has answered once, that
    and no retry policy says how long to try.
    """
    deadline = asyncio.get_running_loop().time() + wait_s
    while True:
        try:
            return await connect()
        except UpstreamError as error:
            if not error.retryable or asyncio.get_running_loop().time() >= deadline:
                raise
            await asyncio.sleep(_POLL_S)


async def _local_reader(
    name: str, config: UpstreamConfig, template: ChatTemplate | None
) -> LocalReader | None:
    """The tokenizer that the configuration names, where the server's own is not used."""
    if isinstance(config, EmbeddedConfig) or config.tokenizer == "server":
        return None
    try:
        reader = await asyncio.to_thread(load_tokenizer, config.tokenizer, template)
    except ConfigError as error:
        raise ConfigError(f"upstreams.{name}.{error}") from error
    if config.tokenizer.startswith(TIKTOKEN) and not reader.has_template:
        message = f"{config.tokenizer} has no chat template: set chat_template beside it"
        raise ConfigError(f"upstreams.{name}.tokenizer: {message}")
    return reader


def _model_file(config: EmbeddedConfig) -> Path:
    path = gguf_path(config.model)
    return dequantized(path) if config.dequantize else path


async def _connect(
    client: UpstreamClient,
    config: UpstreamConfig,
    template: ChatTemplate | None,
    local: LocalReader | None,
) -> _Backend:
    reads = local is None
    if isinstance(config, OpenAIConfig) and local is not None:
        return await OpenAI.connect(client, config.model, local)
    if isinstance(config, VllmConfig):
        return await Vllm.connect(client, config.model, template, reads=reads)
    if isinstance(config, SGLangConfig):
        return await SGLang.connect(client, config.model, template, reads=reads)
    return await LlamaCpp.connect(client, template)


def _models(config: Config, upstreams: dict[str, Upstream]) -> dict[str, ServedModel]:
    """The configured pairs, then each upstream alone under the roles that it has."""
    models: dict[str, ServedModel] = {}
    for name, model in config.models.items():
        pair = Pair(upstreams[model.student], upstreams[model.teacher])
        labels = {
            "student": config.upstreams[model.student].model,
            "teacher": config.upstreams[model.teacher].model,
        }
        models[name] = ServedModel(pair, model.params, dict(labels))
        _check_pair(name, models[name])
    for model in config.models.values():
        student, teacher = model.student, model.teacher
        models[f"student/{student}"] = ServedModel(
            Pair(upstreams[student], None),
            {"method": "student"},
            {"student": config.upstreams[student].model, "teacher": None},
        )
        models[f"teacher/{teacher}"] = ServedModel(
            Pair(None, upstreams[teacher]),
            {"method": "teacher"},
            {"student": None, "teacher": config.upstreams[teacher].model},
        )
    return models


def _check_pair(name: str, model: ServedModel) -> None:
    """Refuse a pair that would answer every request with a 400.

    Raises `ConfigError`.
    """
    options = parse_options(model.defaults)
    teacher = model.pair.of("teacher")
    if isinstance(teacher.writer, LiteLLM) and teacher.writer.continuation is None:
        message = (
            "must be prefill, continue_final_message or instruct, for litellm's model list does "
            f"not tell how '{teacher.name}' continues a text"
        )
        raise ConfigError(f"upstreams.{teacher.name}.continuation: {message}")
    if options.method == "motab":
        try:
            model.scorer(options, {})
        except RequestError as error:
            where = f"models.{name}.params.{str(error.param).removeprefix('motab.')}"
            raise ConfigError(f"{where}: {error}") from error
