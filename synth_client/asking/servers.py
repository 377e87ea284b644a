"""Describes the servers of a run: their addresses, the key and the number of requests."""

from dataclasses import dataclass, field, replace

from synth_client.asking.client import SynthClient
from synth_client.asking.limiter import Limiter
from synth_client.questions.question import Synthesis


@dataclass(frozen=True, slots=True, kw_only=True)
class Servers:
    """Servers that serve the same model.

    `concurrency` and `min_concurrency` bound the requests at a time, over all servers together.
    """

    base_urls: tuple[str, ...]
    api_key: str | None = field(default=None, repr=False)
    concurrency: int = 64
    min_concurrency: int = 1

    def client(self, synthesis: Synthesis) -> SynthClient:
        """Return a new client for these servers, not yet opened."""
        return SynthClient(
            self.base_urls,
            synthesis,
            api_key=self.api_key,
            max_connections=self.concurrency,
        )

    def limiter(self) -> Limiter:
        """Return a new adaptive limit between the two bounds."""
        return Limiter(self.min_concurrency, self.concurrency)

    def share(self, num_workers: int) -> "Servers":
        """Return the same servers with one worker's share of the requests, at least one."""
        return replace(
            self,
            concurrency=max(self.concurrency // num_workers, 1),
            min_concurrency=max(self.min_concurrency // num_workers, 1),
        )
