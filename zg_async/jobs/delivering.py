"""The stages after delivery: download, acknowledge, decrypt, deploy."""

import json
import os
import shutil
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread

from zg_async.errors import (
    ConfigError,
    KeyNotReleasedError,
)
from zg_async.jobs.events import (
    AdapterDeployed,
    DeliverableAcknowledged,
    Event,
    ModelDecrypted,
    ModelDownloaded,
)
from zg_async.jobs.work import Work, check_terms, known
from zg_async.managers.task_changes import TaskSettled
from zg_async.wire.records import (
    DownloadedModel,
)

DEPLOY_SECONDS: Final = 600
KEY_WAIT_SECONDS: Final = 6 * 3600.0
"""How long to wait for a settlement before saying so; usually one to three minutes."""
MANIFEST: Final = "zg_job.json"
"""Lies in the adapter's folder: whose it is."""


async def download_model(work: Work) -> AsyncGenerator[Event, None]:
    """Fetch the encrypted model; it is there only if it equals the hash on chain."""
    yield await _download(work)


async def _download(work: Work) -> ModelDownloaded:
    await anyio.Path(work.folder).mkdir(parents=True, exist_ok=True)
    model = await work.broker.fine_tuning.download_model(work.provider, work.task_id, work.folder / "model.encrypted")
    return ModelDownloaded(
        path=model.path, size=model.size, root_hash=model.root_hash, matched=model.matched, source=model.source
    )


async def acknowledge_deliverable(work: Work) -> AsyncGenerator[Event, None]:
    """Acknowledge what was downloaded; the file is compared with the chain's hash once more."""
    keys = work.keys(f"acknowledge_deliverable/{work.task_id}")
    if not await work.sent(*keys):
        await check_terms(work)
    model = known(work.state.model)
    if not await anyio.Path(model.path).exists():
        model = await _download(work)
        yield model
    await work.broker.fine_tuning.acknowledge_deliverable(
        work.provider,
        work.task_id,
        verified=DownloadedModel(
            path=model.path, size=model.size, root_hash=model.root_hash, matched=model.matched, source=model.source
        ),
        key=keys[-1],
    )
    yield DeliverableAcknowledged(transactions=await work.sent(*keys))


async def decrypt_model(work: Work) -> AsyncGenerator[Event, None]:
    """Wait until the provider has settled, open the model, and put the adapter in place with one rename."""
    fee = await _wait_settled(work)
    target = work.spec.adapter_dir
    if (files := await anyio.to_thread.run_sync(_files_of, target, work.state.job_id)) is None:
        model = known(work.state.model)
        if not await anyio.Path(model.path).exists():
            model = await _download(work)
            yield model
        files = await _unpack(work, model.path)
    yield ModelDecrypted(path=str(target), files=files, fee=work.state.fee if fee is None else fee)


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


async def _unpack(work: Work, encrypted: str) -> tuple[str, ...]:
    tuning, folder = work.broker.fine_tuning, work.folder
    archive, unpacked = folder / "model.zip", folder / "adapter"
    await anyio.to_thread.run_sync(lambda: shutil.rmtree(unpacked, ignore_errors=True))
    await tuning.decrypt_model(
        work.provider, work.task_id, encrypted, archive, expected_signer=known(work.state.terms).signer
    )
    await tuning.unpack_model(archive, unpacked)
    return await anyio.to_thread.run_sync(_put_in_place, unpacked, work.spec.adapter_dir, _manifest(work))


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
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(manifest, dict) or manifest.get("job_id") != job_id:
        return None
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return tuple(sorted(name for name in names if name != MANIFEST))


async def deploy_adapter(work: Work) -> AsyncGenerator[Event, None]:
    """Have the adapter served for chatting."""
    deployed = await work.broker.inference.lora.deploy_adapter(
        work.inference_provider, work.spec.model, work.task_id, wait=True, timeout_seconds=DEPLOY_SECONDS
    )
    yield AdapterDeployed(adapter_name=deployed.adapter_name, state=deployed.state.value)


async def clean_up(work: Work) -> None:
    """Remove the job's intermediate files."""
    await anyio.to_thread.run_sync(lambda: shutil.rmtree(work.folder, ignore_errors=True))
