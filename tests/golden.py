"""The golden vectors, and small helpers to read them."""

import functools
import hashlib
import json
import pathlib
from typing import Any

HERE = pathlib.Path(__file__).parent / "vectors"


@functools.cache
def vectors(name: str) -> dict[str, Any]:
    return json.loads((HERE / f"{name}.json").read_text())


def unhex(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("0x"))


def private_key(name: str) -> bytes:
    return unhex(vectors("fine-tuning")["keys"][name]["private_key"])


def stream(seed: str, length: int) -> bytes:
    """The vectors' `stream_rule`."""
    blocks = range(-(-length // 32))
    return b"".join(hashlib.sha256(seed.encode() + i.to_bytes(8, "big")).digest() for i in blocks)[:length]


def ids(rows: list[dict[str, Any]]) -> list[str]:
    return [str(row.get("id", index)) for index, row in enumerate(rows)]
