"""A toy pair, and a scorer of a user's own in the place of its teacher's ways to score."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from proxy.config import Config
from tests.support.proxy.toy_pair import toys
from tests.support.servers.own_scorer import OwnScorer, served
from tests.support.toy_servers import Toy

NAME = "scoring/pair"
STATIC = {"boundary": "static", "base_threshold": 0.3}
BOUNDS = {"max_step_tokens": 25, "max_total_tokens": 60}
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}: "


@dataclass
class ScoredPair:
    """The servers of the pair `pair`, and of the pair `plain`, whose teacher scores."""

    servers: Mapping[str, Toy]
    scorers: Sequence[OwnScorer]

    def config(
        self,
        params: Mapping[str, Any] | None = None,
        server: Mapping[str, Any] | None = None,
        **scoring: Any,
    ) -> Config:
        """The configuration, with more keys under the pair's `scoring`."""
        upstreams = {
            name: {
                "kind": "vllm",
                "base_url": toy.base_url,
                "model": "toy",
                "chat_template": TEMPLATE,
                "reasoning": "none",
                "retries": {"attempts": 1},
            }
            for name, toy in self.servers.items()
        }
        both = {"student": "student", "teacher": "teacher"}
        urls = [scorer.base_url for scorer in self.scorers]
        own = {"http": urls[0] if len(urls) == 1 else urls, "retries": {"attempts": 1}, **scoring}
        models = {
            "pair": {**both, "scoring": own, "params": {**BOUNDS, **(params or STATIC)}},
            "plain": {**both, "params": BOUNDS},
        }
        content = {"server": server or {}, "upstreams": upstreams, "models": models}
        return Config.model_validate(content)


@asynccontextmanager
async def scored_pair(num_scorers: int = 1) -> AsyncIterator[ScoredPair]:
    """Serve all of them."""
    async with AsyncExitStack() as stack:
        servers = await stack.enter_async_context(toys())
        scorers = [await stack.enter_async_context(served(OwnScorer())) for _ in range(num_scorers)]
        yield ScoredPair(servers, scorers)
