"""The safetensors file format, float32 part: what adapters are stored in.

Layout: 8 bytes little-endian header length, a JSON header `{name: {dtype, shape, data_offsets}}` padded with spaces to
a multiple of 8, then the tensors' bytes. Offsets count from the end of the header, tensors leave no hole and don't
overlap, numbers are little-endian in row-major order. Source: the format's public README (huggingface/safetensors).
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from zg_async.devnet.arrays import Array, np
from zg_async.wire.strict_json import BadJsonError, decode_json

MAX_HEADER: Final = 100_000_000
"""Bytes of header the format allows."""
_DEPTH: Final = 8

Tensors = dict[str, Array]


class SafetensorsError(ValueError):
    """The bytes are no safetensors file, or hold what we don't read."""


def save(path: Path, tensors: Mapping[str, Array], *, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors to a file, in name order.

    Args:
        path: Where to; replaced if it exists.
        tensors: Names and values; written as F32.
        metadata: Text entries of `__metadata__`; None writes `{"format": "pt"}` as PEFT does.
    """
    path.write_bytes(dump(tensors, metadata=metadata))


def dump(tensors: Mapping[str, Array], *, metadata: Mapping[str, str] | None = None) -> bytes:
    """Return the bytes of a file with these tensors; see `save`."""
    header: dict[str, Any] = {"__metadata__": dict(metadata) if metadata is not None else {"format": "pt"}}
    pieces = []
    offset = 0
    for name in sorted(tensors):
        data = np.ascontiguousarray(tensors[name], dtype="<f4").tobytes()
        shape = [int(n) for n in tensors[name].shape]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + len(data)]}
        pieces.append(data)
        offset += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(pieces)


def load(path: Path) -> Tensors:
    """Read a file that `parse` takes.

    Raises:
        SafetensorsError: Not such a file.
        OSError: It can't be read.
    """
    return parse(path.read_bytes())


def parse(data: bytes) -> Tensors:
    """Read the bytes of a file, checking what the format demands.

    Args:
        data: The whole file.

    Returns:
        Names and float32 values.

    Raises:
        SafetensorsError: Header too long, not JSON, holes or overlaps, sizes that disagree, or a type other than F32.
    """
    header, body = _split(data)
    header.pop("__metadata__", None)
    spans = sorted(((_span(name, entry), name) for name, entry in header.items()), key=lambda item: item[0])
    end = 0
    tensors: Tensors = {}
    for (start, stop, shape), name in spans:
        if start != end:
            raise SafetensorsError(f"{name!r}: hole or overlap at byte {end}")
        end = stop
        if stop > len(body):
            raise SafetensorsError(f"{name!r}: ends after the file")
        tensors[name] = np.frombuffer(body[start:stop], dtype="<f4").reshape(shape).astype(np.float32)
    if end != len(body):
        raise SafetensorsError(f"{len(body) - end} bytes belong to no tensor")
    return tensors


def _split(data: bytes) -> tuple[dict[str, Any], memoryview]:
    if len(data) < 8:
        raise SafetensorsError("shorter than the header length")
    length = int.from_bytes(data[:8], "little")
    if length > MAX_HEADER or 8 + length > len(data):
        raise SafetensorsError(f"header of {length} bytes")
    try:
        header = decode_json(data[8 : 8 + length], limit=MAX_HEADER, depth=_DEPTH)
    except BadJsonError as error:
        raise SafetensorsError("header is not JSON") from error
    if data[8:9] != b"{" or not isinstance(header, dict):
        raise SafetensorsError("header is not an object")
    return header, memoryview(data)[8 + length :]


def _span(name: str, entry: object) -> tuple[int, int, list[int]]:
    """Return start, stop and shape of one tensor."""
    if not isinstance(entry, dict) or entry.get("dtype") != "F32":
        raise SafetensorsError(f"{name!r}: not an F32 tensor")
    shape, offsets = _sizes(entry.get("shape")), _sizes(entry.get("data_offsets"))
    if shape is None or offsets is None or len(offsets) != 2:
        raise SafetensorsError(f"{name!r}: shape or offsets missing")
    start, stop = offsets
    if stop - start != 4 * math.prod(shape):
        raise SafetensorsError(f"{name!r}: {stop - start} bytes for shape {shape}")
    return start, stop, shape


def _sizes(value: object) -> list[int] | None:
    if isinstance(value, list) and all(type(n) is int and n >= 0 for n in value):
        return value
    return None
