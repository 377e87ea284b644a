"""Derives all seeds of a request from the client's seed, and the sampling of every write.

No seed repeats the random numbers of another choice or of an earlier write.
"""

import secrets
from dataclasses import asdict, replace
from hashlib import blake2b

import orjson

from proxy.backends.base import Question, Sampling
from proxy.core.params import Params
from proxy.core.types import Write

# 2^64 by the golden ratio: its multiples are far apart, also in the 31 bits that llama.cpp accepts.
_WRITE_STEP = 0x9E3779B97F4A7C15


def seed_of_choice(seed: int, index: int) -> int:
    """The seed of choice `index` of a request: the first choice has the request's own."""
    return _in_64_bits(seed + index)


def seed_of_write(seed: int, num_before: int) -> int:
    """The seed of an author's next write in a trajectory of `seed`, after `num_before` writes."""
    return _in_64_bits(seed + num_before * _WRITE_STEP)


def sampling_of_write(write: Write, student: Sampling, params: Params, num_before: int) -> Sampling:
    """The sampling of a write, which its author makes after `num_before` writes of its own."""
    sampling = student
    if write.author == "teacher":
        values = asdict(params.teacher)
        sampling = Sampling(
            params.teacher_temperature, stop=student.stop, seed=student.seed, **values
        )
    elif write.logprobs:
        sampling = replace(sampling, logprobs=True)
    if sampling.seed is not None:
        sampling = replace(sampling, seed=seed_of_write(sampling.seed, num_before))
    return sampling


def seed_of_draws(seed: int | None, question: Question) -> int:
    """64 bits for the draws of a trajectory's method, random if it has no seed.

    They depend on the question, because a whole dataset is asked with one seed, and the teacher
    would otherwise write the same steps of all trajectories.
    """
    if seed is None:
        return secrets.randbits(64)
    asked = [str(seed), question.prompt, *question.wire_messages()]
    if question.begun:
        asked.append(question.begun)
    return int.from_bytes(blake2b(orjson.dumps(asked), digest_size=8).digest())


def _in_64_bits(number: int) -> int:
    """The signed 64-bit integer that is `number` modulo 2^64."""
    return (number + 2**63) % 2**64 - 2**63
