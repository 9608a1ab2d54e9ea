"""The files of a fine-tuned LoRA adapter, as PEFT lays them out: what they say, read without loading any weight.

Source: PEFT's checkpoint format (adapter_config.json, adapter_model.safetensors); the safetensors format's README.
"""

import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeGuard

from zg_async.wire.provider_api import PREDEFINED_MODELS
from zg_async.wire.strict_json import BadJsonError, decode_json

CONFIG_FILE: Final = "adapter_config.json"
WEIGHTS_FILE: Final = "adapter_model.safetensors"
CONFIG_LIMIT: Final = 1024 * 1024
HEADER_LIMIT: Final = 100_000_000
"""Bytes of a safetensors header, as the format has it."""
_DEPTH: Final = 8
_BITS: Final[Mapping[str, int]] = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
}  # fmt: skip
_LORA: Final = re.compile(r"(?:.*\.)?([A-Za-z0-9_]+)\.lora_([AB])(?:\.[A-Za-z0-9_]+)?\.weight")


class AdapterFileError(ValueError):
    """A file isn't what a PEFT adapter has there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One tensor of a safetensors file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int
    """Bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterInfo:
    """What an adapter's files say."""

    base_model: str
    """As the provider wrote it; often a path on its machine."""
    rank: int
    alpha: float | None
    targets: tuple[str, ...]
    """The layers it changes, by the tensors that are there."""
    tensors: tuple[Tensor, ...]
    size: int
    """Bytes of the weights' file."""

    @property
    def parameters(self) -> int:
        """How many numbers were trained."""
        return sum(math.prod(t.shape) for t in self.tensors)

    @property
    def base_model_name(self) -> str:
        """The base model's name at Hugging Face where we know it, else its last path component."""
        last = self.base_model.rstrip("/").rpartition("/")[2]
        known = next((m for m in PREDEFINED_MODELS if m.name.casefold() == last.casefold()), None)
        return known.tokenizer if known and known.tokenizer else self.base_model if "/" not in self.base_model else last

    def loading_lines(self, folder: str) -> tuple[str, ...]:
        """Return the lines that load the adapter elsewhere: first Python with PEFT, then a vLLM server.

        Args:
            folder: Where the files are; written so that no name can break out of its quotes.
        """
        name = re.sub(r"[^A-Za-z0-9_.-]", "-", self.base_model_name.rpartition("/")[2]) or "adapter"
        base = shlex.quote(self.base_model_name)
        modules = shlex.quote(f"{name}-tuned={folder}")
        return (
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM",
            f"model = AutoModelForCausalLM.from_pretrained({self.base_model_name!r})",
            f"model = PeftModel.from_pretrained(model, {folder!r})",
            f"vllm serve {base} --enable-lora --max-lora-rank {max(self.rank, 8)} --lora-modules {modules}",
        )


def read_adapter(config: bytes, header: bytes, weights_size: int) -> AdapterInfo:
    """Read an adapter's configuration and the header of its weights.

    Args:
        config: `adapter_config.json`.
        header: The beginning of `adapter_model.safetensors`, at least through its header.
        weights_size: That file's size in bytes.

    Raises:
        AdapterFileError: They aren't an adapter's, or don't belong together.
    """
    fields = _config(config)
    tensors = read_header(header, weights_size)
    rank, found = fields["r"], _targets(tensors, fields["r"])
    if not found:
        raise AdapterFileError("the weights hold no LoRA matrices")
    alpha = fields.get("lora_alpha")
    base = fields.get("base_model_name_or_path")
    return AdapterInfo(
        base_model=base if isinstance(base, str) else "",
        rank=rank,
        alpha=float(alpha) if isinstance(alpha, int | float) and not isinstance(alpha, bool) else None,
        targets=found,
        tensors=tensors,
        size=weights_size,
    )


def _config(data: bytes) -> dict[str, Any]:
    try:
        value = decode_json(data, limit=CONFIG_LIMIT)
    except BadJsonError as error:
        raise AdapterFileError(f"{CONFIG_FILE} can't be read: {error}") from None
    if not isinstance(value, dict) or value.get("peft_type") != "LORA":
        raise AdapterFileError(f"{CONFIG_FILE} is of no LoRA adapter")
    if type(value.get("r")) is not int or not 0 < value["r"] <= 65_536:
        raise AdapterFileError(f"{CONFIG_FILE} names no rank")
    return value


def header_size(beginning: bytes) -> int:
    """Return how many bytes of a safetensors file its header takes, from its first 8 bytes.

    Raises:
        AdapterFileError: No such file, or a header over the format's limit.
    """
    size = int.from_bytes(beginning[:8], "little")
    if len(beginning) < 8 or not 2 <= size <= HEADER_LIMIT:
        raise AdapterFileError("this is no safetensors file")
    return 8 + size


def read_header(data: bytes, file_size: int) -> tuple[Tensor, ...]:
    """Read a safetensors header: what is where, without a hole or an overlap.

    Raises:
        AdapterFileError: Sizes, offsets or types don't add up.
    """
    start = header_size(data)
    if start > len(data) or start > file_size:
        raise AdapterFileError("the weights' file is cut")
    try:
        value = decode_json(data[8:start], limit=HEADER_LIMIT, depth=_DEPTH)
    except BadJsonError as error:
        raise AdapterFileError(f"the weights' header can't be read: {error}") from None
    if not isinstance(value, dict):
        raise AdapterFileError("the weights' header is no object")
    rows = [_tensor(name, row) for name, row in value.items() if name != "__metadata__"]
    at = 0
    for tensor, begin in sorted(rows, key=lambda row: (row[1], row[0].size)):
        if begin != at:
            raise AdapterFileError(f"tensors overlap or leave a hole at byte {at}")
        at += tensor.size
    if start + at != file_size:
        raise AdapterFileError("the weights' file is longer or shorter than its tensors")
    return tuple(tensor for tensor, _ in rows)


def _tensor(name: str, row: Any) -> tuple[Tensor, int]:
    fields: Mapping[str, Any] = row if isinstance(row, dict) else {}
    dtype, shape, offsets = (fields.get(key) for key in ("dtype", "shape", "data_offsets"))
    if isinstance(dtype, str) and dtype in _BITS and _is_sizes(shape) and _is_sizes(offsets) and len(offsets) == 2:
        size = offsets[1] - offsets[0]
        if len(shape) <= 16 and size >= 0 and size * 8 == math.prod(shape) * _BITS[dtype]:
            return Tensor(name=name, dtype=dtype, shape=tuple(shape), size=size), offsets[0]
    raise AdapterFileError("a tensor's type, shape and place don't fit together")


def _is_sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**48 for n in value)


def _targets(tensors: tuple[Tensor, ...], rank: int) -> tuple[str, ...]:
    found = set()
    for tensor in tensors:
        if match := _LORA.fullmatch(tensor.name):
            if len(tensor.shape) != 2 or tensor.shape[0 if match[2] == "A" else 1] != rank:
                raise AdapterFileError(f"{tensor.name[:200]!r} isn't of rank {rank}")
            found.add(match[1])
    return tuple(sorted(found))
