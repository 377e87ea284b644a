"""Carries requests to upstreams: HTTP, time limits, retries, resumed streams."""
