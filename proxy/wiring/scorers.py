"""Finds the ways in which a server can score as a teacher, best first."""

import logging
from collections.abc import Mapping

from proxy.backends.base import GREEDY, Call, Scorer
from proxy.backends.judges.judge import find_judges
from proxy.backends.judges.openai_chat import OpenAIChatAsker
from proxy.backends.servers.llamacpp import LlamaCpp
from proxy.backends.servers.sampling_fields import SamplingFields
from proxy.backends.servers.sglang import SGLang
from proxy.backends.servers.vllm import Vllm
from proxy.backends.servers.vllm_cached import CachedVllm
from proxy.backends.tokens.codec import Codec
from proxy.backends.tokens.sent_text import SentText
from proxy.backends.transport.http import UpstreamClient
from proxy.core.types import Scoring
from proxy.errors import UpstreamRefused

_log = logging.getLogger(__name__)


async def scorers_of(
    backend: Vllm | SGLang | LlamaCpp, client: UpstreamClient, model: str, *, scores: bool
) -> tuple[tuple[Scorer, ...], Mapping[Scoring, str]]:
    """Return the scorers of a server that takes token ids, and why it lacks others.

    `scores` says whether it is a teacher; what others could do is not tried.
    """
    if not scores or not isinstance(backend, Vllm):
        return (backend,), {}
    try:
        return (await CachedVllm.prove(backend, client, model), backend), {}
    except UpstreamRefused as error:
        _log.info("%s", error)
        reason = str(error).removeprefix(f"upstream '{client.upstream}': ")
        return (backend,), {"cached_logprobs": reason}


async def judges_of(
    client: UpstreamClient, model: str, sampling: SamplingFields, codec: Codec
) -> tuple[Scorer, ...]:
    """Return the ways in which a server's chat route judges steps; none if it cannot."""
    try:
        asker = OpenAIChatAsker(client, model, sampling(GREEDY), SentText(client.upstream, codec))
        return await find_judges(asker, Call("connect"))
    except UpstreamRefused as error:
        _log.warning("%s; it will not be a judge", error)
        return ()
