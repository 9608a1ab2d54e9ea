"""What can be changed on a simulated provider while it runs: its settings and its faults."""

import dataclasses
import random
from collections.abc import Mapping
from typing import Any, Final, Literal, TypeVar, cast

from zg_async.errors import ConfigError

S = TypeVar("S")


@dataclasses.dataclass(slots=True, kw_only=True)
class CustomModel:
    """A model of the provider's own, as `GET /v1/model` shows it."""

    name: str
    hash: str
    image: str = "devnet/custom-trainer"
    data_type: str = "text"
    training_script: str = "/app/train.py"
    description: str = ""
    tokenizer: str = ""

    def to_json(self) -> dict[str, str]:
        """Return the wire form."""
        return {
            "name": self.name,
            "hash": self.hash,
            "image": self.image,
            "dataType": self.data_type,
            "trainingScript": self.training_script,
            "description": self.description,
            "tokenizer": self.tokenizer,
        }


@dataclasses.dataclass(slots=True, kw_only=True)
class Settings:
    """A provider's configuration; names and defaults follow 0g-serving-broker's config where it has them."""

    price_per_token: int = 10**12
    """Neuron per token and epoch; changed on chain too by the control command."""
    ack_timeout: float = 48 * 3600.0
    """Seconds; half the contract's lock time is the other bound."""
    tick: float = 0.2
    """Seconds between two looks of each worker; real ones take 60."""
    rate_limit: bool = True
    """Whether quote, upload and download share 0.1 requests a second, burst 2, per client address."""
    rate_per_second: float = 0.1
    rate_burst: int = 2
    max_task_queue_size: int = 5
    settlement_batch_size: int = 1
    balance_threshold: int = 10**18
    """Neuron the provider's wallet must hold, or no task gets through setup."""
    data_retention_days: int = 3
    file_retention: float = 72 * 3600.0
    """Seconds an uploaded dataset is kept when no task uses it."""
    cleanup_interval: float = 12 * 3600.0
    supported_predefined_models: tuple[str, ...] = ()
    """Hashes; empty means all."""
    models: tuple[CustomModel, ...] = ()
    log_mode: Literal["today", "live"] = "today"
    """`today`: the trainer's output is appended when it has ended; `live`: line by line, in the older form."""
    root: Literal["keccak", "storage"] = "keccak"
    """Which hash of the encrypted file goes on chain."""
    train_seconds: float = 0.0
    """The least time a training takes."""
    delivered_lag: float = 0.0
    """Seconds from the delivery's transaction until the provider says Delivered; real ones wait for the receipt."""
    legacy_quote: bool = True
    """What `GET /v1/quote` without a parameter gives; false was the default of a few builds."""
    quote_signature: bool = True
    """Whether the quote carries `ZG-Quote-Signature`; older builds don't."""
    maximum_dataset_bytes: int = 100 * 2**20
    filler_bytes: int = 0
    """Bytes put beside the adapter into a delivered model: real ones are larger."""


@dataclasses.dataclass(slots=True, kw_only=True)
class Faults:
    """Faults of one provider. A whole number counts how often it strikes: -1 until switched off, 0 never."""

    latency: float = 0.0
    """Seconds added to every answer."""
    chance: float = 1.0
    """Of striking, for each opportunity of a fault that is on."""
    path: str = ""
    """When set, the HTTP faults strike only requests whose path contains it."""
    error_5xx: int = 0
    """Answer 500 without doing anything."""
    drop: int = 0
    """Close the connection without doing anything."""
    lose_answer: int = 0
    """Do what was asked, then close the connection without an answer."""
    too_many: int = 0
    """Answer 429."""
    lora_503: int = 0
    """Answer 503 to a download."""
    cut_download: int = 0
    """Close the connection after `cut_bytes` of a model file."""
    cut_bytes: int = 1000
    stall_download: int = 0
    """Send `cut_bytes` of a model file, then nothing, with the connection open."""
    wrong_hash: int = 0
    """Serve a model file with one byte changed."""
    wrong_dataset_hash: int = 0
    """Name another hash than the uploaded bytes have."""
    bad_signature: int = 0
    """Sign the tags of the next model files with a key that isn't the TEE signer's."""
    foreign_quote: int = 0
    """Give the quote of another TEE, right in itself."""
    signature_error: int = 0
    """Find the task's signature wrong in setup: the task fails at once."""
    queue_full: int = 0
    """Refuse new tasks with 409."""
    fail_setup: int = 0
    """Let setup fail; like the next three this makes progress go backwards while retries last."""
    fail_training: int = 0
    fail_delivery: int = 0
    fail_settlement: int = 0
    lock_time_unreadable: int = 0
    """Read the lock time as 0 in a settlement round: every unacknowledged delivery counts as timed out."""
    stale_clock: float = 0.0
    """Seconds the provider's clock is wrong by, in both directions."""

    struck: dict[str, int] = dataclasses.field(default_factory=dict, init=False)
    """How often each has struck since all were switched off."""

    def strikes(self, name: str, path: str = "") -> bool:
        """Tell whether a fault is on, and count it."""
        if self.path and path and self.path not in path:
            return False
        left = cast("int", getattr(self, name))
        if left == 0 or (self.chance < 1.0 and random.random() >= self.chance):
            return False
        if left > 0:
            setattr(self, name, left - 1)
        self.struck[name] = self.struck.get(name, 0) + 1
        return True


def update(target: S, changes: Mapping[str, Any]) -> S:
    """Change fields of settings or faults in place.

    Raises:
        ConfigError: A name or a value's type is wrong; nothing was changed then.
    """
    fields = {field.name: field for field in dataclasses.fields(cast("Any", target)) if field.init}
    values = {}
    for name, value in changes.items():
        if name not in fields:
            raise ConfigError(f"there is no setting {name[:40]!r}", hint=f"Known are {', '.join(fields)}")
        values[name] = _coerce(name, getattr(target, name), value)
    for name, value in values.items():
        setattr(target, name, value)
    return target


def _coerce(name: str, old: Any, value: Any) -> Any:
    if name == "models":
        try:
            return tuple(model if isinstance(model, CustomModel) else CustomModel(**model) for model in value)
        except TypeError as error:
            raise ConfigError(f"not a list of models: {error}") from error
    if name in _CHOICES and value not in _CHOICES[name]:
        raise ConfigError(f"{name} must be one of {', '.join(_CHOICES[name])}")
    if isinstance(old, tuple):
        value = tuple(value) if isinstance(value, list | tuple) else value
    elif isinstance(old, bool):
        pass
    elif isinstance(old, int) and isinstance(value, bool):
        value = -1 if value else 0
    elif isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    elif isinstance(old, int) and isinstance(value, str) and value.isdecimal():
        value = int(value)
    if not isinstance(value, type(old)):
        raise ConfigError(f"{name} must be of type {type(old).__name__}, not {type(value).__name__}")
    return value


_CHOICES: Final[Mapping[str, tuple[str, ...]]] = {"log_mode": ("today", "live"), "root": ("keccak", "storage")}
