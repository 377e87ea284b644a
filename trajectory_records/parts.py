"""Defines the base of a record's parts, and the parts that few records have."""

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

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


class Chosen(Part):
    """The correction that was kept of several: its index, what decided, and the answer read from
    each, None where there was none. `lost` are those whose server failed, None without a loss.
    """

    index: Count
    by: Literal["reference", "majority"]
    answers: Annotated[tuple[str | None, ...], Field(min_length=2)]
    lost: Annotated[tuple[Count, ...], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _is_one_of_them(self) -> "Chosen":
        num, lost = len(self.answers), self.lost or ()
        if beyond := [index for index in (self.index, *lost) if index >= num]:
            raise ValueError(f"there is no correction {beyond[0]} among {num}")
        if self.index in lost:
            raise ValueError(f"correction {self.index} is chosen, but lost")
        return self

    @model_serializer(mode="wrap")
    def _without_empty_losses(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = handler(self)
        if self.lost is None:
            del fields["lost"]
        return fields


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
