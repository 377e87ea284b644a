"""Names the right path to a client that asks for a path that there is not."""

from collections.abc import Iterable

_CHAT = "/v1/chat/completions"
_ELSEWHERE = {
    "/responses": f"motab has no Responses API: POST {_CHAT} (client.chat.completions in OpenAI's"
    " client), with messages in place of input",
    "/messages": f"motab has no Anthropic API: POST {_CHAT} in OpenAI's format",
    "/api/chat": f"motab has no Ollama API: POST {_CHAT} in OpenAI's format",
    "/api/generate": "motab has no Ollama API: POST /v1/completions in OpenAI's format",
    "/api/tags": "motab has no Ollama API: GET /v1/models lists the models",
    "/generate": "motab has no /generate: POST /v1/completions in OpenAI's format",
    "/generate_stream": "motab has no /generate_stream: POST /v1/completions with stream: true",
    "/embeddings": "motab makes no embeddings",
}
"""Ends of other APIs' paths, with the paths here."""


def right_path(path: str, known: Iterable[str]) -> str:
    """Return a sentence with the path that was probably meant, out of the `known` paths, or with
    all of them.
    """
    asked = "/" + "/".join(part for part in path.split("/") if part)
    known = sorted(known, key=len, reverse=True)
    for right in known:
        if right.startswith("/v1/") and asked.endswith(right.removeprefix("/v1")):
            return f"use {right}: the client's base URL must end in one /v1"
    # A base URL that holds a route already, to which the client adds its own.
    for right in known:
        if asked.startswith(right) and right != "/":
            return f"use {right}: the client's base URL must end in /v1"
    for end, sentence in _ELSEWHERE.items():
        if asked.endswith(end):
            return sentence
    return "there are " + ", ".join(sorted(known))
