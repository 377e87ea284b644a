"""Verifies answers, where needed in processes that can be killed.

math-verify hands hostile LaTeX to a computer algebra system, which may compute for years or fill
the memory, and nothing inside a process can stop that reliably. So a worker gets one answer at a
time and a limit; a worker that exceeds it is killed, and that answer's `correct` is None with a
reason, never False.
"""

import asyncio
import os
import select
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import orjson
import psutil

from synth_client.errors import InputError, Interrupted
from synth_client.judging.judgement import Judgement
from synth_client.judging.rules import PLAIN_RULES, check_rule
from trajectory_records.record import Record, Verification

_START_LIMIT_S: Final = 120.0
_LOOK_EVERY_MS: Final = 50
_READ_BYTES: Final = 65536
# Caches of the algebra system grow, and a new process starts without them.
_ANSWERS_OF_A_WORKER: Final = 2000
# A program needs seconds to start and hundreds of megabytes, but judges hundreds of answers a
# second, so few are enough.
_MOST_OF_A_PROGRAM: Final = 4


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits for one answer: wall-clock seconds, and bytes of the whole worker's memory."""

    seconds: float = 10.0
    num_bytes: int = 2 * 2**30


@dataclass(frozen=True, slots=True)
class Program:
    """A rule that a separate program applies, in whatever environment it needs.

    The command gets the seconds for one answer as its last argument, and speaks the protocol of
    `synth_client.judging.worker`. Records name the rule by `name`.
    """

    name: str
    command: tuple[str, ...]


def name_of(rule: str | Program) -> str:
    """Return the name by which records identify this rule."""
    return rule if isinstance(rule, str) else rule.name


class Verifier:
    """Judges records by one rule; a context manager that any thread may use.

    Workers are started as needed, at most `num_workers` (default: one per processor, but at most
    four of a `Program`). Raises `InputError` if the rule cannot be loaded.
    """

    def __init__(
        self, rule: str | Program, *, limits: Limits | None = None, num_workers: int | None = None
    ) -> None:
        self.rule = name_of(rule)
        self._program = rule if isinstance(rule, Program) else _own_program(check_rule(rule))
        self._limits = limits or Limits()
        num_processors = os.cpu_count() or 1
        most = _MOST_OF_A_PROGRAM if isinstance(rule, Program) else num_processors
        self.num_workers = num_workers or min(num_processors, most)
        self._threads = ThreadPoolExecutor(self.num_workers, thread_name_prefix="verify")
        self._places = threading.BoundedSemaphore(self.num_workers)
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()
        self._is_closed = False

    def start(self) -> None:
        """Start the first worker if needed, so that a bad rule fails early. Takes a second."""
        if self.rule not in PLAIN_RULES:
            worker = self._start()
            with self._lock:
                self._idle.append(worker)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        """Kill the workers, busy or not."""
        with self._lock:
            self._is_closed = True
            workers = list(self._all)
        for worker in workers:
            worker.kill()
        self._threads.shutdown(cancel_futures=True)
        for _ in range(self.num_workers):
            self._places.acquire()
        for worker in workers:
            worker.close()

    def verify(self, record: Record) -> Record:
        """Return the record with `predicted`, `correct` and `verification`, by the time limit."""
        plain = PLAIN_RULES.get(self.rule)
        if plain is None:
            judgement = self._judge(record.to_json_line())
        else:
            judgement = plain(record.output, record.answer)
        return record.model_copy(
            update={
                "predicted": judgement.predicted,
                "correct": judgement.correct,
                "verification": Verification(
                    rule=self.rule, fault=judgement.fault, scores=judgement.scores
                ),
            }
        )

    def submit(self, record: Record) -> Future[Record]:
        """Verify in a thread."""
        return self._threads.submit(self.verify, record)

    async def verified(self, record: Record) -> Record:
        """Verify without holding up the event loop."""
        if self.rule in PLAIN_RULES:
            return self.verify(record)
        return await asyncio.wrap_future(self.submit(record))

    async def judged(self, output: str, answer: str | None) -> Judgement:
        """Judge a text that is no record's, in a thread; a user's own rule gets these two fields
        only.
        """
        fields = {"output": output, "answer": answer}
        plain = PLAIN_RULES.get(self.rule)
        if plain is None:
            line = orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)
            judging = self._threads.submit(self._judge, line)
        else:
            judging = self._threads.submit(plain, output, answer)
        return await asyncio.wrap_future(judging)

    def _judge(self, line: bytes) -> Judgement:
        with self._places:
            while True:
                with self._lock:
                    worker = self._idle.pop() if self._idle else None
                worker = worker or self._start()
                try:
                    judgement = worker.judge(line)
                except BrokenPipeError:  # it died while it was idle
                    self._discard(worker)
                    continue
                if worker.is_spent:
                    self._discard(worker)
                else:
                    with self._lock:
                        self._idle.append(worker)
                if self._is_closed:
                    raise Interrupted("stopped while an answer was verified")
                return judgement

    def _start(self) -> "_Worker":
        with self._lock:
            if self._is_closed:
                raise Interrupted("stopped while an answer was verified")
            worker = _Worker(self._program, self._limits)
            self._all.add(worker)
        if (fault := worker.greeting()) is not None:
            self._discard(worker)
            raise InputError(f"the rule {self.rule} cannot be loaded: {fault}")
        return worker

    def _discard(self, worker: "_Worker") -> None:
        worker.kill()
        worker.close()
        with self._lock:
            self._all.discard(worker)


def _own_program(rule: str) -> Program:
    module = "synth_client.judging.worker"
    return Program(rule, (sys.executable, "-P", "-W", "ignore", "-m", module, rule))


class _Worker:
    """One process. Used by one thread at a time, but killed from any."""

    def __init__(self, program: Program, limits: Limits) -> None:
        self._limits = limits
        # The process needs our import paths; a user's callable may be in the current folder.
        paths = [path or str(Path.cwd()) for path in sys.path]
        self._process = subprocess.Popen(  # noqa: S603 - our own module, or a script of the trainer's
            [*program.command, str(limits.seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([*paths, str(Path.cwd())])},
            start_new_session=True,  # Ctrl-C is for us, and we finish the work under way
        )
        self._unread = b""
        self._num_answers = 0
        self._is_alive = True

    @property
    def is_spent(self) -> bool:
        """True if the worker is due for replacement."""
        return not self._is_alive or self._num_answers >= _ANSWERS_OF_A_WORKER

    def greeting(self) -> str | None:
        """Return why the rule cannot be loaded, None if it is loaded."""
        line = self._line(_START_LIMIT_S)
        if isinstance(line, str):
            return f"its process {line}"
        fault: str | None = orjson.loads(line)["fault"]
        return fault

    def judge(self, line: bytes) -> Judgement:
        """Judge a record's line. Raises BrokenPipeError if the process has already ended."""
        if self._process.stdin is None:
            raise BrokenPipeError
        self._process.stdin.write(line)
        self._process.stdin.flush()
        self._num_answers += 1
        answer = self._line(self._limits.seconds)
        if isinstance(answer, str):
            return Judgement(None, None, f"verification {answer}")
        return Judgement(**orjson.loads(answer))

    def kill(self) -> None:
        self._is_alive = False
        self._process.kill()

    def close(self) -> None:
        """Reap the process after it was killed."""
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()

    def _line(self, seconds: float) -> bytes | str:
        """Return the next line of the process, or words for how the process ended instead."""
        deadline = time.monotonic() + seconds
        while b"\n" not in self._unread:
            if self._says_something():
                continue
            if not self._is_alive:
                return f"ended with exit code {self._process.wait()}"
            if time.monotonic() > deadline:
                self.kill()
                return f"took longer than {seconds:g} s"
            if self._memory() > self._limits.num_bytes:
                self.kill()
                return f"took more than {self._limits.num_bytes / 2**20:,.0f} MiB of memory"
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _says_something(self) -> bool:
        if self._process.stdout is None:
            return False
        descriptor = self._process.stdout.fileno()
        poll = select.poll()  # select.select() cannot handle descriptors above 1023
        poll.register(descriptor, select.POLLIN)
        if not poll.poll(_LOOK_EVERY_MS):
            return False
        read = os.read(descriptor, _READ_BYTES)
        self._unread += read
        self._is_alive = self._is_alive and bool(read)
        return bool(read)

    def _memory(self) -> int:
        try:
            return int(psutil.Process(self._process.pid).memory_info().rss)
        except psutil.NoSuchProcess:
            return 0
