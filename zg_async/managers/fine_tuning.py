"""Fine-tuning: providers, accounts, datasets and tasks. Deliveries are in `deliverables`, watching is in `watch`.

Protocol: 0g-serving-broker api/fine-tuning, 0g-serving-contract contracts/fine-tuning.
"""

import dataclasses
import datetime as dt
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

import anyio
import anyio.to_thread

from zg_async.errors import (
    AccountNotFoundError,
    ConfigError,
    ContractRevertedError,
    PreviousDeliverableNotAcknowledgedError,
    ProviderRejectedError,
    ProviderUnavailableError,
    QueueFullError,
    SignerNotAcknowledgedError,
    TaskNotFoundError,
    UnfinishedTaskError,
    ZgError,
)
from zg_async.managers.choosing import ProviderChoice, probe_all, rank
from zg_async.managers.dataset import check_dataset, require_usable, upload_dataset
from zg_async.managers.dataset_sources import (
    DatasetBook,
    ProvidedDataset,
    check_gas_price,
    provide_dataset,
    store_dataset,
)
from zg_async.managers.deliverables import Deliverables
from zg_async.managers.model_limits import ModelLimits, limits_of
from zg_async.managers.model_sources import Method
from zg_async.managers.task_labels import TaskLabel, TaskLabels, pick
from zg_async.managers.tokens import TokenCount, count_tokens
from zg_async.managers.training_params import TrainingParamsSource, read_training_params
from zg_async.managers.verification import OnLog
from zg_async.managers.verification_record import ServiceVerification
from zg_async.showing import Records
from zg_async.text import printable
from zg_async.tracing import observed
from zg_async.units import format_amount
from zg_async.wire import provider_api, signing
from zg_async.wire.hashing import parse_address
from zg_async.wire.records import (
    Address,
    CancelOutcome,
    CancelResult,
    FineTuningAccountDetail,
    FineTuningAccountDetails,
    FineTuningService,
    Model,
    ModelCatalogue,
    Receipt,
    RootHash,
    Task,
    TaskId,
    UploadedDataset,
)
from zg_async.wire.rows import DatasetReport, check_training_params
from zg_async.wire.storage_records import FetchedFile
from zg_async.wire.strict_json import decode_json

TaskPolicy = Literal["queue", "fail", "wait_for_free"]

_FREE_POLL: Final = 5.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TaskPreflight:
    """What stands in the way of a task, found before anything is sent."""

    problems: tuple[ZgError, ...]
    """Empty: the provider would take the task now."""
    pending: int
    """Tasks of all users in setup or training at the provider."""
    unfinished: Task | None
    """This wallet's open task there, if any."""
    account: FineTuningAccountDetails | None
    service: FineTuningService
    estimate: "FeeEstimate | None" = None
    """The task's fee; None: it wasn't asked for, or something stands in the way before."""

    def raise_first(self) -> None:
        """Raise the first problem with the others as notes; do nothing when there is none."""
        if self.problems:
            error = self.problems[0]
            for other in self.problems[1:]:
                error.add_note(f"also: {other}")
            raise error


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FeeEstimate:
    """What a task will cost, in neuron; exact when the three are the same."""

    low: int
    likely: int
    high: int
    method: str
    """`tokenizer`: counted; `bytes`: a range."""


@observed("fine_tuning")
class FineTuningManager(Deliverables):
    """Fine-tuning with one wallet."""

    # ---- providers and models

    async def list_service(self, include_unacknowledged: bool = False) -> Records[FineTuningService]:
        """List the registered fine-tuning providers. Needs no key.

        Args:
            include_unacknowledged: Also those whose TEE signer the contract owner hasn't approved.

        Returns:
            Their registrations, as read from the chain now.
        """
        services = await self._ctx.services.fine_tuning_services()
        return Records(s for s in services if include_unacknowledged or s.tee_signer_acknowledged)

    async def get_service(self, provider: str) -> FineTuningService:
        """Read one provider's registration from the chain now. Needs no key.

        Args:
            provider: The provider's address.

        Returns:
            The registration.

        Raises:
            ServiceNotFoundError: The provider is not registered.
        """
        return await self._service(provider, fresh=True)

    async def choose(
        self,
        model: str | None = None,
        *,
        max_price: int | None = None,
        min_gpu: int = 0,
        free_only: bool = False,
        timeout_seconds: float = 5.0,
    ) -> tuple[ProviderChoice, ...]:
        """Rank the approved providers for a task, with reasons. All are asked at once; needs no key, sends nothing.

        Args:
            model: Name or hash of the model it has to have.
            max_price: Neuron per token, at most.
            min_gpu: GPUs it has to have.
            free_only: Only those without tasks ahead.
            timeout_seconds: How long each may take to answer.

        Returns:
            All of them: first those that fit, by queue, price and address, then the others with what is against them.
        """
        services = await self.list_service()
        refusals: dict[Address, str] = {}

        async def ask(service: FineTuningService) -> int:
            if model is not None:
                try:
                    await self.resolve_model(service.provider, model)
                except ConfigError as e:
                    refusals[service.provider] = e.message
            return await self._client(service).pending()

        probes = await probe_all(services, ask, self._ctx.clock, timeout=timeout_seconds)
        against = [refusals.get(service.provider, "") for service in services]
        return rank(services, probes, against, max_price=max_price, min_gpu=min_gpu, free_only=free_only)

    async def list_model(self) -> ModelCatalogue:
        """List what can be trained: predefined models of this network, and what providers offer of their own.

        Returns:
            The catalogue; providers that announce models but didn't answer are listed as unreachable.
        """
        found: list[Model] = []
        unreachable: list[Address] = []

        async def ask(service: FineTuningService) -> None:
            try:
                found.extend(await self._client(service).models())
            except ZgError:
                unreachable.append(service.provider)

        async with anyio.create_task_group() as group:
            for service in await self.list_service():
                if service.models:
                    group.start_soon(ask, service)
        network = self._ctx.services.network.name
        return ModelCatalogue(
            predefined=provider_api.predefined_models(network),
            customised=tuple(sorted(found, key=lambda m: (m.name, m.provider or ""))),
            unreachable=tuple(sorted(unreachable)),
        )

    async def resolve_model(self, provider_address: str, name: str) -> Model:
        """Find a model by name or hash: predefined ones first, then the provider's own.

        Args:
            provider_address: The provider asked for customised models.
            name: For example `Qwen2.5-0.5B-Instruct`; a `Qwen/` prefix and any case are accepted.

        Raises:
            ConfigError: Neither this network nor the provider has it.
        """
        if model := provider_api.predefined(name, self._ctx.services.network.name):
            return model
        client = await self._client_of(provider_address)
        for model in await client.models():
            if name in (model.name, model.hash):
                return model
        known = ", ".join(m.name for m in provider_api.predefined_models(self._ctx.services.network.name))
        raise ConfigError(
            f"unknown model {printable(name, limit=80)!r} on {self._ctx.services.network.name}",
            hint=f"Predefined are {known}; {client.provider} offers no other of that name",
        )

    async def model_limits(self, provider: str, model: str) -> ModelLimits:
        """Return what a provider takes for a model: training parameters, dataset formats and size, price.

        Args:
            provider: The provider's address.
            model: A predefined model's name or hash, or one of the provider's own.

        Returns:
            The limits; prices as registered on chain now.

        Raises:
            ConfigError: Neither this network nor the provider has the model.
            ServiceNotFoundError: The provider is not registered.
        """
        found = await self.resolve_model(provider, model)
        return limits_of(await self._service(provider, fresh=True), found)

    async def model_usage(self, provider: str, model_name: str, output_path: str | os.PathLike[str]) -> Path:
        """Save a customised model's usage document, a zip, streamed and renamed when it is whole.

        Args:
            provider: The provider's address.
            model_name: One of its customised models; predefined ones have no such document.
            output_path: A file, or a folder that gets `<model_name>.zip`.

        Returns:
            Where it was saved.
        """
        client = await self._client_of(provider)
        return await client.model_usage(model_name, Path(output_path))

    # ---- account

    async def get_account(self, provider: str) -> FineTuningAccountDetails:
        """Read this wallet's sub-account at a provider.

        Args:
            provider: The provider's address.

        Returns:
            The sub-account; amounts in neuron, only live refunds, deliverables oldest first.

        Raises:
            AccountNotFoundError: There is none yet; `ledger.transfer_fund` creates it.
        """
        address = parse_address(provider, what="provider")
        return await self._ctx.chain.call(self._contract.get_account(self._ctx.wallet, address))

    async def get_account_with_detail(self, provider: str) -> FineTuningAccountDetail:
        """Read this wallet's sub-account at a provider with the timing of its refunds.

        Args:
            provider: The provider's address.

        Returns:
            The sub-account; each refund says when it unlocks, counted from block time.
        """
        account = await self.get_account(provider)
        lock_time = await self.get_locked_time()
        block = await self._ctx.chain.block()
        lock = dt.timedelta(seconds=lock_time)
        refunds = tuple(dataclasses.replace(r, unlocks_at=r.created_at + lock) for r in account.refunds)
        return FineTuningAccountDetail(account=account, refunds=refunds, lock_time=lock_time, as_of=block.timestamp)

    async def get_locked_time(self) -> int:
        """Read how long a refund stays locked, in seconds."""
        return await self._ctx.services.lock_time()

    # ---- signer

    async def verify_service(
        self,
        provider_address: str,
        output_dir: str | os.PathLike[str] | None = ".",
        on_log: OnLog | None = None,
        *,
        accept_changes: bool = False,
    ) -> ServiceVerification:
        """Verify a provider's TEE: every check by itself, the quote's signature included. Sends nothing else.

        Args:
            provider_address: The provider's address.
            output_dir: Gets the report as it came (`fine_tuning_attestation_report.json`) and
                `verification_<provider>_<time>.json`, which `recheck_report` checks again offline. None: no files.
            on_log: Called with a line for each step and check.
            accept_changes: Take over what differs from the last time it was verified.

        Returns:
            The checks. `verified` needs all mandatory ones; without the extra `tee` it is never true. A failed check
            isn't raised.

        Raises:
            ServiceNotFoundError: The provider is not registered.
            ProviderUnavailableError: It doesn't answer.
        """
        verifier = self._ctx.require_verifier()
        return await verifier.verify("fine-tuning", provider_address, output_dir, on_log, accept_changes=accept_changes)

    async def acknowledge_provider_signer(self, provider_address: str, *, key: str | None = None) -> Receipt | None:
        """Check a provider's quote and acknowledge its TEE signer on chain.

        Args:
            provider_address: The provider's address.
            key: Names the effect in the outbox.

        Returns:
            The transaction; None when it was acknowledged already, as every transfer does by itself.

        Raises:
            AccountNotFoundError: No sub-account yet: `ledger.transfer_fund` first.
            AttestationError: The quote fails a check, or the contract's owner has not approved the signer.
        """
        await self._ctx.require_verified_provider(provider_address, "fine-tuning")
        account = await self.get_account(provider_address)
        service = await self.require_signer(provider_address)
        if account.acknowledged:
            return None
        return await self._ctx.write(self._contract.acknowledge_tee_signer(service.provider, True), key=key)

    async def unacknowledge_provider_signer(self, provider_address: str, *, key: str | None = None) -> Receipt:
        """Take this wallet's acknowledgement of a provider's TEE signer back.

        Raises:
            ContractRevertedError: The sub-account still holds money.
        """
        address = parse_address(provider_address, what="provider")
        return await self._ctx.write(self._contract.acknowledge_tee_signer(address, False), key=key)

    async def acknowledge_tee_signer_by_owner(self, provider: str, *, key: str | None = None) -> Receipt:
        """Approve a provider's TEE signer. Only the contract owner's wallet can.

        Raises:
            ContractRevertedError: This wallet isn't the contract's owner, or the provider isn't registered.
        """
        address = parse_address(provider, what="provider")
        return await self._ctx.write(self._contract.acknowledge_tee_signer_by_owner(address), key=key)

    async def remove_service(self, *, key: str | None = None) -> Receipt:
        """Withdraw this wallet's own fine-tuning service; its stake comes back. For providers.

        Raises:
            ServiceNotFoundError: The wallet has no service.
        """
        return await self._ctx.write(self._contract.remove_service(), key=key)

    async def revoke_tee_signer_acknowledgement(self, provider: str, *, key: str | None = None) -> Receipt:
        """Take the contract owner's approval of a provider's TEE signer back. Only the owner's wallet can.

        A user's own acknowledgement is taken back by `unacknowledge_provider_signer`.

        Raises:
            ContractRevertedError: This wallet isn't the contract's owner.
        """
        address = parse_address(provider, what="provider")
        try:
            return await self._ctx.write(self._contract.revoke_tee_signer_acknowledgement(address), key=key)
        except ContractRevertedError as e:
            if e.hint is None:
                e.hint = "Only the contract's owner can do this; for your own use unacknowledge_provider_signer"
            raise

    # ---- dataset

    async def check_dataset(self, dataset_path: str | os.PathLike[str]) -> DatasetReport:
        """Check a dataset file by the provider's rules, in constant memory. Sends nothing.

        Args:
            dataset_path: A JSONL file.

        Returns:
            The report: format, counts, errors, and what the provider would drop, each with row numbers.
        """
        return await check_dataset(dataset_path)

    async def count_tokens(
        self, dataset_path: str | os.PathLike[str], *, tokenizer: str | os.PathLike[str] | None = None
    ) -> TokenCount:
        """Count a dataset's tokens by the provider's rule. Sends nothing, downloads nothing.

        Args:
            dataset_path: A JSONL file that goes to a provider's TEE.
            tokenizer: The model's `tokenizer.json` (needs the extra `tokens`); None: the answer is a range.

        Returns:
            The count, or the range it lies in; for one epoch.
        """
        return await count_tokens(dataset_path, tokenizer=tokenizer)

    async def calculate_token(
        self,
        dataset_path: str | os.PathLike[str],
        pre_trained_model_name: str,
        use_python: bool = True,
        provider_address: str | None = None,
        *,
        tokenizer: str | os.PathLike[str] | None = None,
    ) -> int:
        """Count a dataset's tokens as the peers' method of this name is meant to; see `count_tokens`.

        Args:
            dataset_path: A JSONL file.
            pre_trained_model_name: A model's name or hash.
            use_python: Accepted for compatibility; nothing is downloaded or run in either case.
            provider_address: Asked for the model if it isn't a predefined one.
            tokenizer: The model's `tokenizer.json`.

        Returns:
            The count; without a tokenizer the most it can be, never 0. Times price and epochs, plus the model's
            storage fee, it is the fee.

        Raises:
            ConfigError: Neither this network nor the provider has the model, or a file can't be read.
        """
        del use_python
        if provider_address is not None:
            await self.resolve_model(provider_address, pre_trained_model_name)
        elif provider_api.predefined(pre_trained_model_name, self._ctx.services.network.name) is None:
            raise ConfigError(
                f"{printable(pre_trained_model_name, limit=80)!r} is no predefined model",
                hint="Pass provider_address= to ask a provider for it",
            )
        return max((await self.count_tokens(dataset_path, tokenizer=tokenizer)).high, 1)

    async def upload_dataset_to_tee(
        self, provider_address: str, dataset_path: str | os.PathLike[str], *, reuse: bool = False
    ) -> UploadedDataset:
        """Check a dataset and send it into a provider's TEE.

        Args:
            provider_address: The provider's address.
            dataset_path: A JSONL file of at most 100 MiB.
            reuse: Don't send it again when this wallet sent the same bytes to this provider not long ago: it keeps
                them for three days.

        Returns:
            Its hash, equal on both sides.

        Raises:
            DatasetError: The provider would refuse it, or it has no rows. Nothing was sent.
            HashMismatchError: The provider reports another hash than the file has.
        """
        signer = self._ctx.require_signer()
        await self._ctx.require_verified_provider(provider_address, "fine-tuning")
        client = await self._client_of(provider_address)

        async def fields() -> Mapping[str, str]:
            timestamp = int(await client.now())
            message = signing.dataset_upload_hash(signer.address, timestamp)
            signature = signing.signature_hex(
                await self._ctx.sign(message, purpose="dataset upload", provider=client.provider)
            )
            return {"signature": signature, "timestamp": str(timestamp)}

        book = DatasetBook(self._ctx.state_dir, genesis=self._ctx.chain.genesis_hash, clock=self._ctx.clock)
        if reuse:
            report = await check_dataset(dataset_path)
            require_usable(Path(dataset_path), report)
            if await book.has(signer.address, client.provider, report.keccak256):
                return UploadedDataset(dataset_hash=RootHash(report.keccak256), size=report.size, reused=True)
        uploaded = await upload_dataset(client, signer.address, dataset_path, fields)
        await book.note(signer.address, client.provider, uploaded.dataset_hash)
        return uploaded

    async def provide_dataset(
        self,
        provider_address: str,
        dataset_path: str | os.PathLike[str],
        method: Method = "auto",
        *,
        public: bool = False,
        reuse: bool = True,
        key: str | None = None,
    ) -> ProvidedDataset:
        """Bring a dataset to where a provider finds it: 0G Storage first, then the provider's TEE; or as asked.

        Args:
            provider_address: The provider's address.
            dataset_path: A JSONL file.
            method: `"auto"`, `"0g-storage"` or `"tee"`.
            public: Agree that everybody can read it for ever: needed for 0G Storage on a public network. Without,
                `"auto"` takes the TEE.
            reuse: Don't send again what the provider was sent not long ago.
            key: Names a payment in the outbox.

        Returns:
            The hash a task names, the way taken, how long each took, and why not the first.

        Raises:
            DatasetError: No provider would train on it. Nothing was sent.
            ConfigError: Only 0G Storage was asked for, without consent.
        """
        return await provide_dataset(
            method,
            Path(dataset_path),
            storage=self._ctx.storage,
            public=public,
            to_tee=lambda: self.upload_dataset_to_tee(provider_address, dataset_path, reuse=reuse),
            clock=self._ctx.clock,
            key=key,
        )

    async def upload_dataset(
        self,
        data_path: str | os.PathLike[str],
        gas_price: int | None = None,
        max_gas_price: int | None = None,
        *,
        public: bool = False,
        key: str | None = None,
    ) -> RootHash:
        """Check a dataset and put it into 0G Storage.

        Args:
            data_path: A JSONL file.
            gas_price: Neuron per gas the caller expects: nothing is sent when it is more. The fee policy sets it.
            max_gas_price: Neuron per gas above which nothing is sent; None: the broker's cap.
            public: Agree that everybody can read it for ever: needed on a public network.
            key: Names the payment in the outbox.

        Returns:
            Its storage root, which a task can name as its dataset.

        Raises:
            DatasetError: No provider would train on it. Nothing was sent.
            ConfigError: No consent to publish it, or no storage on this network.
            FeeCapError: Gas costs more than `max_gas_price`.
            StorageError: It can't be stored.
        """
        await check_gas_price(self._ctx.chain, gas_price, max_gas_price)
        stored = await store_dataset(self._ctx.storage, Path(data_path), public=public, key=key)
        return stored.dataset_hash

    async def download_dataset(self, data_path: str | os.PathLike[str], data_root: str) -> FetchedFile:
        """Fetch a dataset from 0G Storage; see `broker.storage.download`.

        Args:
            data_path: Where it goes; nothing is overwritten.
            data_root: Its storage root.
        """
        if self._ctx.storage is None:
            raise ConfigError("this network has no 0G Storage")
        return await self._ctx.storage.download(data_root, data_path)

    # ---- tasks

    async def check_task(
        self,
        provider_address: str,
        training_path: TrainingParamsSource,
        *,
        model: str | None = None,
        dataset_path: str | os.PathLike[str] | None = None,
        tokenizer: str | os.PathLike[str] | None = None,
    ) -> TaskPreflight:
        """Look for everything that would make a provider refuse or fail a task now. Sends nothing.

        Args:
            provider_address: The provider's address.
            training_path: The training parameters, as in `create_task`.
            model: With `dataset_path`: its fee is estimated, and compared with what the sub-account can pay.
            dataset_path: The dataset's file.
            tokenizer: The model's `tokenizer.json`, to know the fee exactly; None: it is a range.

        Returns:
            All problems found, in the order of the provider's own checks.
        """
        problems: list[ZgError] = []
        try:
            await anyio.to_thread.run_sync(read_training_params, training_path)
        except ConfigError as e:
            problems.append(e)
        service = await self._service(provider_address, fresh=True)
        client = self._client(service)
        account = await self._account_or_none(service.provider)
        problems += _account_problems(account, service)
        estimate = None
        if model is not None and dataset_path is not None and not problems[:1]:
            estimate = await self._estimate(service, training_path, model, dataset_path, tokenizer)
            if account is not None and account.spendable < estimate.high:
                problems.append(_short(account, service.provider, estimate))
        tasks = await client.list_tasks(self._ctx.wallet)
        unfinished = next((t for t in tasks if not t.is_terminal), None)
        if unfinished is not None:
            problems.append(_unfinished(unfinished))
        return TaskPreflight(
            problems=tuple(problems),
            pending=await client.pending(),
            unfinished=unfinished,
            account=account,
            service=service,
            estimate=estimate,
        )

    async def _estimate(
        self,
        service: FineTuningService,
        training_path: TrainingParamsSource,
        model_name: str,
        dataset_path: str | os.PathLike[str],
        tokenizer: str | os.PathLike[str] | None,
    ) -> FeeEstimate:
        text = await anyio.to_thread.run_sync(read_training_params, training_path)
        epochs = check_training_params(text).num_train_epochs
        model = await self.resolve_model(service.provider, model_name)
        count = await count_tokens(dataset_path, tokenizer=tokenizer)
        low, likely, high = (
            provider_api.estimate_fee(tokens, service.price_per_token, epochs, model)
            for tokens in (count.low, count.likely, count.high)
        )
        return FeeEstimate(low=low, likely=likely, high=high, method=count.method)

    async def create_task(
        self,
        provider_address: str,
        pre_trained_model_name: str,
        dataset_hash: str,
        training_path: TrainingParamsSource,
        *,
        policy: TaskPolicy = "queue",
        request_nonce: int | None = None,
    ) -> TaskId:
        """Create a training task, after a preflight.

        The provider checks balance and fee only when it sets the task up, so a created task can still fail.

        Args:
            provider_address: The provider's address.
            pre_trained_model_name: A model's name or hash.
            dataset_hash: As `upload_dataset_to_tee` returned it, or a 0G Storage root.
            training_path: The five parameters: a file's path, a mapping, or JSON text.
            policy: `"queue"` accepts waiting behind others, `"fail"` refuses to, `"wait_for_free"` waits until nobody
                is ahead.
            request_nonce: The number by which the task is found again; None: a new one.

        Returns:
            The task's id.

        Raises:
            UnfinishedTaskError: This wallet has an open task there; the error names it and its next step.
            QueueFullError: Others are ahead and `policy` is `"fail"`, or the queue is full.
            ProviderUnavailableError: No answer, and no task with our nonce was found: look again before repeating.
        """
        self._ctx.require_key()
        signer = self._ctx.require_signer()
        await self._ctx.require_verified_provider(provider_address, "fine-tuning")
        params = await anyio.to_thread.run_sync(read_training_params, training_path)
        model = await self.resolve_model(provider_address, pre_trained_model_name)
        preflight = await self.check_task(provider_address, params)
        preflight.raise_first()
        client = self._client(preflight.service)
        if preflight.pending and policy == "fail":
            raise QueueFullError(
                f"others are ahead at {client.provider}: {preflight.pending} unfinished",
                status=409,
                provider=client.provider,
            )
        while policy == "wait_for_free" and await client.pending():
            await self._ctx.clock.sleep(_FREE_POLL)
        nonce = request_nonce if request_nonce is not None else await self.next_request_nonce(client.provider)
        message = signing.task_create_hash(signer.address, nonce, dataset_hash)
        body = provider_api.create_task_body(
            user=signer.address,
            model_hash=model.hash,
            dataset_hash=dataset_hash,
            training_params=params,
            request_nonce=nonce,
            signature=signing.signature_hex(await self._ctx.sign(message, purpose="task", provider=client.provider)),
            wait=policy != "fail",
        )
        try:
            return await client.create_task(signer.address, body)
        except ProviderUnavailableError:
            if task := await self.find_task_by_nonce(client.provider, nonce, dataset_hash, params):
                return task.id
            raise
        except UnfinishedTaskError as e:
            if task := await self.find_task_by_nonce(client.provider, nonce, dataset_hash, params):
                return task.id
            raise await self._named(client.provider, e) from e

    async def _named(self, provider: Address, error: UnfinishedTaskError) -> UnfinishedTaskError:
        tasks = await self.list_task(provider)
        blocking = next((t for t in tasks if not t.is_terminal), None)
        return _unfinished(blocking) if blocking else error

    async def next_request_nonce(self, provider: str) -> int:
        """Return a number greater than that of every task this wallet had settled or has open at a provider.

        It is also greater than all that were returned for this wallet before, so that it tells tasks at different
        providers apart.
        """
        account = await self._account_or_none(parse_address(provider, what="provider"))
        tasks = await self.list_task(provider)
        above = max([account.account_nonce if account else 0, *(t.request_nonce for t in tasks if not t.is_terminal)])
        given = self._hub.request_nonces
        nonce = signing.next_request_nonce(self._ctx.clock.now(), max(above, given.get(self._ctx.wallet, 0)))
        given[self._ctx.wallet] = nonce
        return nonce

    async def find_task_by_nonce(
        self, provider: str, request_nonce: int, dataset_hash: str | None = None, training_params: str | None = None
    ) -> Task | None:
        """Find this wallet's task by the number it was created with.

        Args:
            provider: The provider's address.
            request_nonce: The number.
            dataset_hash: What it has to train on; None: anything.
            training_params: With what, as JSON; None: anything. Two programs may choose a number in one millisecond.

        Returns:
            The task; None when the provider knows none.
        """
        tasks = (t for t in await self.list_task(provider) if t.request_nonce == request_nonce)
        return next((t for t in tasks if _is_order(t, dataset_hash, training_params)), None)

    async def list_task(self, provider: str, *, name: str | None = None, tags: Collection[str] = ()) -> Records[Task]:
        """List this wallet's tasks at a provider, newest first.

        Args:
            provider: The provider's address.
            name: Only those that `label_task` gave this name.
            tags: Only those with all these tags.
        """
        client = await self._client_of(provider)
        tasks: Sequence[Task] = await client.list_tasks(self._ctx.wallet)
        if name is not None or tags:
            tasks = pick(tasks, await self._labels.all(), name, tags)
        return Records([await self._with_deadline(t) for t in tasks])

    @property
    def _labels(self) -> TaskLabels:
        return TaskLabels(self._ctx.state_dir, genesis=self._ctx.chain.genesis_hash, wallet=self._ctx.wallet)

    async def label_task(
        self, task_id: str, *, name: str | None = None, tags: Iterable[str] | None = None, note: str | None = None
    ) -> TaskLabel:
        """Give a task a name, tags and a note, on this machine only. What is None stays, what is empty is removed.

        Args:
            task_id: Which task.
            name: What to call it.
            tags: Words to find it by, in place of those it has.
            note: Anything else.

        Returns:
            All of it as it is now.
        """
        return await self._labels.change(TaskId(task_id), name=name, tags=tags, note=note)

    async def get_task_labels(self) -> Mapping[TaskId, TaskLabel]:
        """Return name, tags and note of each of this wallet's tasks that has some."""
        return await self._labels.all()

    async def list_all_tasks(
        self, *, name: str | None = None, tags: Collection[str] = ()
    ) -> Mapping[Address, tuple[Task, ...] | ZgError]:
        """List this wallet's tasks at all registered providers, asked at once.

        Args:
            name: Only those that `label_task` gave this name.
            tags: Only those with all these tags.

        Returns:
            Per provider its tasks, or the error that it couldn't be asked by.
        """
        results: dict[Address, tuple[Task, ...] | ZgError] = {}

        async def ask(provider: Address) -> None:
            try:
                results[provider] = await self.list_task(provider, name=name, tags=tags)
            except ZgError as e:
                results[provider] = e

        async with anyio.create_task_group() as group:
            for service in await self.list_service(include_unacknowledged=True):
                group.start_soon(ask, service.provider)
        return results

    async def get_task(self, provider: str, task_id: str | None = None) -> Task:
        """Read a task.

        Args:
            provider: The provider's address.
            task_id: Which; None: the wallet's newest there.

        Raises:
            TaskNotFoundError: The provider knows no such task, or none at all.
        """
        client = await self._client_of(provider)
        if task_id is not None:
            return await self._with_deadline(await client.get_task(self._ctx.wallet, TaskId(task_id)))
        newest = await client.list_tasks(self._ctx.wallet, latest=True)
        if not newest:
            raise TaskNotFoundError(f"{self._ctx.wallet} has no task at {client.provider}", provider=client.provider)
        return await self._with_deadline(newest[0])

    async def _with_deadline(self, task: Task) -> Task:
        if task.deliver_time is None:
            return task
        window = provider_api.ack_window(await self._ctx.services.lock_time())
        return dataclasses.replace(task, ack_deadline=task.deliver_time + dt.timedelta(seconds=window))

    async def cancel_task(self, provider: str, task_id: str) -> CancelOutcome:
        """Ask a provider to cancel a task, and read back what came of it. Possible only before training starts.

        Args:
            provider: The provider's address.
            task_id: Which task.

        Returns:
            Cancelled, too late (with the task's state), unknown, or not yours.
        """
        client = await self._client_of(provider)
        signer, task = self._ctx.require_signer(), TaskId(task_id)
        cancel = signing.task_cancel_hash(task)
        signature = signing.signature_hex(await self._ctx.sign(cancel, purpose="cancel", provider=client.provider))
        try:
            message = await client.cancel_task(signer.address, task, signature)
        except TaskNotFoundError as e:
            return CancelOutcome(result=CancelResult.UNKNOWN_TASK, task=None, message=str(e))
        except ProviderRejectedError as e:
            if e.status not in (400, 403, 409):
                raise
            if e.status == 403:
                return CancelOutcome(result=CancelResult.NOT_YOURS, task=None, message=e.message)
            message = e.message
        current = await self.get_task(provider, task)
        done = current.is_terminal and current.deliver_time is None and current.progress_text != "Finished"
        result = CancelResult.CANCELLED if done else CancelResult.TOO_LATE
        return CancelOutcome(result=result, task=current, message=message)

    async def get_log(
        self,
        provider: str,
        task_id: str | None = None,
        *,
        tail: int | None = None,
        save_to: str | os.PathLike[str] | None = None,
    ) -> str:
        """Read a task's log as it stands.

        Args:
            provider: The provider's address.
            task_id: Which task; None: the wallet's newest there.
            tail: Only this many lines of its end; None: all.
            save_to: A file that gets the whole log as well.

        Returns:
            The text; bytes that aren't UTF-8 are replaced.
        """
        task = TaskId(task_id) if task_id is not None else (await self.get_task(provider)).id
        client = await self._client_of(provider)
        text = await client.get_log(self._ctx.wallet, task)
        if save_to is not None:
            await anyio.Path(save_to).write_text(text, encoding="utf-8")
        if tail is None:
            return text
        return "".join(text.splitlines(keepends=True)[-tail:]) if tail > 0 else ""


def _account_problems(account: FineTuningAccountDetails | None, service: FineTuningService) -> list[ZgError]:
    provider = service.provider
    if account is None:
        return [
            AccountNotFoundError(
                f"no sub-account at {provider}",
                error_name="AccountNotExists",
                hint="ledger.ensure_funded opens and fills it",
            )
        ]
    problems: list[ZgError] = []
    if not service.tee_signer_acknowledged:
        problems.append(
            SignerNotAcknowledgedError(
                f"the contract's owner has not approved the TEE signer of {provider}", status=400, provider=provider
            )
        )
    if not account.acknowledged:
        problems.append(
            SignerNotAcknowledgedError(
                f"this wallet has not acknowledged the TEE signer of {provider}",
                status=400,
                provider=provider,
                hint="Call acknowledge_provider_signer",
            )
        )
    if account.spendable <= 0:
        problems.append(
            ConfigError(
                f"the sub-account at {provider} has nothing to spend ({format_amount(account.balance)}, of which "
                f"{format_amount(account.pending_refund)} are requested back)",
                hint="ledger.ensure_funded fills it",
            )
        )
    if account.deliverables and not account.deliverables[-1].acknowledged:
        last = account.deliverables[-1]
        problems.append(
            PreviousDeliverableNotAcknowledgedError(
                f"the delivery {last.id} of {provider} is {'settled without' if last.settled else 'waiting for'} "
                "acknowledgement; the provider can't deliver another",
                error_name="PreviousDeliverableNotAcknowledged",
                arguments=(last.id,),
                hint="Its key is lost: retrieve all funds, refund the ledger to zero, open both anew"
                if last.settled
                else "Finish that delivery first: acknowledge_model",
            )
        )
    return problems


def _short(account: FineTuningAccountDetails, provider: Address, estimate: FeeEstimate) -> ConfigError:
    upto = "" if estimate.low == estimate.high else "up to "
    return ConfigError(
        f"the task may cost {upto}{format_amount(estimate.high)}, the sub-account at {provider} can pay "
        f"{format_amount(account.spendable)}",
        hint=f"ledger.ensure_funded(provider, 'fine-tuning', '{format_amount(estimate.high).split()[0]}')",
    )


def _params(text: str) -> object:
    return decode_json(text, limit=provider_api.TASK_LIMIT)


def _is_order(task: Task, dataset_hash: str | None, training_params: str | None) -> bool:
    if dataset_hash is not None and task.dataset_hash.lower() != dataset_hash.lower():
        return False
    try:
        return training_params is None or _params(task.training_params) == _params(training_params)
    except ValueError:
        return False


def _unfinished(task: Task) -> UnfinishedTaskError:
    step = "Cancel it with cancel_task or wait for it" if task.is_cancellable else "Wait for it with wait_task"
    if task.deliver_time is not None:
        step = "It is delivered: acknowledge_model takes it over, then the provider settles it"
    return UnfinishedTaskError(
        f"task {task.id} at {task.provider} is {printable(task.progress_text)}; a provider takes one per wallet",
        task_id=task.id,
        provider=task.provider,
        hint=step,
    )
