"""`motab serve --workers N`: real processes in front of a scripted llama.cpp server."""

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.paths import ROOT
from tests.support.replay import Replay, json_reply, replay, stream_reply

MOTAB = (sys.executable, "-m", "motab")
REQUEST = {"model": "student/only", "prompt": "Q"}
LIMIT = 16
PATIENCE_S = 20.0
END = {
    "content": "x",
    "stop": True,
    "stop_type": "eos",
    "tokens_predicted": 2,
    "timings": {"cache_n": 0},
}
LOADING = json_reply({"error": {"message": "Loading model", "code": 503}}, 503)


@pytest.fixture
async def llama() -> AsyncIterator[Replay]:
    """A server that is up and writes one token at once."""
    async with replay() as up:
        up.on("GET", "/props", json_reply({"total_slots": 4 * LIMIT}))
        up.on("POST", "/tokenize", json_reply({"tokens": [7]}))
        up.on("POST", "/apply-template", json_reply({"prompt": "Q:"}))
        up.on("GET", "/health", json_reply({"status": "ok"}))
        writes_after(up, None)
        yield up


def writes_after(up: Replay, gate: asyncio.Event | None) -> None:
    end = b"data: " + json.dumps(END).encode() + b"\n\n"
    up.on("POST", "/completion", stream_reply(end, after=gate))


@dataclass(slots=True)
class Served:
    """A `motab serve`, what it said so far, and where it serves."""

    process: asyncio.subprocess.Process
    lines: list[str] = field(default_factory=list)
    said: asyncio.Condition = field(default_factory=asyncio.Condition)
    url: str = ""

    async def listen(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            async with self.said:
                self.lines.append(line.decode())
                self.said.notify_all()

    async def until_said(self, text: str) -> str:
        """The first line with it."""

        def found() -> str | None:
            return next((line for line in self.lines if text in line), None)

        try:
            async with asyncio.timeout(PATIENCE_S), self.said:
                line = await self.said.wait_for(found)
        except TimeoutError:
            pytest.fail("".join(self.lines))
        assert line is not None
        return line

    async def ended(self) -> int:
        async with asyncio.timeout(PATIENCE_S):
            return await self.process.wait()

    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def connections(self, worker: psutil.Process) -> int:
        """Those that it has accepted from clients."""
        port = int(self.url.rpartition(":")[2])
        return sum(
            c.status == psutil.CONN_ESTABLISHED and c.laddr.port == port
            for c in worker.net_connections("tcp")
        )


@asynccontextmanager
async def motab(
    llama: Replay,
    folder: Path,
    *arguments: str,
    num: int = 2,
    ready: bool = True,
    motab: tuple[str, ...] = MOTAB,
    cwd: Path = ROOT,
    **server: Any,
) -> AsyncIterator[Served]:
    """It serves with `num` workers, unless `ready` is not waited for. Afterwards it is gone."""
    command = [*motab, "serve", "--config", str(config(llama, folder, **server)), "--port", "0"]
    process = await asyncio.create_subprocess_exec(
        *command,
        "--workers",
        str(num),
        *arguments,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)},
        stderr=asyncio.subprocess.PIPE,
        # As a terminal's foreground job is.
        process_group=0,
    )
    served = Served(process)
    async with asyncio.TaskGroup() as group:
        group.create_task(served.listen())
        try:
            if ready:
                found = re.search(r"http://[\d.:]+(?=/v1)", await served.until_said("serving pair"))
                assert found
                served.url = found[0]
            yield served
        finally:
            if process.returncode is None:
                process.kill()  # its workers go with it, which a test of its own holds it to
            await process.wait()


def config(llama: Replay, folder: Path, **server: Any) -> Path:
    upstream = {"kind": "llamacpp", "base_url": llama.client.base_url, "model": "m"}
    written = {
        "server": server,
        "upstreams": {"only": upstream},
        "models": {"pair": {"student": "only", "teacher": "only"}},
    }
    path = folder / "motab.yaml"
    path.write_text(json.dumps(written), encoding="utf-8")
    return path


async def clients(stack: AsyncExitStack, num: int) -> list[httpx.AsyncClient]:
    """Each has a connection of its own."""
    made = [httpx.AsyncClient(timeout=PATIENCE_S) for _ in range(num)]
    for client in made:
        await stack.enter_async_context(client)
    return made


async def ask(client: httpx.AsyncClient, served: Served) -> int:
    """The answer's status; 0 where the connection broke."""
    try:
        response = await client.post(f"{served.url}/v1/completions", json=REQUEST)
    except httpx.TransportError:
        return 0
    return response.status_code


async def ask_all(asking: Sequence[httpx.AsyncClient], served: Served) -> list[int]:
    return list(await asyncio.gather(*(ask(client, served) for client in asking)))


async def samples(served: Served) -> dict[tuple[str, ...], float]:
    """The metrics of whichever worker answers."""
    async with httpx.AsyncClient(timeout=PATIENCE_S) as client:
        text = (await client.get(f"{served.url}/metrics")).text
    found: dict[tuple[str, ...], float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, *(sample.labels[name] for name in sorted(sample.labels)))
            assert key not in found
            found[key] = sample.value
    return found


async def num_safe(served: Served) -> float:
    return (await samples(served))["motab_trajectories_total", "student", "student/only", "safe"]


async def until_active(served: Served, num: int) -> None:
    deadline = asyncio.get_running_loop().time() + PATIENCE_S
    while (await samples(served))["motab_active_trajectories",] != num:
        assert asyncio.get_running_loop().time() < deadline, "".join(served.lines)


async def until_refused(served: Served) -> None:
    host, port = served.url.removeprefix("http://").split(":")
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                _, writer = await asyncio.open_connection(host, int(port))
            except ConnectionRefusedError:
                return
            except ConnectionResetError:  # it came while a worker was closing its socket
                continue
            writer.close()


async def test_every_worker_serves_and_any_tells_the_metrics_of_all(
    llama: Replay, tmp_path: Path
) -> None:
    async with motab(llama, tmp_path) as served, AsyncExitStack() as stack:
        assert await ask_all(await clients(stack, 32), served) == [200] * 32
        accepted = [served.connections(worker) for worker in served.workers()]
        assert len(accepted) == 2
        assert sum(accepted) == 32
        assert all(accepted)
        for _ in range(8):  # each time over a new connection
            found = await samples(served)
            route = "/v1/completions"
            assert found["motab_requests_total", route, "200"] == 32
            assert found["motab_request_seconds_count", route] == 32
            assert found["motab_tokens_total", "student", "student/only"] == 32
            assert found["motab_active_trajectories",] == 0


async def test_one_worker_is_the_process_itself(llama: Replay, tmp_path: Path) -> None:
    async with motab(llama, tmp_path, num=1) as served, AsyncExitStack() as stack:
        assert not served.workers()
        assert await ask_all(await clients(stack, 4), served) == [200] * 4
        assert await num_safe(served) == 4
        served.process.send_signal(signal.SIGTERM)
        assert await served.ended() == 0


def to_the_supervisor(served: Served) -> None:
    served.process.send_signal(signal.SIGTERM)


def from_the_terminal(served: Served) -> None:
    os.killpg(served.process.pid, signal.SIGINT)


def from_a_service_manager(served: Served) -> None:
    for process in (*served.workers(), psutil.Process(served.process.pid)):
        process.terminate()


@pytest.mark.parametrize(
    "signalled", [to_the_supervisor, from_the_terminal, from_a_service_manager]
)
async def test_a_signal_lets_every_worker_finish_what_is_under_way(
    signalled: Callable[[Served], None], llama: Replay, tmp_path: Path
) -> None:
    gate = asyncio.Event()
    writes_after(llama, gate)
    async with motab(llama, tmp_path) as served, AsyncExitStack() as stack:
        running = asyncio.create_task(ask_all(await clients(stack, LIMIT), served))
        await until_active(served, LIMIT)
        signalled(served)
        await served.until_said(f"draining: {LIMIT} trajectories under way")
        await until_refused(served)
        # None took it for two signals and stopped.
        done, _ = await asyncio.wait({running}, timeout=0.5)
        assert not done
        gate.set()
        assert await running == [200] * LIMIT
        assert await served.ended() == 0


async def test_a_second_signal_stops_every_worker_at_once(llama: Replay, tmp_path: Path) -> None:
    writes_after(llama, asyncio.Event())
    async with motab(llama, tmp_path) as served, AsyncExitStack() as stack:
        running = asyncio.create_task(ask_all(await clients(stack, LIMIT), served))
        await until_active(served, LIMIT)
        workers = served.workers()
        served.process.send_signal(signal.SIGTERM)
        await served.until_said("draining")
        await until_refused(served)
        assert all(worker.is_running() for worker in workers)
        served.process.send_signal(signal.SIGTERM)
        assert await served.ended() == 0
        assert not any(worker.is_running() for worker in workers)
        assert 200 not in await running


async def test_a_killed_worker_costs_its_own_requests_only_and_is_replaced(
    llama: Replay, tmp_path: Path
) -> None:
    gate = asyncio.Event()
    async with (
        motab(llama, tmp_path, max_concurrent=LIMIT) as served,
        AsyncExitStack() as stack,
    ):
        asking = await clients(stack, LIMIT)
        assert await ask_all(asking, served) == [200] * LIMIT
        writes_after(llama, gate)
        running = asyncio.create_task(ask_all(asking, served))
        await until_active(served, LIMIT)
        victim = served.workers()[0]
        num_lost = served.connections(victim)
        assert await ask_all(await clients(stack, 1), served) == [429]
        victim.kill()
        await served.until_said("ended: killed by signal 9 (Killed); starting another")
        await served.until_said("serves again")
        gate.set()
        assert sorted(await running) == [0] * num_lost + [200] * (LIMIT - num_lost)
        assert len(served.workers()) == 2
        assert await num_safe(served) == 2 * LIMIT - num_lost

        await until_active(served, 0)

        # The dead worker's seats are free.
        gate.clear()
        running = asyncio.create_task(ask_all(await clients(stack, LIMIT), served))
        await until_active(served, LIMIT)
        assert await ask_all(await clients(stack, 1), served) == [429]
        gate.set()
        assert await running == [200] * LIMIT
        assert await num_safe(served) == 3 * LIMIT - num_lost


async def test_the_limit_of_trajectories_is_that_of_all_workers(
    llama: Replay, tmp_path: Path
) -> None:
    gate = asyncio.Event()
    writes_after(llama, gate)
    async with motab(llama, tmp_path, max_concurrent=3) as served, AsyncExitStack() as stack:
        running = {asyncio.create_task(ask(c, served)) for c in await clients(stack, LIMIT)}
        async with asyncio.timeout(PATIENCE_S):
            while len(running) > 3:
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                assert {task.result() for task in done} == {429}
        await until_active(served, 3)
        gate.set()
        assert await asyncio.gather(*running) == [200] * 3


@pytest.mark.parametrize("ready", [True, False], ids=["serving", "starting"])
async def test_workers_do_not_outlive_a_killed_supervisor(
    ready: bool, llama: Replay, tmp_path: Path
) -> None:
    if not ready:
        llama.on("GET", "/props", LOADING)
    async with motab(llama, tmp_path, "--wait", "60", ready=ready) as served:
        await llama.until_seen(2)
        workers = served.workers()
        assert len(workers) == 2
        served.process.kill()
        _, alive = await asyncio.to_thread(psutil.wait_procs, workers, PATIENCE_S)
        assert not alive


async def test_a_signal_ends_workers_that_wait_for_an_upstream(
    llama: Replay, tmp_path: Path
) -> None:
    llama.on("GET", "/props", LOADING)
    async with motab(llama, tmp_path, "--wait", "60", ready=False) as served:
        await llama.until_seen(2)
        served.process.send_signal(signal.SIGTERM)
        assert await served.ended() == 0


async def failure(served: Served) -> str:
    """The one error that it ends with."""
    assert await served.ended() == 1
    await served.until_said("motab: ")
    (line,) = (line for line in served.lines if line.startswith("motab: "))
    assert served.lines[-1] == line
    return line.removeprefix("motab: ")


async def test_an_upstream_that_does_not_answer_is_told_once(llama: Replay, tmp_path: Path) -> None:
    llama.on("GET", "/props", LOADING)
    async with motab(llama, tmp_path, num=3, ready=False) as served:
        assert (await failure(served)).startswith("upstream 'only': /props answered 503: ")
        assert len(served.lines) == 1


async def test_a_server_with_too_few_slots_is_told_once(llama: Replay, tmp_path: Path) -> None:
    llama.on("GET", "/props", json_reply({"total_slots": 1}))
    async with motab(llama, tmp_path, ready=False) as served:
        wanted = "upstreams.only: its server has 1 slots and 2 workers need one each: "
        assert (await failure(served)).startswith(wanted)


async def test_a_server_does_not_begin_with_some_of_its_workers(
    llama: Replay, tmp_path: Path
) -> None:
    gate = asyncio.Event()
    llama.on("GET", "/props", json_reply({"total_slots": 2}), replace(LOADING, after=gate))
    async with motab(llama, tmp_path, ready=False) as served:
        await llama.until_seen(8)
        await asyncio.sleep(0.5)  # one of them may serve
        gate.set()
        assert (await failure(served)).startswith("upstream 'only': /props answered 503: ")


async def test_workers_that_die_as_they_start_end_the_server(llama: Replay, tmp_path: Path) -> None:
    llama.on("GET", "/props", LOADING)
    async with motab(llama, tmp_path, "--wait", "60", ready=False) as served:
        await llama.until_seen(2)
        served.workers()[0].kill()
        wanted = "a worker ended as it started: killed by signal 9 (Killed)\n"
        assert await failure(served) == wanted


async def test_a_worker_is_tried_again_while_others_serve(llama: Replay, tmp_path: Path) -> None:
    async with motab(llama, tmp_path) as served, AsyncExitStack() as stack:
        llama.on("GET", "/props", LOADING)
        served.workers()[0].kill()
        await served.until_said("/props answered 503")
        assert await ask_all(await clients(stack, 8), served) == [200] * 8
        llama.on("GET", "/props", json_reply({"total_slots": 2}))
        await served.until_said("serves again")


async def test_where_no_worker_can_serve_any_more_it_ends(llama: Replay, tmp_path: Path) -> None:
    async with motab(llama, tmp_path) as served:
        llama.on("GET", "/props", LOADING)
        for worker in served.workers():
            worker.kill()
        assert (await failure(served)).startswith("upstream 'only': /props answered 503: ")


async def test_a_second_server_does_not_share_the_address(llama: Replay, tmp_path: Path) -> None:
    async with motab(llama, tmp_path) as first:
        port = first.url.rpartition(":")[2]
        async with motab(llama, tmp_path, "--port", port, ready=False) as second:
            said = await failure(second)
    assert said.startswith(f"cannot listen on 127.0.0.1:{port}: Address already in use")


async def test_workers_are_made_of_the_command_s_modules_wherever_it_is_started(
    llama: Replay, tmp_path: Path
) -> None:
    script, cwd = tmp_path / "bin" / "motab", tmp_path / "cwd"
    (cwd / "proxy").mkdir(parents=True)
    (cwd / "proxy" / "__init__.py").write_text("raise RuntimeError", encoding="utf-8")
    script.parent.mkdir()
    script.write_text("from motab.cli import main; main()", encoding="utf-8")
    command = (sys.executable, str(script))
    async with motab(llama, tmp_path, motab=command, cwd=cwd) as served, AsyncExitStack() as stack:
        assert await ask_all(await clients(stack, 4), served) == [200] * 4
