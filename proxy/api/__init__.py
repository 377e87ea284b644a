"""The HTTP face of the proxy: OpenAI's shapes, server-sent events, errors, keys, metrics."""
