"""Opens an upstream from its configuration: its server, its tokens and its ways to score."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from proxy.api.metrics import Metrics
from proxy.backends.base import GREEDY, Call, Sampling, Scorer
from proxy.backends.embedded.gguf_files import converted, dequantized, model_path
from proxy.backends.embedded.server import embedded_server
from proxy.backends.judges.judge import find_judges
from proxy.backends.judges.openai_chat import OpenAIChatAsker
from proxy.backends.limits import Limited, ModelLimits
from proxy.backends.servers.chat_route import ChatRoute
from proxy.backends.servers.chat_text import CountingReader
from proxy.backends.servers.litellm import HostedModel, LiteLLM
from proxy.backends.servers.litellm_library import load_library
from proxy.backends.servers.llamacpp import LlamaCpp
from proxy.backends.servers.openai import OpenAI, sampling_fields
from proxy.backends.servers.sampling_fields import (
    SamplingFields,
    llamacpp_sampling,
    sglang_sampling,
    vllm_sampling,
)
from proxy.backends.servers.sglang import SGLang
from proxy.backends.servers.vllm import Vllm
from proxy.backends.servers.vllm_cached import CachedVllm
from proxy.backends.tokens.chat_template import ChatTemplate
from proxy.backends.tokens.codec import Codec
from proxy.backends.tokens.sent_text import SentText
from proxy.backends.tokens.tokenizer import TIKTOKEN, LocalReader, load_tokenizer
from proxy.backends.transport.calls import Calls, Timeouts
from proxy.backends.transport.http import UpstreamClient
from proxy.backends.transport.resume import ResumingWriter
from proxy.backends.transport.retry import RetryPolicy
from proxy.backends.worker_slots import ALL_SLOTS, WorkerSlots
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
from proxy.core.thinking import Reasoning
from proxy.core.types import Scoring
from proxy.engine.upstream import Upstream
from proxy.errors import ConfigError, UpstreamError, UpstreamRefused
from proxy.wiring.templates import HostedTemplate, ReadTemplate

_ServerConfig = VllmConfig | SGLangConfig | LlamaCppConfig | OpenAIConfig | EmbeddedConfig

_POLL_S = 1.0
# llama.cpp has more samplers than ours, which a request for its own route may name.
_SAMPLERS = {"samplers", "mirostat", "dynatemp_range"}
_log = logging.getLogger(__name__)
T = TypeVar("T")


@asynccontextmanager
async def open_upstream(
    name: str,
    config: Config,
    metrics: Metrics,
    wait_s: float = 0.0,
    worker_slots: WorkerSlots = ALL_SLOTS,
) -> AsyncIterator[Upstream]:
    """Start one of the upstreams that `config` names; stop and close it at the end.

    `worker_slots` is this process's part of the requests that may be under way there.

    Raises the upstream's last `UpstreamError` if it does not answer within `wait_s` seconds.
    """
    num_embedded = sum(isinstance(u, EmbeddedConfig) for u in config.upstreams.values())
    # Servers that decode at once on the same cores slow each other down many times over.
    threads = max(1, (os.cpu_count() or 1) // max(1, num_embedded))
    scores = any(model.teacher == name for model in config.models.values())
    upstream = config.upstreams[name]
    num_places = len(worker_slots.of(range(upstream.max_concurrent)))
    upstream = upstream.model_copy(update={"max_concurrent": num_places})
    async with AsyncExitStack() as stack:
        if isinstance(upstream, LiteLLMConfig):
            yield await _open_hosted(name, upstream, metrics, stack, wait_s, scores=scores)
        else:
            yield await _open_server(
                name, upstream, threads, metrics, stack, wait_s, worker_slots, scores=scores
            )


async def _open_server(
    name: str,
    config: _ServerConfig,
    threads: int,
    metrics: Metrics,
    stack: AsyncExitStack,
    wait_s: float,
    worker_slots: WorkerSlots,
    *,
    scores: bool,
) -> Upstream:
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
            # For writing, for scoring, and for short calls (tokens, entropies, health).
            max_connections=4 * config.max_concurrent,
            observe=metrics.upstream_request,
            on_retry=metrics.upstream_retry,
            timeouts=_timeouts(config),
        )
    )
    local = await _local_reader(name, config, template)

    async def connected() -> Upstream:
        if isinstance(config, OpenAIConfig) and local is not None:
            return await _text_server(name, config, client, local, metrics, scores=scores)
        backend = await _connect(client, config, template, worker_slots, reads=local is None)
        await backend.check()
        scorers: tuple[Scorer, ...] = (backend,)
        why_not: dict[Scoring, str] = {}
        if scores and isinstance(backend, Vllm):
            try:
                scorers = (await CachedVllm.prove(backend, client, config.model), backend)
            except UpstreamRefused as error:
                _log.info("%s", error)
                why_not["cached_logprobs"] = str(error).removeprefix(f"upstream '{name}': ")
        writer, reader = ResumingWriter(backend, client), local or backend
        prompts = await _prompts_of(name, config, reader)
        num_places = config.max_concurrent
        if isinstance(backend, LlamaCpp):  # a queue for slots would not know what comes first
            num_places = min(num_places, backend.num_slots)
        return Upstream(
            name,
            reader,
            writer,
            scorers,
            num_places,
            await _reasoning(name, config, prompts),
            reader,
            "scaled" if isinstance(config, SGLangConfig) else "yes",
            why_not,
            gpus=config.gpus,
            chat=ChatRoute(client, config.model, _chat_defaults(config, _own_sampling(config))),
            template=prompts,
            on_wait=partial(metrics.student_wait, name),
            model=config.model,
            on_load=partial(metrics.upstream_load, name),
            limits=await _limits(name, config, backend, local),
        )

    upstream = await _once_up(connected, wait_s)
    client.retry = RetryPolicy(config.retries.attempts, config.retries.total_s)
    return upstream


async def _text_server(
    name: str,
    config: OpenAIConfig,
    client: UpstreamClient,
    reader: LocalReader,
    metrics: Metrics,
    *,
    scores: bool,
) -> Upstream:
    sampling = await sampling_fields(client, config.model)
    backend = await OpenAI.connect(client, config.model, reader, sampling, scores=scores)
    await backend.check()
    scorers: tuple[Scorer, ...] = backend.scorers
    if scores:
        scorers += await _judges(client, config.model, sampling, reader.codec)
    template = await _prompts_of(name, config, reader)
    return Upstream(
        name,
        reader,
        ResumingWriter(backend, client),
        scorers,
        config.max_concurrent,
        await _reasoning(name, config, template),
        reader,
        why_not=backend.why_not,
        gpus=config.gpus,
        chat=ChatRoute(client, config.model, _chat_defaults(config, sampling)),
        template=template,
        unsampled=backend.unsampled,
        model=config.model,
        on_load=partial(metrics.upstream_load, name),
        limits=await _limits(name, config, backend, reader),
        counts_exactly=False,
    )


async def _judges(
    client: UpstreamClient, model: str, sampling: SamplingFields, codec: Codec
) -> tuple[Scorer, ...]:
    try:
        asker = OpenAIChatAsker(client, model, sampling(GREEDY), SentText(client.upstream, codec))
        return await find_judges(asker, Call("connect"))
    except UpstreamRefused as error:
        _log.warning("%s; it will not be a judge", error)
        return ()


def _own_sampling(config: _ServerConfig) -> SamplingFields:
    if isinstance(config, VllmConfig):
        return vllm_sampling
    return sglang_sampling if isinstance(config, SGLangConfig) else llamacpp_sampling


def _chat_defaults(config: _ServerConfig, sampling: SamplingFields) -> dict[str, Any]:
    """The fields that a request for the server's own chat route gets unless it has them."""
    defaults = sampling(Sampling(1.0))
    for name in _SAMPLERS & defaults.keys():
        del defaults[name]
    if config.template_kwargs and not isinstance(config, OpenAIConfig):
        defaults["chat_template_kwargs"] = config.template_kwargs
    return defaults


async def _prompts_of(
    name: str, config: _ServerConfig, reader: Vllm | SGLang | LlamaCpp | LocalReader
) -> ReadTemplate:
    """The reader's chat template, with the variables that the configuration gives it."""
    template = ReadTemplate(reader, config.reasoning)
    if kwargs := config.template_kwargs:
        try:
            await template.check(kwargs, config.reasoning_effort)
        except ValueError as error:
            raise ConfigError(f"upstreams.{name}.{error}") from error
        reader.template_kwargs = kwargs
    return template


async def _reasoning(name: str, config: _ServerConfig, template: ReadTemplate) -> Reasoning:
    """The model's format of thoughts."""
    found = await template.reasoning({})
    if found.kind == "harmony" and not isinstance(config, VllmConfig | SGLangConfig):
        message = (
            "such a server does not write the special tokens of the harmony format (gpt-oss): "
            "serve the model with vllm or sglang, or set reasoning: none"
        )
        raise ConfigError(f"upstreams.{name}.reasoning: {message}")
    _log.info("upstream '%s': its model's reasoning format is %s", name, found)
    return found


async def _open_hosted(
    name: str,
    config: LiteLLMConfig,
    metrics: Metrics,
    stack: AsyncExitStack,
    wait_s: float,
    *,
    scores: bool,
) -> Upstream:
    library = load_library()  # first, because it brings tiktoken's usual encodings
    try:
        tokens = await asyncio.to_thread(load_tokenizer, config.tokenizer, None, counts=True)
    except ConfigError as error:
        raise ConfigError(f"upstreams.{name}.{error}") from error
    reader = CountingReader(name, tokens)
    calls = Calls(
        name,
        metrics.upstream_request,
        on_retry=metrics.upstream_retry,
        timeouts=_timeouts(config),
    )
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
        template_kwargs=config.template_kwargs,
    )
    # Providers' own APIs take messages as text; what other servers make of them is not known.
    is_own = config.base_url is not None or config.model.startswith("hosted_vllm/")
    sent = SentText(name, tokens.codec, families=True) if is_own else None
    backend = LiteLLM(library, calls, models, hosted, reader, sent)
    stack.push_async_callback(backend.aclose)
    if config.reasoning_effort is not None and not backend.takes_effort:
        message = "litellm's tables say that this model does not take it"
        raise ConfigError(f"upstreams.{name}.reasoning_effort: {message}")
    if config.chat_template_kwargs and not backend.takes_template_kwargs:
        message = "only a model of hosted_vllm/ has a chat template that takes variables"
        raise ConfigError(f"upstreams.{name}.chat_template_kwargs: {message}")
    await _once_up(lambda: backend.connect(scores=scores), wait_s)
    calls.retry = RetryPolicy(config.retries.attempts, config.retries.total_s)
    # Its thoughts are written in tags; it reads the text unchanged, as it has no prompt to tag.
    reasoning = Reasoning("think" if config.reasoning == "keep" else "none")
    return Upstream(
        name,
        reader,
        backend,
        backend.scorers,
        config.max_concurrent,
        reasoning=reasoning,
        gpus=config.gpus,
        template=HostedTemplate(backend, reasoning),
        unsampled=backend.unsampled,
        model=config.model,
        on_load=partial(metrics.upstream_load, name),
        limits=await _limits(name, config, backend),
        counts_exactly=False,
    )


async def _limits(
    name: str, config: UpstreamConfig, server: Limited, tokenizer: LocalReader | None = None
) -> ModelLimits:
    """The model's limits: the lower of the configured, the server's own and its tokenizer's."""
    vocabulary = None if tokenizer is None else tokenizer.codec.num_tokens
    limits = ModelLimits(config.context_tokens, None, config.max_output_tokens, vocabulary)
    limits = limits.lower(await server.limits())
    _log.info("upstream '%s': its model's limits are %s", name, limits)
    return limits


def _timeouts(config: UpstreamConfig) -> Timeouts:
    return Timeouts(config.answer_timeout_s, config.stall_timeout_s)


async def _once_up(connect: Callable[[], Awaitable[T]], wait_s: float) -> T:
    """Return the result of `connect`, tried for `wait_s` seconds. Until a server has answered once,
    this limit and not the retry policy decides how long to try.
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
    name: str, config: _ServerConfig, template: ChatTemplate | None
) -> LocalReader | None:
    """The tokenizer that the configuration names; None if the server's own is used."""
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


def _tokenizer_of(config: _ServerConfig) -> str:
    if not isinstance(config, EmbeddedConfig):
        return config.tokenizer
    path = model_path(config.model)
    return str(path) if path.is_dir() else "server"


def _model_file(config: EmbeddedConfig) -> Path:
    path = model_path(config.model)
    if path.is_dir():
        return converted(path)
    return dequantized(path) if config.dequantize else path


async def _connect(
    client: UpstreamClient,
    config: _ServerConfig,
    template: ChatTemplate | None,
    worker_slots: WorkerSlots,
    *,
    reads: bool,
) -> Vllm | SGLang | LlamaCpp:
    if isinstance(config, VllmConfig):
        return await Vllm.connect(client, config.model, template, reads=reads)
    if isinstance(config, SGLangConfig):
        return await SGLang.connect(client, config.model, template, reads=reads)
    return await LlamaCpp.connect(client, template, worker_slots)
