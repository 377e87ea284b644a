"""Imitates the published script, written from its description, against the same servers.

One trajectory at a time: the student is asked for one step, with the delimiter as stop string;
then the teacher for the step's value; then for the entropy; each request waits for the previous one
and sends the whole text again. With several workers each process runs one trajectory at a time.

Only its cost is imitated, not its mistakes (docs/performance.md). Work that could count against the
script is spared: connections are kept, and on the simulated servers it uses their fast tokenizer.
"""

import http.client
import math
import multiprocessing
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

import orjson
import psutil
from tokenizers import Tokenizer

from benchmarks.simulator.words import encode

LoopKind = Literal["sglang", "vllm"]
"""The servers that give the log-probabilities of a prompt, which the loop needs."""
_TOP_K = 20
_MAX_STEP = 8192


@dataclass(frozen=True, slots=True)
class Order:
    """The work that a process is asked to do."""

    student_kind: LoopKind
    teacher_kind: LoopKind
    student_url: str
    teacher_url: str
    workers: int
    questions: Sequence[str]
    """The student's raw prompts."""
    teacher_prompts: Sequence[str]
    """The same questions as the teacher reads them."""
    student_model: str
    teacher_model: str
    tokenizer: str | None
    """The folder of the teacher's `tokenizer.json` or its Hugging Face name; None for the simulated
    servers'.
    """
    delimiter: str
    base_threshold: float
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Done:
    """A trajectory of the loop."""

    seconds: float
    num_steps: int
    score_calls: int
    breach: int | None
    num_tokens: int
    """The student's text in the teacher's tokens, without the correction."""


@dataclass(frozen=True, slots=True)
class Report:
    """All trajectories, the seconds from the first start to the last end, and the use by the
    processes: processor seconds, and the memory that each has alone.
    """

    seconds: float
    cpu_s: float
    memory_mb: float
    num_processes: int
    done: Sequence[Done]


def read_report(text: bytes) -> Report:
    """Parse the output of the process."""
    raw = orjson.loads(text)
    return Report(**{**raw, "done": [Done(**one) for one in raw["done"]]})


@dataclass(slots=True)
class _KeptConnection:
    """A connection that stays from one request to the next."""

    url: str
    _http: http.client.HTTPConnection = field(init=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        self._http = http.client.HTTPConnection(parts.hostname or "", parts.port)

    def post(self, path: str, body: dict[str, Any]) -> Any:  # noqa: ANN401
        """Return the answer's JSON."""
        try:
            response = self._sent(path, body)
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
            # Servers close a connection that was idle for some seconds.
            self._http.close()
            response = self._sent(path, body)
        content = response.read()
        if response.status != http.client.OK:
            raise RuntimeError(f"{self.url}{path} answered {response.status}: {content[:500]!r}")
        return orjson.loads(content)

    def _sent(self, path: str, body: dict[str, Any]) -> http.client.HTTPResponse:
        headers = {"content-type": "application/json"}
        self._http.request("POST", path, orjson.dumps(body), headers)
        return self._http.getresponse()


@dataclass(frozen=True, slots=True)
class _Written:
    text: str
    stopped: bool
    """True if the delimiter ended it; otherwise the text is over."""


class _Server(Protocol):
    def write(self, text: str, max_tokens: int, stop: str | None) -> _Written:
        """Return the next step or, without a stop string, the rest of the text."""
        ...

    def value(self, text: str, start: int, step: str) -> float:
        """Return the step's V, from the log-probabilities after its context of `start` tokens."""
        ...

    def entropy(self, text: str) -> float:
        """Return H of the next token."""
        ...


@dataclass(frozen=True, slots=True)
class _SGLang:
    """The three calls on SGLang."""

    _connection: _KeptConnection

    def write(self, text: str, max_tokens: int, stop: str | None) -> _Written:
        sampled = {"temperature": 0.0, "max_new_tokens": max_tokens, "stop": [stop] if stop else []}
        body = {"text": text, "sampling_params": sampled}
        reply = self._connection.post("/generate", body)
        matched = reply["meta_info"]["finish_reason"].get("matched")
        return _Written(reply["text"], stop is not None and matched == stop)

    def value(self, text: str, start: int, step: str) -> float:
        body = {
            "text": text + step,
            "sampling_params": {"max_new_tokens": 1},
            "return_logprob": True,
            "logprob_start_len": start - 1,
        }
        reply = self._connection.post("/generate", body)
        return _mean([row[0] for row in reply["meta_info"]["input_token_logprobs"][1:]])

    def entropy(self, text: str) -> float:
        body = {
            "text": text,
            "sampling_params": {"max_new_tokens": 1},
            "return_logprob": True,
            "top_logprobs_num": _TOP_K,
        }
        reply = self._connection.post("/generate", body)
        (top,) = reply["meta_info"]["output_top_logprobs"]
        return _entropy([row[0] for row in top])


@dataclass(frozen=True, slots=True)
class _Vllm:
    """The three calls on vLLM."""

    _connection: _KeptConnection
    _model: str

    def write(self, text: str, max_tokens: int, stop: str | None) -> _Written:
        body = {"prompt": text, "max_tokens": max_tokens, "stop": [stop] if stop else []}
        choice = self._choice(body)
        return _Written(choice["text"], stop is not None and choice["stop_reason"] == stop)

    def value(self, text: str, start: int, step: str) -> float:
        body = {"prompt": text + step, "max_tokens": 1, "prompt_logprobs": 0}
        rows = self._choice(body)["prompt_logprobs"][start:]
        return _mean([next(iter(row.values()))["logprob"] for row in rows])

    def entropy(self, text: str) -> float:
        choice = self._choice({"prompt": text, "max_tokens": 1, "logprobs": _TOP_K})
        return _entropy(list(choice["logprobs"]["top_logprobs"][0].values()))

    def _choice(self, body: dict[str, Any]) -> Any:  # noqa: ANN401
        body = {"model": self._model, "temperature": 0.0, **body}
        return self._connection.post("/v1/completions", body)["choices"][0]


def _server(kind: LoopKind, url: str, model: str) -> _Server:
    connection = _KeptConnection(url)
    return _SGLang(connection) if kind == "sglang" else _Vllm(connection, model)


class PublishedLoop:
    """Runs trajectories, one after another."""

    def __init__(self, order: Order) -> None:
        self._student = _server(order.student_kind, order.student_url, order.student_model)
        self._teacher = _server(order.teacher_kind, order.teacher_url, order.teacher_model)
        self._order = order
        self._count = _counter(order.tokenizer)

    def run(self, question: str, teacher_prompt: str) -> Done:
        """Run one trajectory, starting with the raw prompts."""
        started = time.perf_counter()
        order, text = self._order, ""
        begin = start = end = self._count(teacher_prompt)
        texts: list[str] = []
        values: list[float] = []
        breach: int | None = None
        while breach is None and (left := begin + order.max_tokens - start) > 0:
            written = self._student.write(question + text, min(_MAX_STEP, left), order.delimiter)
            if not written.text and not written.stopped:
                break
            texts.append(written.text + (order.delimiter if written.stopped else ""))
            context = teacher_prompt + text
            end = self._count(context + texts[-1])
            # A line break may merge with the line break before it into one token.
            values.append(self._teacher.value(context, min(start, end - 1), texts[-1]))
            # The third request of a step.
            entropy = self._teacher.entropy(context)
            if values[-1] < order.base_threshold * math.exp(-entropy):
                breach = len(values) - 1
                safe = teacher_prompt + "".join(texts[: _bifurcation(values)])
                self._teacher.write(safe, order.max_tokens, None)
            if not written.stopped:
                break
            text += texts[-1]
            start = end
        seconds = time.perf_counter() - started
        return Done(seconds, len(values), 2 * len(values), breach, end - begin)


def _counter(tokenizer: str | None) -> Callable[[str], int]:
    if tokenizer is None:
        return lambda text: len(encode(text))
    path = Path(tokenizer) / "tokenizer.json"
    of_model = (
        Tokenizer.from_file(str(path)) if path.is_file() else Tokenizer.from_pretrained(tokenizer)
    )
    return lambda text: len(of_model.encode(text).ids)


def _mean(logprobs: Sequence[float]) -> float:
    return math.exp(sum(logprobs) / len(logprobs))


def _entropy(logprobs: Sequence[float]) -> float:
    total = sum(map(math.exp, logprobs))
    shares = [math.exp(x) / total for x in logprobs]
    return -sum(share * math.log(share) for share in shares)


def _bifurcation(values: Sequence[float]) -> int:
    if len(values) == 1:
        return 0
    return min(range(1, len(values)), key=lambda index: values[index] - values[index - 1])


def _work(inbox: connection.Connection, order: Order) -> None:
    """Work off questions one at a time, until None comes."""
    loop = PublishedLoop(order)
    while (prompts := inbox.recv()) is not None:
        inbox.send(loop.run(*prompts))


def _main(order: Order) -> Report:
    """Answer the questions with the workers, each in its own process."""
    fork = multiprocessing.get_context("fork")
    pipes: list[connection.Connection] = []
    workers: list[ForkProcess] = []
    for _ in range(order.workers):
        ours, theirs = fork.Pipe()
        worker = fork.Process(target=_work, args=(theirs, order), daemon=True)
        worker.start()
        pipes.append(ours)
        workers.append(worker)
    cpu_before = time.process_time()
    started = time.perf_counter()
    waiting = list(zip(order.questions, order.teacher_prompts, strict=True))[::-1]
    done: list[Done] = []
    busy: list[connection.Connection] = []
    for pipe in pipes:
        if waiting:
            pipe.send(waiting.pop())
            busy.append(pipe)
    while busy:
        for ready in connection.wait([*busy, *(worker.sentinel for worker in workers)]):
            if any(worker.exitcode is not None for worker in workers):
                raise RuntimeError("a worker of the pool died")
            if not isinstance(ready, connection.Connection):
                continue
            done.append(ready.recv())
            if waiting:
                ready.send(waiting.pop())
            else:
                busy.remove(ready)
    seconds = time.perf_counter() - started
    # Count only memory that a process has alone: forked ones share the interpreter's pages.
    processes = [psutil.Process(), *(psutil.Process(worker.pid) for worker in workers)]
    memory_mb = sum(process.memory_full_info().uss for process in processes) / 1e6
    cpu_s = sum(sum(process.cpu_times()[:2]) for process in processes) - cpu_before
    for pipe in pipes:
        pipe.send(None)
    return Report(seconds, cpu_s, memory_mb, len(processes), done)


if __name__ == "__main__":
    sys.stdout.buffer.write(orjson.dumps(_main(Order(**orjson.loads(sys.argv[1])))) + b"\n")
