"""Asks from one process: the HTTP client, retries, concurrency."""
