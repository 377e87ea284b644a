"""Keeps requests within the tokens of a server's model, because servers die of others or answer
them with wrong values.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from proxy.backends.base import Call
from proxy.backends.token_ids import TokenIds
from proxy.backends.transport.http import UpstreamClient
from proxy.errors import UnknownToken, UpstreamRefused

_log = logging.getLogger(__name__)

UNKNOWN_BIAS = {"-1": 0.0}
"""A `logit_bias` that a server refuses before anything is computed, and that changes nothing."""
_HIGHEST = re.compile(r"keys in \[0, (\d+)\]")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokens of an upstream's model: the ids below `num_tokens`, None if that is not known."""

    upstream: str
    num_tokens: int | None = None

    def require(self, token_ids: Sequence[int]) -> None:
        """Raise `UnknownToken` for an id that the model does not have."""
        if not token_ids:
            return
        if isinstance(token_ids, TokenIds):
            lowest, highest = token_ids.extremes
        else:
            lowest, highest = min(token_ids), max(token_ids)
        if lowest < 0:
            raise self._unknown(lowest)
        if self.num_tokens is not None and highest >= self.num_tokens:
            raise self._unknown(highest)

    def require_candidates(self, top_k: int) -> None:
        """Raise `UpstreamRefused` for more candidates than the model has tokens."""
        if self.num_tokens is not None and top_k > self.num_tokens:
            message = (
                f"{top_k} candidates were asked for, and its model has {self.num_tokens} tokens; "
                f"entropy_top_k: {self.num_tokens} would work"
            )
            raise UpstreamRefused(self.upstream, message, status=HTTPStatus.BAD_REQUEST)

    def _unknown(self, token_id: int) -> UnknownToken:
        known = "no negative ones"
        if self.num_tokens is not None:
            known = f"the ids 0 to {self.num_tokens - 1}"
        message = f"it was to be sent the token {token_id}, and its model has {known}"
        return UnknownToken(self.upstream, message, status=HTTPStatus.BAD_REQUEST)


async def asked_vocabulary(client: UpstreamClient, path: str, body: dict[str, Any]) -> Vocabulary:
    """Send SGLang a request with `UNKNOWN_BIAS`, whose refusal names the vocabulary.

    No page of SGLang's does.
    """
    words = "it accepted a bias of token -1"
    try:
        await client.post(path, body, Call("connect"))
    except UpstreamRefused as error:
        words = str(error)
    if (highest := _HIGHEST.search(words)) is not None:
        return Vocabulary(client.upstream, int(highest[1]) + 1)
    _log.warning(
        "upstream '%s': how many tokens its model has is not known, so tokens that it does not"
        " have are noticed only if its server refuses them (%s)",
        client.upstream,
        words,
    )
    return Vocabulary(client.upstream)
