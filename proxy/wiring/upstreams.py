"""Opens an upstream from its configuration: its server, its tokens and its ways to score."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, TypeVar

from proxy.api.metrics import Metrics
from proxy.backends.base import Sampling, Scorer
from proxy.backends.embedded.server import embedded_server
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
from proxy.backends.tokens.chat_template import ChatTemplate
from proxy.backends.tokens.sent_text import SentText
from proxy.backends.tokens.tokenizer import LocalReader, load_tokenizer
from proxy.backends.transport.calls import Calls, Timeouts
from proxy.backends.transport.http import UpstreamClient
from proxy.backends.transport.replicas import Replicas
from proxy.backends.transport.resume import ResumingWriter
from proxy.backends.transport.retry import RetryPolicy
from proxy.backends.worker_slots import ALL_SLOTS, WorkerSlots
from proxy.config import (
    Config,
    EmbeddedConfig,
    LiteLLMConfig,
    OpenAIConfig,
    SGLangConfig,
    UpstreamConfig,
    VllmConfig,
)
from proxy.core.thinking import Reasoning
from proxy.engine.upstream import Upstream
from proxy.errors import ConfigError, MotabError, UpstreamError
from proxy.wiring.model_files import ServerUpstream, local_reader, model_file
from proxy.wiring.replicas import Backend, SameModel
from proxy.wiring.scorers import judges_of, scorers_of
from proxy.wiring.templates import HostedTemplate, ReadTemplate

_POLL_S = 1.0
TIMEOUTS_OF_A_PROBE = Timeouts(answer_s=30, stall_s=30)
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
    config: ServerUpstream,
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
                await asyncio.to_thread(model_file, config),
                config.slots,
                config.context_tokens,
                config.threads or threads,
            )
        )
        urls, api_key = [server.base_url], None
    else:
        urls, api_key = config.urls, config.api_key
    replicas = await stack.enter_async_context(Replicas(name, urls, metrics, worker_slots.worker))
    client = await stack.enter_async_context(
        UpstreamClient(
            name,
            replicas,
            api_key,
            # For writing, for scoring, and for short calls (tokens, entropies, health).
            max_connections=4 * config.max_concurrent,
            observe=metrics.upstream_request,
            on_retry=metrics.upstream_retry,
            timeouts=_timeouts(config),
        )
    )
    local = await local_reader(name, config, template)

    def client_of_one(url: str) -> UpstreamClient:
        observe = metrics.upstream_request
        return UpstreamClient(name, url, api_key, 4, observe, timeouts=TIMEOUTS_OF_A_PROBE)

    async def connect(to: UpstreamClient) -> Backend:
        if isinstance(config, OpenAIConfig) and local is not None:
            sampling = await sampling_fields(to, config.model)
            return await OpenAI.connect(to, config.model, local, sampling, scores=scores)
        return await _connect(to, config, template, worker_slots, reads=local is None)

    same = SameModel(client_of_one, connect, config.model, renders=local is None, scores=scores)

    async def connected() -> Upstream:
        await replicas.open(same.verify)
        backend = await connect(client)
        await backend.check()
        same.serve(backend, client)
        if isinstance(backend, OpenAI):
            return await _text_server(
                name, config, client, backend, local, same, metrics, scores=scores
            )
        await _learn_vocabulary(name, backend, local)
        scorers, why_not = await scorers_of(backend, client, config.model, scores=scores)
        writer, reader = ResumingWriter(backend, client), local or backend
        prompts = await _prompts_of(name, config, reader)
        num_places = config.max_concurrent
        if isinstance(backend, LlamaCpp):  # a queue for slots would not know what comes first
            num_places = min(num_places, backend.num_slots * len(urls))
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
            limits=await _limits(name, config, same, local),
        )

    upstream = await once_up(connected, wait_s)
    client.retry = RetryPolicy(config.retries.attempts, config.retries.total_s)
    same.promise(upstream.limits)
    upstream.replicas = replicas
    replicas.probe()
    return upstream


async def _learn_vocabulary(
    name: str, backend: Vllm | SGLang | LlamaCpp, local: LocalReader | None
) -> None:
    """Ask the server for its vocabulary, which must have the tokens of a local tokenizer."""
    num_tokens = (await backend.learn_vocabulary()).num_tokens
    if local is not None and num_tokens is not None:
        try:
            await local.require_within(num_tokens)
        except ConfigError as error:
            raise ConfigError(f"upstreams.{name}.{error}") from error


async def _text_server(
    name: str,
    config: ServerUpstream,
    client: UpstreamClient,
    backend: OpenAI,
    reader: LocalReader | None,
    same: SameModel,
    metrics: Metrics,
    *,
    scores: bool,
) -> Upstream:
    if reader is None:
        raise MotabError(f"upstream '{name}' has no tokenizer; please report this")
    scorers: tuple[Scorer, ...] = backend.scorers
    if scores:
        scorers += await judges_of(client, config.model, backend.sampling, reader.codec)
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
        chat=ChatRoute(client, config.model, _chat_defaults(config, backend.sampling)),
        template=template,
        unsampled=backend.unsampled,
        model=config.model,
        on_load=partial(metrics.upstream_load, name),
        limits=await _limits(name, config, same, reader),
        counts_exactly=False,
    )


def _own_sampling(config: ServerUpstream) -> SamplingFields:
    if isinstance(config, VllmConfig):
        return vllm_sampling
    return sglang_sampling if isinstance(config, SGLangConfig) else llamacpp_sampling


def _chat_defaults(config: ServerUpstream, sampling: SamplingFields) -> dict[str, Any]:
    """The fields that a request for the server's own chat route gets unless it has them."""
    defaults = sampling(Sampling(1.0))
    for name in _SAMPLERS & defaults.keys():
        del defaults[name]
    if config.template_kwargs and not isinstance(config, OpenAIConfig):
        defaults["chat_template_kwargs"] = config.template_kwargs
    return defaults


async def _prompts_of(
    name: str, config: ServerUpstream, reader: Vllm | SGLang | LlamaCpp | LocalReader
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


async def _reasoning(name: str, config: ServerUpstream, template: ReadTemplate) -> Reasoning:
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
    await once_up(lambda: backend.connect(scores=scores), wait_s)
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


async def once_up(connect: Callable[[], Awaitable[T]], wait_s: float) -> T:
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


async def _connect(
    client: UpstreamClient,
    config: ServerUpstream,
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
