"""What a fine-tuning provider decides without I/O: parameters, rows, tokens, fees, addresses.

Texts and order follow 0g-serving-broker (api/fine-tuning/internal/ctrl/task.go, services/setup.go, 2026).
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from zg_async.devnet.provider_settings import CustomModel
from zg_async.wire.hashing import checksum_address
from zg_async.wire.provider_api import PREDEFINED_MODELS
from zg_async.wire.records import Address, Model

PARAMS: Final = (
    "neftune_noise_alpha",
    "num_train_epochs",
    "per_device_train_batch_size",
    "learning_rate",
    "max_steps",
)
FORBIDDEN: Final = (
    "fp16",
    "bf16",
    "gradient_accumulation_steps",
    "warmup_ratio",
    "warmup_steps",
    "logging_steps",
    "save_steps",
    "save_total_limit",
    "max_seq_length",
    "lora_r",
    "lora_alpha",
    "lora_dropout",
    "use_4bit",
    "use_8bit",
    "optim",
    "lr_scheduler_type",
)
BYTES_PER_TOKEN: Final = 4
_HEX_ADDRESS: Final = re.compile(r"(?:0[xX])?[0-9a-fA-F]{40}")
_DOCUMENTATION: Final = (
    "https://docs.0g.ai/developer-hub/building-on-0g/compute-network/fine-tuning#prepare-configuration-file"
)


class Refused(Exception):  # noqa: N818 - an answer, not a fault
    """The provider says no; `status` is the HTTP status."""

    def __init__(self, text: str, status: int = 400) -> None:
        """Make a refusal."""
        super().__init__(text)
        self.text = text
        self.status = status


class StepError(Exception):
    """A step of a task failed; it is retried unless `final`."""

    def __init__(self, text: str, *, final: bool = False) -> None:
        """Make an error whose text goes into the task's log."""
        super().__init__(text)
        self.final = final


def is_hex_address(text: str) -> bool:
    """Tell whether a text spells 20 bytes in hex, with or without `0x`."""
    return _HEX_ADDRESS.fullmatch(text) is not None


def fold_address(text: str) -> Address | None:
    """Return an address from any spelling; None where no user can have it."""
    return checksum_address(bytes.fromhex(text[-40:])) if is_hex_address(text) else None


def signature_bytes(text: str) -> bytes:
    """Read a signature as the broker does: `0x` and 65 bytes in hex.

    Raises:
        Refused: With the broker's text.
    """
    if not text.startswith("0x"):
        raise Refused("hex string without 0x prefix")
    try:
        raw = bytes.fromhex(text[2:])
    except ValueError as error:
        raise Refused("invalid hex string") from error
    if len(raw) != 65:
        raise Refused(f"invalid signature length {len(raw)}, expected 65")
    return raw


# --- training parameters ----------------------------------------------------------------------------------------------


class _Number(float):
    """A JSON number that remembers how it was written."""

    raw: str

    def __new__(cls, raw: str) -> "_Number":
        """Keep the text beside the value."""
        self = super().__new__(cls, raw)
        self.raw = raw
        return self


def _no_constant(name: str) -> float:
    raise ValueError(f"invalid literal {name}")


def check_params(text: str) -> dict[str, float]:
    """Check the five parameters as the provider does.

    Returns:
        Their values.

    Raises:
        Refused: With the provider's text.
    """
    try:
        params = json.loads(text, parse_int=_Number, parse_float=_Number, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Refused(f"invalid training params JSON format: {error}") from error
    if params is not None and not isinstance(params, dict):
        raise Refused("invalid training params JSON format: json: cannot unmarshal into Go value of type map")
    params = params or {}
    _check_names(params)
    for name, check in _CHECKS.items():
        if problem := check(params[name]):
            raise Refused(problem)
    return {name: float(params[name]) for name in PARAMS}


def _check_names(params: Mapping[str, Any]) -> None:
    for name in FORBIDDEN:
        if name in params:
            raise Refused(
                f"training config contains forbidden parameter '{name}'. Please use only the standard configuration"
                f" template. See documentation: {_DOCUMENTATION}"
            )
    for name in params:
        if name not in PARAMS:
            raise Refused(
                f"training config contains unexpected parameter '{name}'."
                f" Only these parameters are allowed: {', '.join(PARAMS)}"
            )
    for name in PARAMS:
        if name not in params:
            raise Refused(f"training config missing required parameter '{name}'")


def _noise(value: Any) -> str | None:
    if not isinstance(value, _Number):
        return "neftune_noise_alpha must be a number"
    return None if 0 <= value <= 10 else "neftune_noise_alpha must be between 0 and 10"


def _epochs(value: Any) -> str | None:
    if not isinstance(value, _Number):
        return "num_train_epochs must be a number"
    if value <= 0 or not value.is_integer():
        return "num_train_epochs must be a positive integer"
    return "num_train_epochs should not exceed 10 for fine-tuning (typical: 1-3)" if value > 10 else None


def _batch(value: Any) -> str | None:
    if not isinstance(value, _Number):
        return "per_device_train_batch_size must be a number"
    if not 1 <= value <= 4 or not value.is_integer():
        return "per_device_train_batch_size must be an integer between 1 and 4"
    return None


def _rate(value: Any) -> str | None:
    raw = value.raw if isinstance(value, _Number) else json.dumps(value)
    if "e" in raw or "E" in raw:
        return "learning_rate must use decimal notation (e.g., 0.0002), not scientific notation (e.g., 2e-4)"
    if not isinstance(value, _Number):
        return "learning_rate must be a number"
    return None if 0.00001 <= value <= 0.001 else "learning_rate must be between 0.00001 and 0.001 (typical: 0.0002)"


def _steps(value: Any) -> str | None:
    if not isinstance(value, _Number):
        return "max_steps must be a number"
    if float(value) != -1 and (value <= 0 or not value.is_integer()):
        return "max_steps must be -1 (to use epochs) or a positive integer"
    return None


_CHECKS: Final = {
    "neftune_noise_alpha": _noise,
    "num_train_epochs": _epochs,
    "per_device_train_batch_size": _batch,
    "learning_rate": _rate,
    "max_steps": _steps,
}

# --- rows and tokens --------------------------------------------------------------------------------------------------


def check_lines(lines: Iterable[bytes]) -> None:
    """Check that every line that isn't blank is a JSON object (or `null`, which passes by accident).

    Raises:
        Refused: With the number of the first bad line.
    """
    for number, line in enumerate(lines, 1):
        stripped = line.strip(b" \t\r\n")
        if not stripped:
            continue
        try:
            value = json.loads(stripped.decode(errors="replace"), parse_constant=_no_constant)
        except (ValueError, RecursionError):
            value = False
        if value is not None and not isinstance(value, dict):
            raise Refused(f"invalid JSONL format: line {number} is not valid JSON")


def convert_rows(lines: Iterable[bytes], *, text: bool = False) -> Iterator[dict[str, Any]]:
    """Turn lines into rows of instruction, input and output, by the format of the first row alone.

    Args:
        lines: Of a JSONL file.
        text: Whether a text column is kept, as output: so it is with datasets from 0G Storage.

    Raises:
        ValueError: A row can't be converted; the real converter stops there too.
    """
    convert: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
    for line in lines:
        if not (stripped := line.strip()):
            continue
        row = json.loads(stripped.decode(errors="replace"))
        if not isinstance(row, dict):
            raise ValueError("a row is no object")
        if convert is None:
            kept = text and "text" in row and "instruction" not in row
            convert = _from_messages if "messages" in row else _from_text if kept else _from_instruction
        yield convert(row)


def _from_instruction(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: row.get(key, "") for key in ("instruction", "input", "output")}


def _from_text(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"instruction": "", "input": "", "output": row.get("text", "")}


def _from_messages(row: Mapping[str, Any]) -> dict[str, Any]:
    messages = row.get("messages", [])
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise ValueError("messages is no list of objects")
    said: dict[str, Any] = {"user": "", "assistant": ""}
    for message in messages:  # the last one of each role wins
        if message.get("role") in said:
            said[message["role"]] = message.get("content", "")
    return {"instruction": said["user"], "input": "", "output": said["assistant"]}


def count_tokens(value: Any) -> int:
    """Count tokens by the devnet's rule: a text has one for every started four bytes of its UTF-8.

    Numbers and booleans count as their text, lists and objects as the sum of their values; keys and None don't count.
    A real provider uses the model's tokenizer, which the devnet doesn't have.
    """
    if value is None:
        return 0
    if isinstance(value, Mapping):
        return sum(map(count_tokens, value.values()))
    if isinstance(value, Sequence) and not isinstance(value, str):
        return sum(map(count_tokens, value))
    return math.ceil(len(str(value).encode(errors="replace")) / BYTES_PER_TOKEN)


# --- models and fees --------------------------------------------------------------------------------------------------

_PREDEFINED: Final[Mapping[str, Model]] = {model.hash: model for model in PREDEFINED_MODELS}
MOCK_MODEL: Final = next(model for model in PREDEFINED_MODELS if model.name == "mock-model")


def predefined_model(model_hash: str) -> Model | None:
    """Find a predefined model: its hash is compared as an exact lower-case text."""
    return _PREDEFINED.get(model_hash)


def custom_model(models: Iterable[CustomModel], model_hash: str) -> CustomModel | None:
    """Find a customised model by hash, in any case."""
    wanted = model_hash.lower().removeprefix("0x")
    return next((model for model in models if model.hash.lower().removeprefix("0x") == wanted), None)


def find_model(models: Iterable[CustomModel], name_or_hash: str) -> dict[str, str]:
    """Find a model for `GET /v1/model/{nameOrHash}`.

    Keeps the broker's quirk: what begins like hex is read as a hash and never found by name.

    Raises:
        Refused: There is none.
    """
    models = tuple(models)
    found = custom_model(models, name_or_hash)
    if found is None and not _reads_as_hex(name_or_hash):
        found = next((model for model in models if model.name == name_or_hash), None)
    if found is not None:
        return found.to_json()
    if name_or_hash in (MOCK_MODEL.name, MOCK_MODEL.hash):
        # The official CLI asks for it here; a stock provider doesn't know it.
        return CustomModel(name=MOCK_MODEL.name, hash=MOCK_MODEL.hash, tokenizer=MOCK_MODEL.tokenizer).to_json()
    raise Refused(f"Model {name_or_hash} not found")


def _reads_as_hex(text: str) -> bool:
    digits = text.removeprefix("0x").removeprefix("0X")
    digits = f"0{digits}" if len(digits) % 2 else digits
    return re.match(r"[0-9a-fA-F]{2}", digits) is not None


def task_fee(tokens: int, price_per_token: int, epochs: int, model_hash: str) -> int:
    """Compute a task's fee in neuron.

    Raises:
        ValueError: The model isn't predefined: the provider's fee step knows no other.
    """
    model = predefined_model(model_hash)
    if model is None:
        raise ValueError(f"model configuration not found in SCRIPT_MAP for {model_hash}")
    return tokens * price_per_token * epochs * model.price_coefficient + model.storage_fee
