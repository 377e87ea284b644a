"""Defines the base of a record's parts, a model's limit, and token log-probabilities."""

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from proxy.core.types import Party

Count = Annotated[int, Field(ge=0)]


class Part(BaseModel):
    """The base of all parts of a record: frozen, without coercion or unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class LimitedBy(Part):
    """The limit that ended a text: whose model has it, and its tokens, None if not known."""

    model: Party
    limit: Literal["context_tokens", "max_output_tokens"]
    tokens: Count | None


class ModelLogprobs(Part):
    """The log-probabilities of the output under one model, for its own tokens, which cover it all.

    `logprobs` are natural logarithms. `ends[i]` is the number of characters that are complete once
    token i is read: the offset at which the token ends or, if it ends inside a character, the
    offset at which that character begins. A token that ends the turn is not included.
    """

    ends: tuple[Count, ...]
    logprobs: tuple[Annotated[float, Field(le=0.0)], ...]

    @model_validator(mode="after")
    def _is_one_each(self) -> "ModelLogprobs":
        if len(self.ends) != len(self.logprobs):
            raise ValueError(f"{len(self.ends)} ends, but {len(self.logprobs)} logprobs")
        for index, (before, end) in enumerate(pairwise(self.ends), start=1):
            if end < before:
                raise ValueError(f"token {index} ends at {end}, before the one before it")
        return self


class TokenLogprobs(Part):
    """The output under both models, without any sampling temperature."""

    student: ModelLogprobs
    teacher: ModelLogprobs
