"""The fine-tuning provider's HTTP API: paths, bodies, answers, refusals.

What we send is the newest form; older answers are read too. Source: 0g-serving-broker api/fine-tuning/internal
(handler, ctrl/task.go, db, config) and schema/task.go.
"""

import datetime as dt
import re
import uuid
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

from zg_async.errors import (
    ConfigError,
    ProviderError,
    ProviderRejectedError,
    ProviderReplyError,
    ProviderUnavailableError,
    QueueFullError,
    SignerNotAcknowledgedError,
    TaskNotFoundError,
    UnfinishedTaskError,
)
from zg_async.text import printable
from zg_async.wire.hashing import checksum_address
from zg_async.wire.records import (
    PROGRESS_ALIASES,
    Address,
    Model,
    RootHash,
    Task,
    TaskId,
    TaskProgress,
    UploadedDataset,
)
from zg_async.wire.strict_json import BadJsonError, decode_json
from zg_async.wire.task_log import LogEntry, LogParser, Metric, TrainSummary, failure_reason, parse_log

__all__ = [
    "ACK_TIMEOUT",
    "LIST_LIMIT",
    "LOG_LIMIT",
    "MAX_DATASET_SIZE",
    "PREDEFINED_MODELS",
    "QUOTE_LIMIT",
    "RATE_LIMIT",
    "TASK_LIMIT",
    "TIMESTAMP_WINDOW",
    "LogEntry",
    "LogParser",
    "Metric",
    "TrainSummary",
    "ack_window",
    "cancel_body",
    "cancel_path",
    "create_task_body",
    "dataset_path",
    "download_body",
    "error_text",
    "estimate_fee",
    "failure_reason",
    "log_path",
    "lora_path",
    "model_path",
    "model_usage_path",
    "models_path",
    "parse_created",
    "parse_log",
    "parse_model",
    "parse_models",
    "parse_pending",
    "parse_progress",
    "parse_task",
    "parse_tasks",
    "parse_uploaded",
    "pending_path",
    "predefined",
    "predefined_models",
    "quote_path",
    "rejected",
    "retry_after",
    "task_path",
    "tasks_path",
]

TASK_LIMIT: Final = 256 * 1024
"""Bytes of one task's JSON."""
LIST_LIMIT: Final = 8 * 1024 * 1024
QUOTE_LIMIT: Final = 4 * 1024 * 1024
LOG_LIMIT: Final = 64 * 1024 * 1024
MAX_DATASET_SIZE: Final = 100 * 1024 * 1024
"""Bytes of a dataset for the TEE upload."""
TIMESTAMP_WINDOW: Final = (60, 300)
"""Seconds a signed timestamp may lie ahead of, and behind, the provider's clock."""
ACK_TIMEOUT: Final = 6 * 3600
"""Seconds: the shortest acknowledgement time-out a provider was built with."""
RATE_LIMIT: Final = (0.1, 2)
"""Requests per second and burst that quote, upload and download share per client IP at a provider."""

# --- paths -----------------------------------------------------------------------------------------------------------


def quote_path(legacy: bool = True) -> str:
    """Return the attestation quote's path; `legacy` asks for the signer as ASCII text."""
    return f"/v1/quote?legacy={'true' if legacy else 'false'}"


def dataset_path(user: str) -> str:
    """Return where datasets are uploaded. The signature covers `user` exactly as it stands here."""
    return f"/v1/user/{user}/dataset"


def tasks_path(user: str, *, latest: bool = False) -> str:
    """Return where tasks are created and listed; `latest` lists only the newest."""
    return f"/v1/user/{user}/task" + ("?latest=true" if latest else "")


def task_path(user: str, task_id: str) -> str:
    """Return one task's path."""
    return f"/v1/user/{user}/task/{quote(task_id, safe='')}"


def cancel_path(user: str, task_id: str) -> str:
    """Return where a task is cancelled."""
    return task_path(user, task_id) + "/cancel"


def log_path(user: str, task_id: str) -> str:
    """Return a task's log."""
    return task_path(user, task_id) + "/log"


def lora_path(user: str, task_id: str) -> str:
    """Return where a task's encrypted result is downloaded."""
    return task_path(user, task_id) + "/lora"


def pending_path() -> str:
    """Return the queue length's path."""
    return "/v1/task/pending"


def models_path() -> str:
    """Return the path of the provider's own models."""
    return "/v1/model"


def model_path(name_or_hash: str) -> str:
    """Return one model's path."""
    return f"/v1/model/{quote(name_or_hash, safe='')}"


def model_usage_path(name_or_hash: str) -> str:
    """Return the path of a model's usage document, a ZIP."""
    return f"/v1/model/desc/{quote(name_or_hash, safe='')}"


# --- bodies ----------------------------------------------------------------------------------------------------------


_ROOT: Final = re.compile(r"0x[0-9a-fA-F]{64}")


def create_task_body(
    *,
    user: str,
    model_hash: str,
    dataset_hash: str,
    training_params: str,
    request_nonce: int,
    signature: str,
    wait: bool,
) -> dict[str, object]:
    """Return the JSON that creates a task.

    Args:
        user: The wallet.
        model_hash: `Model.hash`.
        dataset_hash: Exactly as signed.
        training_params: The parameter file's text.
        request_nonce: The number we chose and signed.
        signature: `0x` and 130 hex digits.
        wait: Whether to queue behind other tasks.

    Raises:
        ConfigError: The dataset hash is none.
    """
    if not _ROOT.fullmatch(dataset_hash):
        raise ConfigError(
            f"not a dataset hash: {printable(dataset_hash, limit=80)!r}",
            hint="It is 0x and 64 hex digits, as upload_dataset_to_tee returned it",
        )
    return {
        "userAddress": user,
        "preTrainedModelHash": model_hash,
        "datasetHash": dataset_hash,
        "trainingParams": training_params,
        "fee": "0",  # required, and overwritten by the provider once it has counted the tokens
        "nonce": str(request_nonce),
        "signature": signature,
        "wait": wait,
    }


def cancel_body(signature: str) -> dict[str, object]:
    """Return the JSON that cancels a task."""
    return {"signature": signature}


def download_body(signature: str, timestamp: int) -> dict[str, object]:
    """Return the JSON that downloads a result; `timestamp` in unix seconds, as signed."""
    return {"signature": signature, "timestamp": timestamp}


# --- answers ---------------------------------------------------------------------------------------------------------


def parse_task(value: Any, provider: Address) -> Task:
    """Read a task.

    Args:
        value: JSON bytes, or what they decode to.
        provider: Whose task it is.

    Raises:
        ProviderReplyError: A field that must be there is missing or can't be read.
    """
    reply = _Reply(_decoded(value, TASK_LIMIT, provider), provider)
    progress_text = reply.text("progress")
    deliver_time = reply.number("deliverTime", default=0)
    return Task(
        id=reply.task_id("id"),
        provider=provider,
        user=reply.address("userAddress"),
        progress=parse_progress(progress_text),
        progress_text=progress_text,
        created_at=reply.time("createdAt"),
        updated_at=reply.time("updatedAt"),
        model_hash=reply.text("preTrainedModelHash", default=""),
        dataset_hash=reply.text("datasetHash", default=""),
        training_params=reply.text("trainingParams", default=""),
        fee=reply.number("fee", default=0),
        request_nonce=reply.number("nonce", default=0),
        deliver_time=_unix(deliver_time, provider) if deliver_time else None,
        model_type=reply.number("modelType", default=0),
    )


def parse_progress(text: str) -> TaskProgress:
    """Map a provider's word for a task's state; an unknown word counts as running."""
    if text in PROGRESS_ALIASES:
        return PROGRESS_ALIASES[text]
    try:
        return TaskProgress(text)
    except ValueError:
        return TaskProgress.UNKNOWN


def parse_tasks(value: Any, provider: Address) -> tuple[Task, ...]:
    """Read a list of tasks, in the provider's order.

    Raises:
        ProviderReplyError: No list, or a task that can't be read.
    """
    rows = _decoded(value, LIST_LIMIT, provider)
    if rows is None:  # an empty Go slice
        return ()
    if not isinstance(rows, list):
        raise ProviderReplyError("the provider's task list is no list", provider=provider)
    return tuple(parse_task(row, provider) for row in rows)


def parse_created(value: Any, provider: Address) -> TaskId:
    """Read the id of a task just created.

    Raises:
        ProviderReplyError: There is none.
    """
    return _Reply(_decoded(value, TASK_LIMIT, provider), provider).task_id("id")


def parse_uploaded(value: Any, provider: Address, *, size: int) -> UploadedDataset:
    """Read what the provider says of a dataset just uploaded; `size` in bytes is ours.

    Raises:
        ProviderReplyError: There is no hash in it.
    """
    reply = _Reply(_decoded(value, TASK_LIMIT, provider), provider)
    text = reply.text("datasetHash", default="") or reply.text("hash")  # `hash`: older documents
    if not re.fullmatch(r"0x[0-9a-fA-F]{64}", text):
        raise ProviderReplyError(f"the provider's dataset hash is none: {printable(text)}", provider=provider)
    return UploadedDataset(
        dataset_hash=RootHash(text.lower()), size=size, message=printable(reply.text("message", default=""))
    )


def parse_model(value: Any, provider: Address) -> Model:
    """Read a provider's own model.

    Raises:
        ProviderReplyError: Without name or hash.
    """
    reply = _Reply(_decoded(value, TASK_LIMIT, provider), provider)
    return Model(
        name=reply.text("name"),
        hash=reply.text("hash"),
        tokenizer=reply.text("tokenizer", default=""),
        data_type=reply.text("dataType", default="text"),
        description=reply.text("description", default=""),
        provider=provider,
    )


def parse_models(value: Any, provider: Address) -> tuple[Model, ...]:
    """Read a provider's own models.

    Raises:
        ProviderReplyError: No list, or a model that can't be read.
    """
    rows = _decoded(value, LIST_LIMIT, provider)
    if rows is None:
        return ()
    if not isinstance(rows, list):
        raise ProviderReplyError("the provider's model list is no list", provider=provider)
    return tuple(parse_model(row, provider) for row in rows)


def parse_pending(value: bytes | str, provider: Address) -> int:
    """Read how many tasks of all users are waiting or running.

    Raises:
        ProviderReplyError: It is no number.
    """
    text = (value.decode("utf-8", "replace") if isinstance(value, bytes) else value).strip()
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise ProviderReplyError(f"the provider's queue length is no number: {printable(text)}", provider=provider)
    return int(text)


def _decoded(value: Any, limit: int, provider: Address) -> Any:
    if not isinstance(value, bytes | bytearray):
        return value
    try:
        return decode_json(value, limit=limit)
    except BadJsonError as error:
        raise ProviderReplyError(f"the provider's answer can't be read: {error}", provider=provider) from None


def _unix(seconds: int, provider: Address) -> dt.datetime:
    try:
        return dt.datetime.fromtimestamp(seconds, dt.UTC)
    except (OverflowError, ValueError, OSError):
        raise ProviderReplyError(
            f"the provider's answer holds a time out of range: {seconds}", provider=provider
        ) from None


class _Reply:
    """An object in an answer; each reader raises ProviderReplyError."""

    def __init__(self, value: Any, provider: Address) -> None:
        self._provider = provider
        if not isinstance(value, dict):
            raise self._bad("is no object")
        self._value = value

    def _bad(self, what: str) -> ProviderReplyError:
        return ProviderReplyError(f"the provider's answer {what}", provider=self._provider)

    def text(self, key: str, *, default: str | None = None) -> str:
        found = self._value.get(key)
        if found is None and default is not None:
            return default
        if not isinstance(found, str):
            raise self._bad(f"has no text {key!r}")
        return found

    def number(self, key: str, *, default: int | None = None) -> int:
        """Also a numeric string: older providers."""
        found = self._value.get(key)
        if found in (None, "") and default is not None:
            return default
        if (isinstance(found, str) and re.fullmatch(r"[0-9]{1,78}", found)) or (
            isinstance(found, float) and found.is_integer()
        ):
            found = int(found)
        if isinstance(found, bool) or not isinstance(found, int) or found < 0:
            raise self._bad(f"has no whole number {key!r}")
        return found

    def task_id(self, key: str) -> TaskId:
        try:
            return TaskId(str(uuid.UUID(self.text(key))))
        except ValueError:
            raise self._bad(f"has no task id in {key!r}") from None

    def address(self, key: str) -> Address:
        try:
            return checksum_address(self.text(key))
        except ValueError:
            raise self._bad(f"has no address in {key!r}") from None

    def time(self, key: str) -> dt.datetime:
        try:
            found = dt.datetime.fromisoformat(self.text(key))
            return (found if found.tzinfo else found.replace(tzinfo=dt.UTC)).astimezone(dt.UTC)
        except (ValueError, OverflowError):
            raise self._bad(f"has no time in {key!r}") from None


# --- refusals --------------------------------------------------------------------------------------------------------

_NO_ACCOUNT: Final = "Make the sub-account first: ledger.transfer_fund to this provider."
_NO_APPROVAL: Final = "The contract's owner hasn't approved this provider's signer."
_NO_ACKNOWLEDGEMENT: Final = "Call acknowledge_provider_signer first."
_REFUSALS: Final[tuple[tuple[str, type[ProviderRejectedError], str], ...]] = (
    ("task queue is full", QueueFullError, "Try again later."),
    ("while there are in-progress tasks", QueueFullError, "Queue behind other tasks, or try again later."),
    (
        "unfinished task",
        UnfinishedTaskError,
        "A provider takes a wallet's next task when the last is finished or failed.",
    ),
    ("has not been acknowledged by 0g team", SignerNotAcknowledgedError, _NO_APPROVAL),
    ("service not acknowledge", SignerNotAcknowledgedError, _NO_APPROVAL),
    ("has not acknowledged the provider", SignerNotAcknowledgedError, _NO_ACKNOWLEDGEMENT),
    ("user not acknowledge", SignerNotAcknowledgedError, _NO_ACKNOWLEDGEMENT),
    ("get account in contract", ProviderRejectedError, _NO_ACCOUNT),
    ("account not exist", ProviderRejectedError, _NO_ACCOUNT),
    ("insufficient balance", ProviderRejectedError, "Transfer more to the sub-account of this provider."),
    ("unsupported model", ProviderRejectedError, "Ask list_model which models this provider trains."),
    (
        "timestamp",
        ProviderRejectedError,
        "Compare this machine's clock: signatures over 5 minutes old, or 1 minute ahead, are refused.",
    ),
    ("file too large", ProviderRejectedError, "A dataset for the TEE has at most 100 MiB."),
    ("invalid file type", ProviderRejectedError, "The file's name has to end in .jsonl or .json."),
    ("invalid jsonl", ProviderRejectedError, "Check the file first: check_dataset says which rows are wrong."),
    ("not ready for download", ProviderRejectedError, "Wait until the task is delivered."),
    ("cannot be cancelled", ProviderRejectedError, "Only a task that doesn't train yet can be cancelled."),
    ("does not belong to this user", ProviderRejectedError, "The task is another wallet's."),
    ("parameter", ProviderRejectedError, "The provider takes exactly five training parameters."),
)
"""What a refusal's text contains, the class to raise, and what to do. The first that fits counts."""


def rejected(
    status: int,
    text: str,
    *,
    provider: Address | str | None = None,
    endpoint: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> ProviderError:
    """Make the exception for a status that isn't 2xx.

    Args:
        status: The HTTP status.
        text: The body, JSON or not.
        provider: Whose answer it is.
        endpoint: `METHOD /path`.
        headers: The answer's; `Retry-After` is read.

    Returns:
        The class that fits; `retryable` says whether the same request may succeed later.
    """
    reason = printable(error_text(text), limit=600)
    message = f"{endpoint or 'the request'} was refused with {status}" + (f": {reason}" if reason else "")
    if status in (408, 425, 429) or (status >= 500 and status != 501):
        return ProviderUnavailableError(
            message,
            status=status,
            body=reason,
            provider=provider,
            endpoint=endpoint,
            retry_after=retry_after(headers or {}),
        )
    lower = reason.lower()
    if re.search(r"task \S+ not found", lower):
        return TaskNotFoundError(message, provider=provider, endpoint=endpoint)
    for part, kind, hint in _REFUSALS:
        if part in lower:
            return kind(message, status=status, body=reason, provider=provider, endpoint=endpoint, hint=hint)
    return ProviderRejectedError(message, status=status, body=reason, provider=provider, endpoint=endpoint)


def error_text(body: str) -> str:
    """Take the text out of an error body: `{"error": text}`, `{"error": {"message": text}}`, or the body itself."""
    try:
        value = decode_json(body, limit=64 * 1024)
    except BadJsonError:
        return body
    error = value.get("error") if isinstance(value, dict) else None
    if isinstance(error, dict):
        error = error.get("message")
    return error if isinstance(error, str) else body


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Read `Retry-After` in seconds; dates, negative and huge values are noise and give None."""
    text = next((v for k, v in headers.items() if k.lower() == "retry-after"), "").strip()
    if not re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,3})?", text):
        return None
    seconds = float(text)
    return seconds if 0 < seconds <= 3600 else None


# --- models and fees -------------------------------------------------------------------------------------------------

PREDEFINED_MODELS: Final = (
    Model(
        name="Qwen2.5-0.5B-Instruct",
        hash="0xb4f76a886b8655c92bb021922d60b5e4d9271a5c9da98b6cb10937a06c2c75a7",
        tokenizer="Qwen/Qwen2.5-0.5B-Instruct",
        description="Qwen 2.5 for chat, half a billion parameters: https://huggingface.co/Qwen/Qwen2.5-0.5B-Instruct",
        price_coefficient=1,
        storage_fee=10**16,
        networks=("testnet", "testnet-dev", "mainnet", "local"),
    ),
    Model(
        name="Qwen3-32B",
        hash="0x2e6f9620c35bdcb2b753cc7aa34e78077a8ed133e36fa36008fd6bdfd29af3a5",
        tokenizer="Qwen/Qwen3-32B",
        description="Qwen 3, 32 billion parameters: https://huggingface.co/Qwen/Qwen3-32B",
        price_coefficient=8,
        storage_fee=9 * 10**16,
        networks=("mainnet", "local"),
    ),
    Model(
        name="mock-model",
        hash="0xcb42b5ca9e998c82dd239ef2d20d22a4ae16b3dc0ce0a855c93b52c7c2bab6dc",
        tokenizer="0x382842561e59d71f90c1861041989428dd2c1f664e65a56ea21f3ade216b2046",
        description="For providers on a network of your own",
        networks=("local",),
    ),
)
"""Models every provider knows, with the networks that list them."""
_LISTED: Final = frozenset(n for m in PREDEFINED_MODELS for n in m.networks)


def predefined_models(network: str) -> tuple[Model, ...]:
    """Return the predefined models of a network; a network of the user's own has what `local` has."""
    listed = network if network in _LISTED else "local"
    return tuple(m for m in PREDEFINED_MODELS if listed in m.networks)


def predefined(name: str, network: str) -> Model | None:
    """Find a predefined model.

    Args:
        name: Its name in any case, with or without `Qwen/`, or its hash.
        network: The network's name.

    Returns:
        The model, or None when this network has none of that name.
    """
    wanted = name.strip().casefold().removeprefix("qwen/")
    return next((m for m in predefined_models(network) if wanted in (m.name.casefold(), m.hash)), None)


def estimate_fee(tokens: int, price_per_token: int, epochs: int, model: Model) -> int:
    """Compute a task's fee in neuron as the provider does; `max_steps` doesn't lower it."""
    return tokens * price_per_token * epochs * model.price_coefficient + model.storage_fee


def ack_window(lock_time: int) -> int:
    """Return how many seconds after delivery to plan for at most: 6 hours or half the lock time."""
    return min(ACK_TIMEOUT, lock_time // 2)
