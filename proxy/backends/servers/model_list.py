"""Looks for a model in OpenAI's list of models, `/v1/models`, which vLLM and SGLang have too."""

from proxy.backends.transport.http import UpstreamClient
from proxy.errors import UpstreamRefused


async def require_model(client: UpstreamClient, model: str, *, no_adapters: bool = False) -> None:
    """Raise `UpstreamRefused` unless the server serves `model`, or any `UpstreamError` of the call.

    With `no_adapters` a model that has a parent does not count.
    """
    reply = await client.get("/v1/models")
    with client.expecting("/v1/models"):
        served = [
            str(entry["id"])
            for entry in reply["data"]
            if not (no_adapters and entry.get("parent") is not None)
        ]
    if model not in served:
        message = f"it serves {', '.join(served)}, not the configured model '{model}'"
        raise UpstreamRefused(client.upstream, message)
