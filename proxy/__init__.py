"""motab's proxy: MOTAB decoding as OpenAI-compatible middleware in front of any servers."""

from importlib.metadata import version

__version__ = version("motab")
