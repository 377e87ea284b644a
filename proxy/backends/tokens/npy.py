"""Reads an array of log-probabilities that a server sends as an .npy file in base64."""

import ast
import base64
import struct

_MAGIC = b"\x93NUMPY\x01"
# The file's magic, its version and the length of its header.
_PREAMBLE = 10


def column_of(encoded: str, num_rows: int) -> list[float]:
    """Return a single column of float32 numbers, some of which may be infinite or NaN.

    Raises ValueError unless the array is exactly such a column, of `num_rows` rows. A file of
    another version than 1.0, which numpy writes for short headers, is refused.
    """
    content = base64.b64decode(encoded, validate=True)
    if not content.startswith(_MAGIC):
        raise ValueError(f"an .npy file was expected, {content[:8]!r} came")
    begin = _PREAMBLE + int.from_bytes(content[_PREAMBLE - 2 : _PREAMBLE], "little")
    try:
        header = ast.literal_eval(content[_PREAMBLE:begin].decode("latin-1").strip())
    except (SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError("the header of its .npy file cannot be read") from error
    wanted = {"descr": "<f4", "fortran_order": False, "shape": (num_rows, 1)}
    if header != wanted:
        raise ValueError(f"an array {wanted} was expected, {header} came")
    values = struct.Struct(f"<{num_rows}f")
    if len(content) - begin != values.size:
        raise ValueError(f"{num_rows} numbers were expected, {len(content) - begin} bytes came")
    return list(values.unpack_from(content, begin))
