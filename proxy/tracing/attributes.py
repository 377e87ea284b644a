"""Names the attributes of spans: OpenTelemetry's own for generative AI where it has one.

https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
"""

from collections.abc import Mapping
from typing import Final, Literal

from proxy.tracing.tracer import Attributes

Operation = Literal["chat", "text_completion", "score"]
CallName = Literal["draft", "correction", "score"]
OPERATION: Final = "gen_ai.operation.name"
MODEL: Final = "gen_ai.request.model"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
CACHED_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
_FINISH_REASONS: Final = "gen_ai.response.finish_reasons"


def of_request(operation: Operation, model: str, request_id: str, method: str) -> Attributes:
    """Return what is known when the work on a request begins."""
    return {
        OPERATION: operation,
        "gen_ai.provider.name": "motab",
        MODEL: model,
        "motab.request_id": request_id,
        "motab.method": method,
    }


def of_trajectory(
    kind: Literal["chat", "text"],
    model: str,
    request_id: str,
    method: str,
    seed: int | None,
    choice: int,
) -> Attributes:
    """Return what is known when a trajectory begins, which is choice number `choice`, from 0."""
    operation: Operation = "chat" if kind == "chat" else "text_completion"
    known = of_request(operation, model, request_id, method)
    return {**known, "gen_ai.request.seed": seed, "motab.choice": choice}


def of_call(name: CallName, upstream: str, model: str | None) -> Attributes:
    """Return what is known when a call of an upstream begins."""
    return {
        OPERATION: "score" if name == "score" else "text_completion",
        "gen_ai.provider.name": "motab",
        MODEL: model,
        "motab.upstream": upstream,
    }


def of_usage(spent: Mapping[str, int | None]) -> Attributes:
    """Return what a trajectory has cost, by the fields of a `Usage`."""
    counts = dict(spent)
    shown = {
        INPUT_TOKENS: counts.pop("prompt_tokens"),
        OUTPUT_TOKENS: counts.pop("completion_tokens"),
    }
    return shown | {f"motab.usage.{name}": count for name, count in counts.items()}


def of_end(finish_reason: str) -> Attributes:
    """Return why a text ended."""
    return {_FINISH_REASONS: (finish_reason,)}
