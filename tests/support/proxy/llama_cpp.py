"""Serves what llama.cpp's server answers when the proxy starts."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

READY = {
    "/props": {"total_slots": 1},
    "/apply-template": {"prompt": "Q:"},
    "/tokenize": {"tokens": [7]},
    "/health": {"status": "ok"},
}


Answer = Callable[[str], tuple[int, Any] | None]
"""What a path is answered; None breaks the connection."""


@contextmanager
def llama_cpp(answer: Answer) -> Iterator[str]:
    """A server that answers what llama.cpp's would be asked at the start; gives its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            answered = answer(self.path)
            if answered is None:
                self.close_connection = True
                return
            status, body = answered
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET  # noqa: N815 - the name that http.server calls

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
            """Silent."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
