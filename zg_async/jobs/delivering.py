"""The stages after delivery: download, acknowledge, decrypt, deploy."""

import datetime as dt
import json
import os
import platform
import shutil
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread

from zg_async import __version__
from zg_async.errors import (
    ConfigError,
    HashMismatchError,
    JournalError,
    KeyNotReleasedError,
    LostKeyError,
    ProviderError,
    RpcError,
    ZgError,
)
from zg_async.jobs.events import (
    AdapterDeployed,
    DeliverableAcknowledged,
    DeliveryForfeited,
    DeliveryUnverified,
    Event,
    JobWarned,
    ModelDecrypted,
    ModelDownloaded,
    RestAskedBack,
)
from zg_async.jobs.window import reminders, window_of
from zg_async.jobs.work import Work, be_alone, chain_now, check_terms, known
from zg_async.managers.adapter_files import describe_adapter
from zg_async.managers.deliverables import lost_key
from zg_async.managers.task_changes import TaskSettled, WatchCursor
from zg_async.wire.records import (
    DownloadedModel,
)

DEPLOY_SECONDS: Final = 600
KEY_WAIT_SECONDS: Final = 6 * 3600.0
"""How long to wait for a settlement before saying so; usually one to three minutes."""
LAST_TRY_SECONDS: Final = 30.0
"""Least time an attempt to download gets, however near the window's end is."""
_REMOVED: Final = 256
"""Blocks that a reorganisation may have removed below a delivery: its settlement isn't older."""
MANIFEST: Final = "zg_job.json"
"""Lies in the adapter's folder: whose it is."""


async def download_model(work: Work) -> AsyncGenerator[Event, None]:
    """Fetch the encrypted model; it is there only if it equals the hash on chain.

    An attempt lasts at most until the window's next mark, and the next one goes on where it stopped. After the last
    mark there is one more; what happens without a right copy is the specification's `on_unverified`.
    """
    while True:
        now = await chain_now(work)
        for reminder in reminders(work.state, now):
            yield reminder
        is_last, model, reason = _is_last_call(work, now), None, "the download took too long"
        try:
            with anyio.move_on_after(_attempt_seconds(work, now)):
                model = await _download(work)
        except HashMismatchError as error:
            if work.spec.on_unverified != "acknowledge_unverified":
                yield DeliveryForfeited(reason=error.message)
                raise
            reason = error.message
            if not is_last:
                await work.broker.clock.sleep(known(window_of(work.state)).longest_pause(await chain_now(work)))
        except (ProviderError, ConfigError) as error:
            if not is_last:
                raise
            reason = error.message
        if model is not None:
            yield model
            return
        if is_last and _is_last_call(work, await chain_now(work)):  # no clock has been set right since
            break
    yield await _without_copy(work, reason)
    if work.state.forfeited:
        raise LostKeyError(
            f"task {work.task_id} is not acknowledged: no copy could be fetched ({reason})",
            hint="Resume the job before the window closes to try again",
        )


async def _without_copy(work: Work, reason: str) -> DeliveryUnverified | DeliveryForfeited:
    """Decide by the specification what becomes of a delivery of which there is no right copy."""
    deliverable = await work.broker.fine_tuning.get_deliverable(work.provider, work.task_id)
    if deliverable.settled and not deliverable.acknowledged:
        raise lost_key(deliverable, work.provider)
    return (
        DeliveryForfeited(reason=reason) if work.spec.on_unverified == "forfeit" else DeliveryUnverified(reason=reason)
    )


def _is_last_call(work: Work, now: dt.datetime) -> bool:
    window = window_of(work.state)
    return window is not None and now >= window.last_call


def _attempt_seconds(work: Work, now: dt.datetime) -> float | None:
    """Return how long an attempt may take: until the next mark, then half of what is left."""
    window = window_of(work.state)
    if window is None:
        return None
    mark = window.next_mark(now)
    end = (window.deadline - now) / 2 if mark is None else mark - now
    return max(end.total_seconds(), LAST_TRY_SECONDS)


async def _download(work: Work) -> ModelDownloaded:
    await anyio.Path(work.folder).mkdir(parents=True, exist_ok=True)
    model = await work.broker.fine_tuning.download_model(work.provider, work.task_id, work.folder / "model.encrypted")
    return ModelDownloaded(
        path=model.path, size=model.size, root_hash=model.root_hash, matched=model.matched, source=model.source
    )


async def acknowledge_deliverable(work: Work) -> AsyncGenerator[Event, None]:
    """Acknowledge what was downloaded; the file is compared with the chain's hash once more.

    Changed terms stop it, but not beyond the last mark: what was trained is paid by the old ones, and the key is lost
    otherwise.
    """
    await be_alone(work)
    keys = work.keys(f"acknowledge_deliverable/{work.task_id}")
    now = await chain_now(work)
    for reminder in reminders(work.state, now):
        yield reminder
    may_stop = not _is_last_call(work, now) and not await work.has_done(*keys)
    if may_stop:
        await check_terms(work, may_be_away=True)
    model = work.state.model
    if model is not None and not await anyio.Path(model.path).exists():
        model = await _download(work)
        yield model
    if model is None and not work.state.unverified:
        known(model)
    await work.broker.fine_tuning.acknowledge_deliverable(
        work.provider,
        work.task_id,
        verified=None if model is None else _as_downloaded(model),
        unverified=model is None,
        check_signer=may_stop,
        key=keys[-1],
    )
    yield DeliverableAcknowledged(transactions=await work.paid(*keys))


def _as_downloaded(model: ModelDownloaded) -> DownloadedModel:
    return DownloadedModel(
        path=model.path, size=model.size, root_hash=model.root_hash, matched=model.matched, source=model.source
    )


async def decrypt_model(work: Work) -> AsyncGenerator[Event, None]:
    """Wait until the provider has settled, open the model, and put the adapter in place with one rename."""
    fee = await _wait_settled(work)
    target = work.spec.adapter_dir
    if (files := await anyio.to_thread.run_sync(_files_of, target, work.state.job_id)) is None:
        model = work.state.model
        if model is None or not await anyio.Path(model.path).exists():
            model = await _download(work)
            yield model
        files = await _unpack(work, model.path)
    if "adapter" not in work.state.warned and (problem := await anyio.to_thread.run_sync(_problem_of, target)):
        hint = "It is what was trained and paid, so it is kept; ask the provider, or submit the job elsewhere"
        yield JobWarned(code="adapter", message=f"the adapter may not load: {problem}", hint=hint)
    yield ModelDecrypted(path=str(target), files=files, fee=await _told_fee(work) if fee is None else fee)


async def _wait_settled(work: Work) -> int | None:
    """Wait for the settlement and return what it took; None when its event can't be seen any more."""
    tuning, fee = work.broker.fine_tuning, None
    with anyio.move_on_after(KEY_WAIT_SECONDS):
        cursor = known(work.state.delivered).cursor
        async with tuning.watch_task(work.provider, work.task_id, cursor=cursor) as changes:
            async for change in changes:
                if isinstance(change, TaskSettled):
                    fee = change.fee
                    break
        await tuning.wait_key(work.provider, work.task_id)
        return fee
    raise KeyNotReleasedError(
        f"{work.provider} has not settled task {work.task_id} for {KEY_WAIT_SECONDS / 3600:g} hours",
        hint="The acknowledgement is on chain, so the key can still come: ask the provider, then resume the job",
    )


async def _told_fee(work: Work) -> int:
    """Return what the settlement took, when a watch missed it.

    By the chain's events; where the node gives none by the provider's word; 0 when nobody tells.
    """
    told = known(work.state.delivered).cursor
    cursor = None if told is None else WatchCursor.decode(told)
    first = None if cursor is None else max(cursor.block_number - _REMOVED, 0)
    with suppress(RpcError):  # a node that gives no old events
        for task in (await work.broker.cost_report(first_block=first)).tasks:
            if (task.provider, task.task_id) == (work.provider, work.task_id):
                return task.fee
    with suppress(ZgError):
        return work.state.fee or (await work.broker.fine_tuning.get_task(work.provider, work.task_id)).fee
    return 0


async def _unpack(work: Work, encrypted: str) -> tuple[str, ...]:
    tuning, folder = work.broker.fine_tuning, work.folder
    archive, unpacked = folder / "model.zip", folder / "adapter"
    await anyio.to_thread.run_sync(lambda: shutil.rmtree(unpacked, ignore_errors=True))
    await tuning.decrypt_model(
        work.provider, work.task_id, encrypted, archive, expected_signer=known(work.state.terms).signer
    )
    await tuning.unpack_model(archive, unpacked)
    manifest = _manifest(work) | {"problem": await _problem(unpacked)}
    return await anyio.to_thread.run_sync(_put_in_place, unpacked, work.spec.adapter_dir, manifest)


async def _problem(folder: Path) -> str | None:
    """Say why an adapter may not load. It is paid, and right by its hash: kept in any case."""
    try:
        await describe_adapter(folder)
    except ConfigError as error:
        return error.message
    return None


def _manifest(work: Work) -> dict[str, object]:
    state = work.state
    return {
        "job_id": state.job_id,
        "task_id": state.task_id,
        "provider": state.provider,
        "wallet": state.wallet,
        "model": work.spec.model,
        "dataset_hash": state.dataset_hash,
        "model_root_hash": known(state.delivered).root_hash,
        "transactions": [paid.tx_hash for paid in state.paid],
        "chain_id": work.broker.chain.chain_id,
        "versions": {"zg_async": __version__, "python": platform.python_version()},
    }


def _put_in_place(unpacked: Path, target: Path, manifest: dict[str, object]) -> tuple[str, ...]:
    """Add the manifest and rename, so that the adapter is whole or absent, and known as this job's."""
    with (unpacked / MANIFEST).open("w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    try:
        unpacked.rename(target)
    except OSError as error:
        if _files_of(target, str(manifest["job_id"])) is None:
            hint = "Move what is there, then resume the job"
            raise ConfigError(f"can't put the adapter at {target}: {error}", hint=hint) from error
    return known(_files_of(target, str(manifest["job_id"])))


def _files_of(folder: Path, job_id: str) -> tuple[str, ...] | None:
    """Return the adapter's files if this job put it there."""
    if _read_manifest(folder).get("job_id") != job_id:
        return None
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return tuple(sorted(name for name in names if name != MANIFEST))


def _problem_of(folder: Path) -> str | None:
    """Return what was found wrong with an adapter when it was put in place."""
    problem = _read_manifest(folder).get("problem")
    return problem if isinstance(problem, str) else None


def _read_manifest(folder: Path) -> Mapping[str, object]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


async def deploy_adapter(work: Work) -> AsyncGenerator[Event, None]:
    """Have the adapter served for chatting."""
    deployed = await work.broker.inference.lora.deploy_adapter(
        work.inference_provider, work.spec.model, work.task_id, wait=True, timeout_seconds=DEPLOY_SECONDS
    )
    yield AdapterDeployed(adapter_name=deployed.adapter_name, state=deployed.state.value)


async def return_rest(work: Work) -> AsyncGenerator[Event, None]:
    """Ask back what is left at the provider. The adapter is there, so nothing about this fails the job for good."""
    keys = work.keys("return_rest")
    try:
        await work.broker.ledger.retrieve_fund("fine-tuning", [work.provider], key=keys[-1])
    except ZgError as error:
        if error.retryable or isinstance(error, JournalError):
            raise
        yield JobWarned(code="rest_stays", message=error.message, hint=error.hint)  # too many refunds at a time, say
    yield RestAskedBack(transactions=await work.paid(*keys))


async def clean_up(work: Work) -> None:
    """Remove the job's intermediate files."""
    await anyio.to_thread.run_sync(lambda: shutil.rmtree(work.folder, ignore_errors=True))
