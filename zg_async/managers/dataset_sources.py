"""Datasets on their way to a provider: by 0G Storage or into its TEE, and not twice."""

import dataclasses
import json
import os
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread

from zg_async.clock import Clock
from zg_async.errors import ConfigError, FeeCapError, StorageError, ZgError
from zg_async.logs import get_logger
from zg_async.managers.dataset import check_dataset, require_usable
from zg_async.managers.model_sources import TEE, ZG_STORAGE, Method, check_method
from zg_async.managers.storage import StorageManager
from zg_async.transport.chain import Chain
from zg_async.transport.files import publish
from zg_async.wire.records import Address, RootHash, SourceAttempt, UploadedDataset
from zg_async.wire.strict_json import BadJsonError, decode_json

KEPT_SECONDS: Final = 72 * 3600.0
"""How long a provider keeps a dataset that no task uses (its `fileRetention`)."""
_MARGIN: Final = 12 * 3600.0
"""A task may wait in the provider's queue before it reads the dataset."""
_BOOK_LIMIT: Final = 4 * 2**20
_log = get_logger("zg_async.dataset")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProvidedDataset:
    """A dataset that a provider can train on."""

    dataset_hash: RootHash
    """What a task names: the storage root, or keccak256 of the bytes."""
    size: int
    source: str
    """`"0g-storage"` or `"tee"`."""
    attempts: tuple[SourceAttempt, ...]
    """The ways tried, in order; the last one is `source`."""
    reused: bool = False
    """Whether it was there already."""
    fee: int = 0
    """Neuron paid to 0G Storage, gas not included."""

    @property
    def fallback_reason(self) -> str:
        """Why it didn't go the first way; empty when it did."""
        return self.attempts[0].reason if len(self.attempts) > 1 else ""


async def store_dataset(
    storage: StorageManager | None, path: Path, *, public: bool, key: str | None = None
) -> ProvidedDataset:
    """Check a dataset and put it into 0G Storage.

    Raises:
        DatasetError: No provider would train on it. Nothing was sent.
        ConfigError: No consent to publish it, or no storage on this network.
        StorageError: It can't be stored.
    """
    if storage is None:
        raise ConfigError("this network has no 0G Storage")
    report = await check_dataset(path, max_size=None, tee=False)
    require_usable(path, report)
    stored = await storage.upload(path, public=public, key=key)
    if len(stored.roots) != 1:
        raise StorageError(f"a dataset of {stored.size} bytes has several roots; a task names one")
    return ProvidedDataset(
        dataset_hash=stored.root_hash,
        size=stored.size,
        source=ZG_STORAGE,
        attempts=(),
        reused=not stored.tx_hashes,
        fee=stored.fee,
    )


async def provide_dataset(
    method: Method,
    path: Path,
    *,
    storage: StorageManager | None,
    public: bool,
    to_tee: Callable[[], Awaitable[UploadedDataset]],
    clock: Clock,
    key: str | None = None,
) -> ProvidedDataset:
    """Bring a dataset to where a provider finds it: `auto` tries 0G Storage, then the provider's TEE.

    Args:
        method: Which way.
        path: A JSONL file.
        storage: 0G Storage; None: this network has none.
        public: Agree that everybody can read it for ever; without, `auto` takes the TEE.
        to_tee: Sends it to the provider.
        clock: Measures.
        key: Names the payment in the outbox.

    Returns:
        The hash a task names, the way taken, and why not another.

    Raises:
        DatasetError: No provider would train on it. Nothing was sent.
        ConfigError: Only 0G Storage was asked for, without consent.
        ZgError: As the way that failed last.
    """
    check_method(method)
    attempts: list[SourceAttempt] = []
    if method != TEE:
        started = clock.monotonic()
        problem = _obstacle(storage, public)
        if not problem or method != "auto":
            try:
                stored = await store_dataset(storage, path, public=public, key=key)
                done = SourceAttempt(source=ZG_STORAGE, seconds=clock.monotonic() - started)
                return dataclasses.replace(stored, attempts=(done,))
            except (StorageError, FeeCapError) as error:
                if method != "auto":
                    raise
                problem = error.message
        attempts.append(SourceAttempt(source=ZG_STORAGE, seconds=clock.monotonic() - started, reason=problem))
    started = clock.monotonic()
    try:
        uploaded = await to_tee()
    except ZgError as error:
        for attempt in attempts:
            error.add_note(f"before that, {attempt.source}: {attempt.reason}")
        raise
    last = SourceAttempt(source=TEE, seconds=clock.monotonic() - started)
    return ProvidedDataset(
        dataset_hash=uploaded.dataset_hash,
        size=uploaded.size,
        source=TEE,
        attempts=(*attempts, last),
        reused=uploaded.reused,
    )


def _obstacle(storage: StorageManager | None, public: bool) -> str:
    if storage is None or not storage.is_known:
        return "no 0G Storage indexer is known for this network"
    if storage.is_public and not public:
        return "no consent to publish it for ever (public=True)"
    return ""


async def check_gas_price(chain: Chain, gas_price: int | None, max_gas_price: int | None) -> None:
    """Do nothing if a transaction now costs what the caller agrees to.

    Args:
        chain: Asked for its price.
        gas_price: Neuron per gas the caller wants to pay; prices are the fee policy's affair, so it is a cap, too.
        max_gas_price: Neuron per gas at most.

    Raises:
        FeeCapError: The chain wants more.
    """
    caps = [cap for cap in (gas_price, max_gas_price) if cap is not None]
    if any(type(cap) is not int or cap < 1 for cap in caps):
        raise ConfigError("a gas price is a whole number of neuron")
    if caps and (price := await chain.gas_price()) > min(caps):
        raise FeeCapError(f"gas costs {price} neuron now, the cap is {min(caps)}", hint="Wait, or raise the cap")


_WRITING: Final = threading.Lock()


class DatasetBook:
    """Which datasets a wallet has sent to which providers of one chain, and when: one small file."""

    def __init__(self, folder: Path | None, *, genesis: str, clock: Clock) -> None:
        """Open nothing yet.

        Args:
            folder: Where the file lies; None: nothing is remembered.
            genesis: The chain's first block, so that two networks of one id aren't confused.
            clock: The source of time.
        """
        self._path = None if folder is None else folder / "datasets" / f"{genesis[2:18]}.json"
        self._clock = clock

    async def has(self, wallet: Address, provider: Address, keccak256: str) -> bool:
        """Say whether the provider still keeps it, as far as we know."""
        if self._path is None:
            return False
        sent = (await anyio.to_thread.run_sync(self._read)).get(_name(wallet, provider, keccak256))
        return isinstance(sent, int | float) and 0 <= self._clock.now() - sent < KEPT_SECONDS - _MARGIN

    async def note(self, wallet: Address, provider: Address, keccak256: str) -> None:
        """Remember that the provider has it since now."""
        if self._path is not None:
            await anyio.to_thread.run_sync(self._write, _name(wallet, provider, keccak256), self._clock.now())

    def _read(self) -> dict[str, Any]:
        if self._path is None:
            return {}
        try:
            with self._path.open("rb") as file:
                book = decode_json(file.read(_BOOK_LIMIT + 1), limit=_BOOK_LIMIT)
        except (OSError, BadJsonError):  # a convenience: without it the dataset is sent again
            return {}
        return book if isinstance(book, dict) else {}

    def _write(self, name: str, now: float) -> None:
        if self._path is None:
            return
        with _WRITING:  # many jobs of a batch have uploaded at once
            fresh = {k: v for k, v in self._read().items() if isinstance(v, int | float) and now - v < KEPT_SECONDS}
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                part = self._path.with_name(f"{self._path.name}.{os.getpid()}.part")
                part.write_text(json.dumps({**fresh, name: now}), "utf-8")
                publish(part, self._path)
            except (OSError, ConfigError) as error:
                _log.warning("what was uploaded can't be remembered: %s", error)


def _name(wallet: Address, provider: Address, keccak256: str) -> str:
    return f"{wallet}/{provider}/{keccak256}"
