"""Traces, metrics and log lines, by which an operator sees what the proxy does."""
