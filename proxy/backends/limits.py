"""Says how many tokens a model takes and knows, as far as its server tells."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """The most tokens that a model takes; None where that is not known.

    `context_tokens` hold a prompt and its answer together, `input_tokens` the prompt alone,
    `output_tokens` one answer. `vocabulary` is the number of different tokens: nobody can ask for
    more candidates.
    """

    context_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    vocabulary: int | None = None

    def __str__(self) -> str:
        """Return the limits in words, for the log."""
        named = {
            "tokens in all": self.context_tokens,
            "tokens of a question": self.input_tokens,
            "tokens of an answer": self.output_tokens,
            "different tokens": self.vocabulary,
        }
        known = [f"{number} {what}" for what, number in named.items() if number is not None]
        return ", ".join(known) or "not known"

    def lower(self, other: "ModelLimits") -> "ModelLimits":
        """Return the limits within which both hold."""
        return ModelLimits(
            _lower(self.context_tokens, other.context_tokens),
            _lower(self.input_tokens, other.input_tokens),
            _lower(self.output_tokens, other.output_tokens),
            _lower(self.vocabulary, other.vocabulary),
        )

    def hold(self, other: "ModelLimits") -> bool:
        """Return whether what keeps to `other` keeps to these, as far as both are known."""
        pairs = (
            (self.context_tokens, other.context_tokens),
            (self.input_tokens, other.input_tokens),
            (self.output_tokens, other.output_tokens),
        )
        return all(own is None or least is None or own >= least for own, least in pairs)


NO_LIMITS = ModelLimits()


def _lower(one: int | None, other: int | None) -> int | None:
    return min((limit for limit in (one, other) if limit is not None), default=None)


@runtime_checkable
class Limited(Protocol):
    """A server that knows its model's limits."""

    async def limits(self) -> ModelLimits:
        """Ask for the limits. What the server does not tell is not known, which is no error."""
        ...
