"""Composes the proxy, the client and the trainer into the command `motab`."""
