"""Measures what refused questions cost a run of `motab synth`: `python -m benchmarks.refused`.

A server in this process answers each good question after a wait, and refuses every other one as the
proxy does for an upstream. The same good questions are asked alone and then among the refused.
"""

import asyncio
import io
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import orjson
import typer
from aiohttp import web
from rich.console import Console

from synth_client.asking.servers import Servers
from synth_client.questions.dataset import open_dataset
from synth_client.questions.question import Synthesis
from synth_client.runs.session import run_loop
from synth_client.runs.synthesise import Run, synthesise

_REFUSED = {"error": {"message": "refused", "type": "upstream_error", "code": "upstream_refused"}}
_ANSWER = {
    "model": "m",
    "choices": [{"message": {"role": "assistant", "content": "4"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}
_BAD = "refuse"


def _app(answer_s: float) -> web.Application:
    async def chat(request: web.Request) -> web.Response:
        body = await request.json()
        if body["messages"][-1]["content"].startswith(_BAD):
            return web.json_response(_REFUSED, status=502)
        await asyncio.sleep(answer_s)
        return web.json_response(_ANSWER)

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": []})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_get("/v1/models", models)
    return app


async def _seconds(base_url: str, folder: Path, name: str, questions: list[str]) -> float:
    source = folder / f"{name}.jsonl"
    source.write_bytes(b"".join(orjson.dumps({"question": one}) + b"\n" for one in questions))
    run = Run(
        dataset=open_dataset(str(source)),
        output=folder / f"{name}.out.jsonl",
        servers=Servers(base_urls=(base_url,)),
        synthesis=Synthesis(model="m", plain=True),
        verify="exact",
    )
    started = time.perf_counter()
    await synthesise(run, Console(file=io.StringIO()))
    return time.perf_counter() - started


async def _measured(num_good: int, answer_s: float) -> None:
    runner = web.AppRunner(_app(answer_s), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    base_url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    good = [f"What is {i}?" for i in range(num_good)]
    bad = [f"{_BAD} {i}" for i in range(num_good)]
    orders = {
        "among": [one for pair in zip(bad, good, strict=True) for one in pair],
        "first": [*bad, *good],
    }
    try:
        with TemporaryDirectory() as folder:
            alone_s = await _seconds(base_url, Path(folder), "alone", good)
            typer.echo(f"{num_good} good questions alone: {alone_s:.2f} s")
            for name, questions in orders.items():
                seconds = await _seconds(base_url, Path(folder), name, questions)
                more = seconds / alone_s - 1
                typer.echo(f"with {num_good} refused ones {name}: {seconds:.2f} s ({more:+.1%})")
    finally:
        await runner.cleanup()


def main(
    good: Annotated[int, typer.Option(help="Questions that are answered, and as many refused.")] = (
        640
    ),
    answer_s: Annotated[float, typer.Option(help="Seconds that an answer takes.")] = 2.0,
) -> None:
    """Time a default run with and without refused questions."""
    run_loop(_measured(good, answer_s))


if __name__ == "__main__":
    typer.run(main)
