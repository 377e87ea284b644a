"""Serves the proxy over HTTP: OpenAI's shapes, server-sent events, errors, keys, metrics."""
