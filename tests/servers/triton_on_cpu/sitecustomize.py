"""Registers a Triton backend `cpu` that is never active, so that vLLM's CPU build runs V2.

Python imports it at its start, from PYTHONPATH. vLLM asks for a backend of that name before it uses
Triton at all; the kernels themselves are run by Triton's interpreter (TRITON_INTERPRET=1).
"""

from importlib import import_module
from importlib.util import find_spec
from types import SimpleNamespace

if find_spec("triton") is not None:  # another environment of the same run has none
    driver = SimpleNamespace(is_active=lambda: False)
    import_module("triton.backends").backends["cpu"] = SimpleNamespace(compiler=None, driver=driver)
