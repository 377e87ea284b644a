"""Tests runs of `motab synth` that are killed, signalled or out of disk space."""

import asyncio
import random
import resource
import signal
from pathlib import Path

from tests.support.patience import PATIENCE_S
from tests.support.synth_client.openai_server import Scripted
from tests.support.synth_client.runs import Process, records, run, steady, write_questions


async def test_killed_again_and_again_it_ends_with_what_an_undisturbed_run_has(
    server: Scripted, tmp_path: Path
) -> None:
    source = write_questions(tmp_path / "in.jsonl", 200)
    await run(server, source, tmp_path / "whole.jsonl", num_samples=2)
    server.answered.clear()
    server.delay_s = 0.03
    killed = Process(
        server.base_url, source, tmp_path / "out.jsonl", "--n", "2", "--concurrency", "8"
    )
    draw = random.Random(1)
    for _ in range(20):
        process = await killed.start()
        # By requests and not by time: a slow machine would let it end before it is killed.
        goal = server.num_requests + draw.randint(1, 20)
        while server.num_requests < goal:
            server.came.clear()
            await server.came.wait()
        for _ in range(draw.randrange(50)):
            await asyncio.sleep(0)
        process.kill()
        await process.communicate()
        assert process.returncode == -signal.SIGKILL
    await killed.ended(0)
    assert steady(killed.output) == steady(tmp_path / "whole.jsonl")
    # Only what was under way when it was killed was asked twice.
    assert sum(server.answered.values()) - len(server.answered) <= 8 * 20
    assert len(server.answered) == 400


async def test_a_second_process_on_the_same_output_is_refused(
    server: Scripted, tmp_path: Path
) -> None:
    server.released.clear()
    source = write_questions(tmp_path / "in.jsonl", 2)
    synth = Process(server.base_url, source, tmp_path / "out.jsonl")
    first = await synth.start()
    await server.came.wait()
    assert "another motab synth is writing to it" in await synth.ended(1)
    server.released.set()
    await first.communicate()
    assert first.returncode == 0
    assert len(records(synth.output)) == 2


async def test_the_first_signal_lets_what_is_under_way_finish(
    server: Scripted, tmp_path: Path
) -> None:
    server.released.clear()
    server.full_at = 4
    source, output = write_questions(tmp_path / "in.jsonl", 50), tmp_path / "out.jsonl"
    process = await Process(server.base_url, source, output, "--concurrency", "4").start()
    await server.is_full.wait()
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    while b"finishing the 4 under way" not in await process.stderr.readline():
        pass
    server.released.set()
    _, err = await process.communicate()
    assert process.returncode == 1
    assert b"4 trajectories are done; run the same command again to resume" in err
    assert server.num_requests == 4
    assert not output.exists()
    await run(server, source, output)
    assert server.num_requests == 50
    assert len(records(output)) == 50


async def test_the_second_signal_stops_it_at_once(server: Scripted, tmp_path: Path) -> None:
    server.released.clear()
    source = write_questions(tmp_path / "in.jsonl", 9)
    process = await Process(server.base_url, source, tmp_path / "out.jsonl").start()
    await server.came.wait()
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    while b"finishing" not in await process.stderr.readline():
        pass
    process.send_signal(signal.SIGINT)
    _, err = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    assert process.returncode == 1
    assert b"stopped at once" in err
    assert b"Traceback" not in err


async def test_a_full_disk_is_told_and_costs_nothing_that_was_done(
    server: Scripted, tmp_path: Path
) -> None:
    source = write_questions(tmp_path / "in.jsonl", 60)
    synth = Process(server.base_url, source, tmp_path / "out.jsonl", "--concurrency", "2")

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    told, said = (await synth.ended(1, preexec_fn=small_files)).splitlines()[-2:]
    assert said == f"motab: {tmp_path / 'out.journal' / 'journal'}: File too large"
    journal = (tmp_path / "out.journal" / "journal").read_bytes()
    kept = journal.count(b"\n")
    assert told.endswith(f"INFO {kept} trajectories are done; run the same command again to resume")
    assert kept > 5
    assert journal.endswith(b"\n")
    asked = server.num_requests
    await run(server, source, synth.output)
    assert server.num_requests - asked == 60 - kept
    assert len(records(synth.output)) == 60
