"""Deliveries: download, verify, acknowledge, wait for the key, decrypt, unpack.

Nothing is acknowledged unverified unless the caller says so.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import anyio

from zg_async.errors import (
    AccountNotFoundError,
    AttestationError,
    ConfigError,
    KeyNotReleasedError,
    LostKeyError,
    ProviderRejectedError,
    ProviderUnavailableError,
    TaskFailedError,
)
from zg_async.logs import get_logger
from zg_async.managers import delivery
from zg_async.managers.context import Context
from zg_async.managers.diagnosis import Diagnosis, diagnose
from zg_async.managers.log_follow import LogFollow, MetricFollow
from zg_async.managers.model_sources import Method, check_method, fetch_model
from zg_async.managers.open_tasks import OpenTasks, read_open_tasks
from zg_async.managers.provider_client import ProviderClient
from zg_async.managers.recovery import Recovery, recover
from zg_async.managers.task_changes import TaskChange, TaskStateChanged
from zg_async.managers.watch import TaskWatch, WatchHub
from zg_async.tracing import observed
from zg_async.wire import provider_api, signing
from zg_async.wire.attestation import QuoteReport, check_quote
from zg_async.wire.hashing import hex0x, parse_address
from zg_async.wire.metric_series import MetricSeries
from zg_async.wire.records import (
    DOWNLOADABLE,
    TERMINAL,
    Address,
    Deliverable,
    DownloadedModel,
    FineTuningAccountDetails,
    FineTuningService,
    Receipt,
    TaskId,
    TaskProgress,
)
from zg_async.wire.task_log import parse_log

DownloadMethod = Method

_log = get_logger("zg_async.fine_tuning")
_ORDER: Final = tuple(TaskProgress)
_NOT_READY: Final = 409
_QUOTE_SECONDS: Final = 600.0
_LOOKS: Final = 60
_PAUSE: Final = 2.0
"""Seconds between looks at a task that is on chain and not yet served."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Acknowledgement:
    """An acknowledged delivery."""

    receipt: Receipt | None
    """None: it was acknowledged already."""
    deliverable: Deliverable
    """As it was before."""
    verified: bool
    """Whether bytes on disk were checked against the chain's hash."""
    pending: tuple[TaskId, ...]
    """Deliveries of this provider that were waiting for acknowledgement."""
    download: DownloadedModel | None = None
    """The checked file: its source, why that, and how long each source took."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryTerms:
    """What deliveries are subject to."""

    window: int
    """Seconds in which one has to be acknowledged, by the strictest rule in use."""
    penalty_percentage: int
    """What a missed window costs of the fee."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DeliveredModel:
    """A delivery, brought to its end."""

    download: DownloadedModel
    acknowledgement: Acknowledgement
    archive: Path
    """The decrypted zip."""
    adapter_dir: Path
    files: tuple[str, ...]
    """What was unpacked, relative to `adapter_dir`."""


@observed("fine_tuning")
class Deliverables:
    """What a wallet does with deliveries; the base of the fine-tuning manager."""

    def __init__(self, context: Context, hub: WatchHub) -> None:
        """Bind to a wallet and to the network's watches."""
        self._ctx = context
        self._hub = hub
        self._contract = context.services.fine_tuning
        self._quotes: dict[Address, tuple[str, Address, float]] = {}

    # ---- watching

    def watch_task(self, provider: str, task_id: str, *, cursor: str | None = None) -> TaskWatch:
        """Watch a task: its transitions as provider and chain report them, until nothing more can happen.

        Use it as `async for change in watch` or `async with watch as changes`. Leaving it, or being cancelled in it,
        ends the watch and never touches the task.

        Args:
            provider: The provider's address.
            task_id: Which task.
            cursor: Go on after the change that carried it; None: begin with the state now.
        """
        address = parse_address(provider, what="provider")
        return TaskWatch(self._hub, self._ctx.wallet, address, TaskId(task_id), cursor=cursor)

    async def wait_task(
        self, provider: str, task_id: str, until: TaskProgress = TaskProgress.DELIVERED
    ) -> TaskStateChanged:
        """Wait until a task has reached a state, or a later one; use `anyio.fail_after` for a deadline.

        Args:
            provider: The provider's address.
            task_id: Which task.
            until: The state waited for.

        Returns:
            The change that reached it.

        Raises:
            TaskFailedError: The task failed before; the error holds the end of its log.
        """
        last: TaskChange | None = None
        async with self.watch_task(provider, task_id) as changes:
            async for change in changes:
                last = change
                if not isinstance(change, TaskStateChanged):
                    continue
                if change.state in (TaskProgress.FAILED, TaskProgress.CANCELLED):
                    if until is change.state:
                        return change
                    raise await self._failed(provider, TaskId(task_id))
                if change.state is not TaskProgress.UNKNOWN and _ORDER.index(change.state) >= _ORDER.index(until):
                    return change
        raise TaskFailedError(
            f"task {task_id} ended without reaching {until.value}; the last thing seen was {last and last.kind}",
            task_id=task_id,
        )

    async def _failed(self, provider: str, task_id: TaskId) -> TaskFailedError:
        client = await self._client_of(provider)
        log = await client.get_log_or_empty(self._ctx.wallet, task_id)
        reason = provider_api.failure_reason(log)
        return TaskFailedError(
            f"task {task_id} at {client.provider} failed" + (f": {reason}" if reason else ""),
            task_id=task_id,
            log=log[-4000:],
            hint="The task's log holds the reason",
        )

    def follow_log(self, provider: str, task_id: str, *, offset: int = 0) -> LogFollow:
        """Follow a task's log: new text only, until the task has ended.

        Args:
            provider: The provider's address.
            task_id: Which task.
            offset: Bytes of the log that are known already.
        """
        address = parse_address(provider, what="provider")
        return LogFollow(self._hub, self._ctx.wallet, address, TaskId(task_id), offset=offset)

    def follow_metrics(self, provider: str, task_id: str) -> MetricFollow:
        """Follow a training's figures until the task has ended; `series` on what it returns holds all so far.

        Today's trainer logs them when the training has ended, older ones live: only then there is a time left.

        Args:
            provider: The provider's address.
            task_id: Which task.
        """
        return MetricFollow(self.follow_log(provider, task_id))

    async def get_metrics(self, provider: str, task_id: str) -> MetricSeries:
        """Read a training's figures as the log has them now.

        Args:
            provider: The provider's address.
            task_id: Which task.
        """
        client = await self._client_of(provider)
        series, now = MetricSeries(), self._ctx.clock.now()
        for entry in parse_log(await client.get_log_bytes(self._ctx.wallet, TaskId(task_id))):
            series.add(entry, now)
        return series

    async def list_open_tasks(self) -> OpenTasks:
        """List this wallet's unfinished tasks and unacknowledged deliveries at all providers.

        Returns:
            What chain and providers know; providers that don't answer are named.
        """
        return await read_open_tasks(self._ctx)

    async def diagnose(self, provider: str) -> Diagnosis:
        """Name the state this wallet is in at a provider, and the exact steps out of it. Sends nothing.

        Args:
            provider: The provider's address.
        """
        return await diagnose(self._ctx, provider)

    async def recover(self, provider: str, *, dry_run: bool = True) -> Recovery:
        """Take the steps that `diagnose` offers, as far as they go now; call it again where it had to wait.

        A provider that settled a delivery with penalty is freed by deleting the ledger: that takes the money from all
        sub-accounts, so it is refused while tasks are open elsewhere.

        Args:
            provider: The provider's address.
            dry_run: Only say what would be done.

        Raises:
            ConfigError: The state is one for people, or tasks are open elsewhere. Nothing was sent.
        """
        return await recover(self._ctx, provider, dry_run=dry_run)

    # ---- signer

    async def check_provider_quote(self, provider: str) -> QuoteReport:
        """Fetch a provider's quote and check it against its registration on chain.

        Args:
            provider: The provider's address.

        Returns:
            Each check with its outcome; nothing is raised for a failed one.
        """
        return await self._check_quote(await self._service(provider, fresh=True))

    async def _check_quote(self, service: FineTuningService) -> QuoteReport:
        reply = await self._client(service).get_quote()
        return check_quote(
            reply.body,
            header_signature=reply.headers.get("ZG-Quote-Signature"),
            expected_signer=service.tee_signer_address,
        )

    async def require_signer(self, provider: str, *, may_be_away: bool = False) -> FineTuningService:
        """Make sure that the contract's owner has approved a provider's TEE signer, and that its quote names it.

        A quote counts for ten minutes, if the registration stays the same; the chain is read each time.

        Args:
            provider: The provider's address.
            may_be_away: Let the chain's word suffice when the provider doesn't answer.

        Returns:
            Its registration.

        Raises:
            AttestationError: Not approved, or the quote fails a check.
            ProviderUnavailableError: It doesn't answer (retryable).
        """
        service = await self._service(provider, fresh=True)
        if not service.tee_signer_acknowledged:
            raise AttestationError(
                f"the contract's owner has not approved the TEE signer {service.tee_signer_address} of "
                f"{service.provider}",
                hint="Choose another provider; list_service() shows the approved ones",
            )
        known = self._quotes.get(service.provider)
        now = self._ctx.clock.monotonic()
        if (
            known is not None
            and known[:2] == (service.url, service.tee_signer_address)
            and now - known[2] < _QUOTE_SECONDS
        ):
            return service
        try:
            report = await self._check_quote(service)
        except ProviderUnavailableError as error:
            if not may_be_away:
                raise
            _log.warning("the quote of %s can't be checked now: %s", service.provider, error.message)
            return service
        if not report.passed:
            raise AttestationError(
                f"the quote of {service.provider} fails: {report.summary()}",
                hint="Don't send data to this provider",
            )
        self._quotes[service.provider] = (service.url, service.tee_signer_address, now)
        return service

    # ---- deliverable

    async def get_delivery_terms(self) -> DeliveryTerms:
        """Read what deliveries are subject to; kept for a minute."""
        lock_time, penalty = await self._ctx.services.delivery_terms()
        return DeliveryTerms(window=provider_api.ack_window(lock_time), penalty_percentage=penalty)

    async def get_deliverable(self, provider: str, task_id: str) -> Deliverable:
        """Read a delivery from the chain.

        Raises:
            DeliverableNotFoundError: Nothing was delivered under this id (yet), or it was evicted.
        """
        address = parse_address(provider, what="provider")
        return await self._ctx.chain.call(self._contract.get_deliverable(self._ctx.wallet, address, TaskId(task_id)))

    async def download_lora_from_tee(
        self, provider: str, task_id: str, output_path: str | os.PathLike[str]
    ) -> DownloadedModel:
        """Download an encrypted model from the provider and check it against the hash on chain.

        A cut download goes on where it stopped, also in another process. Nothing appears under the final name
        before the hash is right.

        Args:
            provider: The provider's address.
            task_id: Which task.
            output_path: A file, or a folder that gets `lora_model_<task_id>.zip` (the peers' name; it is encrypted).

        Raises:
            HashMismatchError: The bytes aren't what the chain says; they are removed.
            DeliverableNotFoundError: Nothing was delivered.
        """
        deliverable = await self.get_deliverable(provider, task_id)
        return await self._download_from_tee(provider, deliverable, await _file_of(deliverable, output_path))

    async def _download_from_tee(self, provider: str, deliverable: Deliverable, path: Path) -> DownloadedModel:
        client = await self._client_of(provider)
        signer = self._ctx.require_signer()

        async def body() -> Mapping[str, object]:
            timestamp = int(await client.now())
            message = signing.model_download_hash(deliverable.id, timestamp)
            return provider_api.download_body(
                signing.signature_hex(await self._ctx.sign(message, purpose="download", provider=client.provider)),
                timestamp,
            )

        try:
            return await delivery.download_model(client, signer.address, deliverable, path, body)
        except ProviderRejectedError as refused:
            if refused.status != _NOT_READY:
                raise
            await self._wait_served(client, deliverable.id, refused)
        return await delivery.download_model(client, signer.address, deliverable, path, body)

    async def _wait_served(self, client: ProviderClient, task_id: TaskId, refused: ProviderRejectedError) -> None:
        """Wait until the provider calls a task delivered, too: the chain tells of it a moment earlier."""
        for _ in range(_LOOKS):
            task = await client.get_task(self._ctx.wallet, task_id)
            if task.progress in DOWNLOADABLE:
                return
            if task.progress in TERMINAL:
                refused.hint = "Its delivery is on chain, but the provider has lost the task: ask who runs it"
                raise refused
            await self._ctx.clock.sleep(_PAUSE)
        raise ProviderUnavailableError(
            f"{client.provider} has put task {task_id} on chain, but doesn't serve it",
            hint="Download it later, before the acknowledgement window closes",
            provider=client.provider,
        ) from refused

    async def download_model(
        self,
        provider: str,
        task_id: str,
        output_path: str | os.PathLike[str],
        download_method: DownloadMethod = "auto",
    ) -> DownloadedModel:
        """Download an encrypted model from the best source there is and check it against the hash on chain.

        Args:
            provider: The provider's address.
            task_id: Which task.
            output_path: A file, or a folder.
            download_method: `"0g-storage"`, `"tee"` (the provider), or `"auto"`: 0G Storage first, then the provider.

        Returns:
            The file; `source`, `attempts` and `fallback_reason` say where it came from, why, and how long each took.

        Raises:
            HashMismatchError: The bytes aren't what the chain says; they are removed.
            DeliverableNotFoundError: Nothing was delivered.
            StorageError: Only 0G Storage was asked for, and it hasn't got it.
        """
        check_method(download_method)
        deliverable = await self.get_deliverable(provider, task_id)
        return await fetch_model(
            download_method,
            deliverable,
            await _file_of(deliverable, output_path),
            storage=self._ctx.storage,
            from_tee=lambda target: self._download_from_tee(provider, deliverable, target),
            clock=self._ctx.clock,
        )

    async def acknowledge_deliverable(
        self,
        provider: str,
        task_id: str,
        *,
        verified: DownloadedModel | None = None,
        unverified: bool = False,
        check_signer: bool = True,
        key: str | None = None,
    ) -> Acknowledgement:
        """Acknowledge a delivery on chain: from then on the provider takes its fee and releases the key.

        Args:
            provider: The provider's address.
            task_id: Which task.
            verified: A download whose hash was checked; its file is checked again, against the chain's hash of now.
            unverified: Acknowledge without a checked file: pays in full for something nobody has looked at.
            check_signer: Refuse a provider whose TEE signer isn't approved or isn't in its quote; one that doesn't
                answer is no reason to miss the window. False: when the window closes and the file is right.
            key: Names the effect in the outbox.

        Returns:
            The transaction, what was acknowledged, and what else was waiting.

        Raises:
            HashMismatchError: The file isn't what the chain says. Nothing was sent.
            RpcError: Two RPC endpoints name different hashes; it says which.
            LostKeyError: The provider settled it without acknowledgement.
            AttestationError: The TEE signer isn't approved any more, or the provider's quote names another.
            ConfigError: Neither `verified` nor `unverified` was given.
        """
        address = parse_address(provider, what="provider")
        account = await self._ctx.chain.call(self._contract.get_account(self._ctx.wallet, address))
        pending = tuple(d.id for d in account.deliverables if not d.acknowledged)
        if verified is None and not unverified:
            raise ConfigError(
                f"no checked file for task {task_id}; waiting for acknowledgement at {address}: "
                f"{', '.join(pending) or 'nothing'}",
                hint="acknowledge_model downloads and checks it; unverified=True pays without looking",
            )
        read = self._contract.get_deliverable(self._ctx.wallet, address, TaskId(task_id))
        deliverable = await self._ctx.chain.call_agreed(read, lambda d: d.model_root_hash)
        if deliverable.acknowledged:
            return Acknowledgement(
                receipt=None, deliverable=deliverable, verified=verified is not None, pending=pending
            )
        if deliverable.settled:
            raise lost_key(deliverable, address)
        await self._ctx.require_verified_provider(address, "fine-tuning")
        if check_signer:
            await self.require_signer(address, may_be_away=True)
        if verified is not None:
            await delivery.check_file(verified.path, deliverable)
        else:
            _log.warning("acknowledging task %s at %s without a checked copy", task_id, address)
        receipt = await self._ctx.write(self._contract.acknowledge_deliverable(address, deliverable.id), key=key)
        return Acknowledgement(receipt=receipt, deliverable=deliverable, verified=verified is not None, pending=pending)

    async def acknowledge_model(
        self,
        provider_address: str,
        task_id: str,
        data_path: str | os.PathLike[str],
        download_method: DownloadMethod = "auto",
        *,
        key: str | None = None,
    ) -> Acknowledgement:
        """Download a delivered model, check it against the hash on chain, and acknowledge it.

        Args:
            provider_address: The provider's address.
            task_id: Which task.
            data_path: Where the encrypted model goes: a file, or a folder.
            download_method: `"0g-storage"`, `"tee"` (the provider), or `"auto"`: 0G Storage first, then the provider.
            key: Names the effect in the outbox.

        Returns:
            The transaction and the checked file, with the reason for its source.

        Raises:
            HashMismatchError: The bytes aren't what the chain says. Nothing was acknowledged.
        """
        model = await self.download_model(provider_address, task_id, data_path, download_method)
        done = await self.acknowledge_deliverable(provider_address, task_id, verified=model, key=key)
        return dataclasses.replace(done, download=model)

    async def wait_key(self, provider: str, task_id: str) -> Deliverable:
        """Wait until the provider has settled an acknowledged delivery and so released its key.

        Returns:
            The delivery with its wrapped key.

        Raises:
            LostKeyError: It was settled without acknowledgement: no key will come.
            KeyNotReleasedError: The provider abandoned it, or it isn't acknowledged.
        """
        address = parse_address(provider, what="provider")
        deliverable = await self.get_deliverable(address, task_id)
        if not deliverable.acknowledged and not deliverable.settled:
            raise KeyNotReleasedError(
                f"task {task_id} at {address} is not acknowledged, so its key isn't released",
                hint="acknowledge_model first",
            )
        if not deliverable.settled:
            await self.wait_task(address, task_id, until=TaskProgress.FINISHED)
            deliverable = await self.get_deliverable(address, task_id)
        secret_of(deliverable, address)
        return deliverable

    async def decrypt_model(
        self,
        provider_address: str,
        task_id: str,
        encrypted_model_path: str | os.PathLike[str],
        decrypted_model_path: str | os.PathLike[str],
        *,
        expected_signer: str | None = None,
    ) -> Path:
        """Decrypt a delivered model with the key from the chain.

        The output appears only when every tag and the TEE signer's signature were right.

        Args:
            provider_address: The provider's address.
            task_id: Which task.
            encrypted_model_path: The downloaded file.
            decrypted_model_path: Where the zip goes.
            expected_signer: The TEE signer at delivery; None: the provider's signer of now, which has to be approved,
                and named by the provider's quote if it answers.

        Returns:
            The zip's path.

        Raises:
            KeyNotReleasedError: The provider hasn't settled yet; `wait_key` waits for it.
            LostKeyError: It was settled without acknowledgement.
            EnvelopeError: Wrong key, cut, padded or damaged file.
            SignatureMismatchError: The file isn't signed by the TEE signer.
            AttestationError: The provider's signer of now isn't approved, or its quote names another.
        """
        key = self._ctx.require_key()
        provider = parse_address(provider_address, what="provider")
        deliverable = await self.get_deliverable(provider, task_id)
        await self._ctx.require_verified_provider(provider, "fine-tuning")
        wrapped = secret_of(deliverable, provider)
        if expected_signer:
            signer = parse_address(expected_signer, what="signer")
        else:
            signer = (await self.require_signer(provider, may_be_away=True)).tee_signer_address
        secret = await key.ecies_decrypt(wrapped)
        target = Path(decrypted_model_path)
        await delivery.decrypt_file(Path(encrypted_model_path), target, key=secret, expected_signer=signer)
        return target

    async def unpack_model(
        self, archive: str | os.PathLike[str], output_dir: str | os.PathLike[str]
    ) -> tuple[str, ...]:
        """Unpack a decrypted model safely: no escape, no link, no bomb; pickles stay out.

        Args:
            archive: The decrypted zip.
            output_dir: A folder that doesn't exist yet; it appears when everything is unpacked.

        Returns:
            The files, relative to the folder.

        Raises:
            UnsafeArchiveError: Nothing of it was kept.
        """
        return await delivery.unpack(Path(archive), Path(output_dir))

    async def deliver(self, provider: str, task_id: str, output_dir: str | os.PathLike[str]) -> DeliveredModel:
        """Bring a delivery to its end: download, verify, acknowledge, wait for the key, decrypt, unpack.

        Every step that was done before, in any process, is recognised and not done again.

        Args:
            provider: The provider's address.
            task_id: Which task.
            output_dir: Gets `model.encrypted`, `model.zip` and the folder `adapter`.
        """
        folder = Path(output_dir)
        await anyio.Path(folder).mkdir(parents=True, exist_ok=True)
        download = await self.download_lora_from_tee(provider, task_id, folder / "model.encrypted")
        acknowledgement = await self.acknowledge_deliverable(
            provider, task_id, verified=download, key=f"{task_id}/acknowledge"
        )
        await self.wait_key(provider, task_id)
        archive, adapter = folder / "model.zip", folder / "adapter"
        await self.decrypt_model(provider, task_id, download.path, archive)
        files = await self.unpack_model(archive, adapter)
        return DeliveredModel(
            download=download, acknowledgement=acknowledgement, archive=archive, adapter_dir=adapter, files=files
        )

    # ---- helpers

    async def _service(self, provider: str, *, fresh: bool = False) -> FineTuningService:
        return await self._ctx.services.fine_tuning_service(parse_address(provider, what="provider"), fresh=fresh)

    def _client(self, service: FineTuningService) -> ProviderClient:
        return ProviderClient(self._ctx.http, service.url, service.provider, self._ctx.clock)

    async def _client_of(self, provider: str) -> ProviderClient:
        return self._client(await self._service(provider))

    async def _account_or_none(self, provider: Address) -> FineTuningAccountDetails | None:
        try:
            return await self._ctx.chain.call(self._contract.get_account(self._ctx.wallet, provider))
        except AccountNotFoundError:
            return None


async def _file_of(deliverable: Deliverable, output_path: str | os.PathLike[str]) -> Path:
    path = Path(output_path)
    return path / f"lora_model_{deliverable.id}.zip" if await anyio.Path(path).is_dir() else path


def lost_key(deliverable: Deliverable, provider: Address) -> LostKeyError:
    """Make the error of a delivery that was settled without acknowledgement."""
    return LostKeyError(
        f"{provider} settled task {deliverable.id} ({hex0x(deliverable.model_root_hash)[:18]}…) without "
        "acknowledgement: the penalty is paid, no key will come, and it can't deliver to this wallet any more",
        hint="To use this provider again: retrieve_fund, wait out the lock, retrieve_fund, refund the ledger to zero "
        "(that deletes it with its sub-accounts), then open both anew",
    )


def secret_of(deliverable: Deliverable, provider: Address) -> bytes:
    """Return a delivery's wrapped key.

    Raises:
        LostKeyError: Settled without acknowledgement.
        KeyNotReleasedError: Not settled yet, or abandoned by the provider.
    """
    if deliverable.encrypted_secret:
        return deliverable.encrypted_secret
    if deliverable.settled and not deliverable.acknowledged:
        raise lost_key(deliverable, provider)
    if deliverable.settled:
        raise KeyNotReleasedError(
            f"{provider} abandoned task {deliverable.id}: nothing was paid, and there is no key",
            hint="Create the task anew",
        )
    raise KeyNotReleasedError(
        f"{provider} has not settled task {deliverable.id} yet",
        hint="wait_key waits for it, usually one to three minutes",
    )
