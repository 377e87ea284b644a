"""Stands in for the servers of a comparison: a proxy with a pair, or a student from a folder.

`python -m tests.support.trainer.fake_models PORT [MODEL]`. Everything it says follows from the
question, the seed, the parameters and the student's weights, so that two runs say the same.
"""

import sys
from hashlib import blake2b
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import orjson

from tests.support.records import breached, spans_of, unbroken
from tests.support.synth_client.client import answer_of
from tests.support.trainer.evaluations import completion


def chance(*parts: object) -> float:
    digest = blake2b(repr(parts).encode(), digest_size=4).digest()
    return int.from_bytes(digest) / 2**32


def traced(body: dict[str, Any]) -> dict[str, Any]:
    """Answer as the proxy does."""
    params, question = body["motab"], body["messages"][-1]["content"]
    method, seed = params["method"], body["seed"]
    right = "The answer is 36" if chance(question, seed) < 0.7 else "The answer is 35"
    if method == "motab" and chance(question, seed, "breach") < 0.5:
        fields = breached()
    else:
        fields = unbroken(output=right, spans=spans_of([("teacher", right)]), steps=[])
    fields |= {"method": method, "params": {**fields["params"], **params}}
    return answer_of(fields)


def solved(body: dict[str, Any], weights: bytes) -> dict[str, Any]:
    """Answer as a student does: how much is right depends on its weights."""
    question, seed = body["messages"][-1]["content"], body["seed"]
    is_right = chance(question, seed, weights) < chance(weights)
    return completion(r"\boxed{36}" if is_right else r"\boxed{7}")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    weights = b"the student itself"

    def do_GET(self) -> None:
        self._send({"object": "list", "data": []})

    def do_POST(self) -> None:
        body = orjson.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._send(traced(body) if "motab" in body else solved(body, self.weights))

    def _send(self, content: dict[str, Any]) -> None:
        said = orjson.dumps(content)
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


if __name__ == "__main__":
    port, *model = sys.argv[1:]
    path = Path(model[0], "weights") if model else Path()
    if path.is_file():
        Handler.weights = path.read_bytes()
    ThreadingHTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
