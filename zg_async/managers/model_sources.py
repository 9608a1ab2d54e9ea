"""Where a delivered model or a dataset goes through: 0G Storage or the provider's TEE; and why which."""

import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, Literal

import anyio

from zg_async.clock import Clock
from zg_async.errors import ConfigError, HashMismatchError, StorageError, ZgError
from zg_async.logs import get_logger
from zg_async.managers.delivery import STORAGE_ROOT, check_file
from zg_async.managers.storage import StorageManager
from zg_async.wire.records import Deliverable, DownloadedModel, RootHash, SourceAttempt

Method = Literal["auto", "0g-storage", "storage", "tee"]
METHODS: Final = ("auto", "0g-storage", "storage", "tee")
TEE: Final = "tee"
ZG_STORAGE: Final = "0g-storage"
_ROOT: Final = re.compile(r"0x[0-9a-f]{64}")
_log = get_logger("zg_async.fine_tuning")


def check_method(method: str) -> None:
    """Do nothing for a known method.

    Raises:
        ConfigError: It is unknown.
    """
    if method not in METHODS:
        raise ConfigError(f"unknown method {method!r}", hint='It is "auto", "0g-storage" or "tee"')


def roots_in_order(model_root_hash: bytes) -> list[str]:
    """Return a deliverable's roots in order: one, or the fragments that old providers join by commas."""
    if len(model_root_hash) == 32:
        return ["0x" + model_root_hash.hex()]
    texts = [text.strip().lower() for text in model_root_hash.decode("latin-1").split(",")]
    return [text for text in texts if _ROOT.fullmatch(text)]


async def fetch_model(
    method: Method,
    deliverable: Deliverable,
    path: Path,
    *,
    storage: StorageManager | None,
    from_tee: Callable[[Path], Awaitable[DownloadedModel]],
    clock: Clock,
) -> DownloadedModel:
    """Fetch an encrypted model from the source asked for; `auto` tries 0G Storage and then the TEE.

    Args:
        method: Which source.
        deliverable: As read from the chain just now.
        path: The final name.
        storage: 0G Storage; None: this network has none.
        from_tee: Fetches it from the provider, checked.
        clock: Measures.

    Returns:
        The checked file; its `attempts` say which sources were tried, for how long, and why they failed.

    Raises:
        StorageError: Only 0G Storage was asked for, and hasn't got it.
        HashMismatchError: The bytes aren't what the chain says.
        ZgError: As the TEE's download.
    """
    check_method(method)
    attempts: list[SourceAttempt] = []
    started = clock.monotonic()
    if method != TEE:
        try:
            model = await _from_storage(deliverable, path, storage)
            return model.tried((SourceAttempt(source=ZG_STORAGE, seconds=clock.monotonic() - started),))
        except (StorageError, HashMismatchError, ConfigError) as error:
            if method != "auto" or (isinstance(error, ConfigError) and storage is not None):
                raise
            reason = error.message
        attempts.append(SourceAttempt(source=ZG_STORAGE, seconds=clock.monotonic() - started, reason=reason))
        _log.info("0G Storage has no model for task %s, asking the provider: %s", deliverable.id, reason)
    started = clock.monotonic()
    try:
        model = await from_tee(path)
    except ZgError as error:
        for attempt in attempts:
            error.add_note(f"before that, {attempt.source}: {attempt.reason}")
        raise
    return model.tried((*attempts, SourceAttempt(source=TEE, seconds=clock.monotonic() - started)))


async def _from_storage(deliverable: Deliverable, path: Path, storage: StorageManager | None) -> DownloadedModel:
    if storage is None or not storage.is_known:
        raise StorageError("no 0G Storage indexer is known for this network")
    if await anyio.Path(path).exists():  # perhaps an earlier run's, from either source
        return await check_file(path, deliverable)
    roots = roots_in_order(deliverable.model_root_hash)
    if not roots:
        raise StorageError("the hash on chain is no storage root")
    fetched = await storage.download(roots, path)
    return DownloadedModel(
        path=str(path), size=fetched.size, root_hash=RootHash(roots[0]), matched=STORAGE_ROOT, source=ZG_STORAGE
    )
