"""A scripted outside world for jobs: effects on chain, provider and disk that outlive a process.

A `Process` is what one run of a program sees: a broker with the managers' methods over the shared `World`. Around every
outward call and every commit there is a numbered point at which the process may die, lose an answer or be cancelled.
"""

import contextlib
import dataclasses
import datetime as dt
import functools
import hashlib
import itertools
import json
import types
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace

import anyio
import anyio.lowlevel

from tests.clock import FakeClock
from zg_async.errors import (
    ChainUnavailableError,
    ConfigError,
    ContractRevertedError,
    DeliverableNotFoundError,
    HashMismatchError,
    LostKeyError,
    ProviderUnavailableError,
    ServiceNotFoundError,
    UnfinishedTaskError,
)
from zg_async.jobs.runner import JobRunner
from zg_async.jobs.spec import JobSpec
from zg_async.jobs.state import JobResult
from zg_async.managers.account_room import AccountRoom
from zg_async.managers.dataset import check_dataset
from zg_async.managers.deliverables import DeliveryTerms
from zg_async.managers.open_tasks import OpenTask, OpenTasks
from zg_async.managers.task_changes import TaskSettled, TaskStateChanged
from zg_async.metrics import Metrics
from zg_async.transport.budget import Budget
from zg_async.transport.chain_time import ChainTime
from zg_async.wire.hashing import hex0x, keccak256
from zg_async.wire.records import (
    AdapterState,
    CancelOutcome,
    CancelResult,
    Deliverable,
    DeployResponse,
    DownloadedModel,
    FineTuningService,
    Model,
    Quota,
    Receipt,
    Task,
    TaskProgress,
    UploadedDataset,
)

WALLET = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"
PROVIDERS = ("0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266", "0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC")
SIGNER = "0x90F79bf6EB2c4f870365E785982E1f101E93b906"
PARAMS = {
    "neftune_noise_alpha": 5,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 2,
    "learning_rate": 0.0002,
    "max_steps": 3,
}
FEE = 10**16
GAS = 21_000
CONFIG = '{"peft_type": "LORA", "r": 2, "base_model_name_or_path": "Qwen2.5-0.5B-Instruct"}'
_SHAPES = {"lora_A": [2, 4], "lora_B": [4, 2]}
_HEADER = json.dumps(
    {
        f"m.0.q_proj.{name}.weight": {"dtype": "F32", "shape": shape, "data_offsets": [32 * n, 32 * n + 32]}
        for n, (name, shape) in enumerate(_SHAPES.items())
    }
).encode()
WEIGHTS = len(_HEADER).to_bytes(8, "little") + _HEADER + bytes(range(64))
AT = dt.datetime(2027, 1, 15, 8, tzinfo=dt.UTC)
WINDOW = dt.timedelta(hours=3)
STEPS = (
    TaskProgress.INIT,
    TaskProgress.SETTING_UP,
    TaskProgress.SET_UP,
    TaskProgress.TRAINING,
    TaskProgress.TRAINED,
    TaskProgress.DELIVERING,
    TaskProgress.DELIVERED,
)


class Crash(BaseException):
    """The process is dead: nothing of it may have an effect any more."""


@dataclasses.dataclass
class Row:
    """A signed transaction in the outbox."""

    key: str
    name: str
    effect: Callable[[], None]
    mined: bool = False
    reverted: bool = False

    @property
    def receipt(self) -> Receipt:
        tx_hash = "0x" + hashlib.sha256(self.key.encode()).hexdigest()
        return Receipt(
            tx_hash=tx_hash, block_number=1, block_hash="0x" + "00" * 32, status=1, gas_used=GAS, effective_gas_price=1
        )


class World:
    """Everything outside the process; survives it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = FakeClock()
        self.outbox: dict[str, Row] = {}
        self.charges: dict[str, int] = {}
        self.transactions: list[str] = []
        self.ledger: int | None = None
        self.accounts: dict[tuple[str, str], int] = {}
        self.acknowledged: set[str] = set()
        self.tasks: list[Task] = []
        self.deliverables: dict[str, Deliverable] = {}
        self.datasets: list[tuple[str, str]] = []
        self.posts = 0
        self.adapters: Counter[str] = Counter()
        self.prices = dict.fromkeys(PROVIDERS, 10**9)
        self.gone: set[str] = set()
        self.signers = dict.fromkeys(PROVIDERS, SIGNER)
        self.urls = dict.fromkeys(PROVIDERS, "https://p.example")
        self.model_hash: str | None = "0xmodel"
        self.fail_at: TaskProgress | None = None
        self.stuck_at: TaskProgress | None = None
        self.most_accounts = 50
        self.chain_ahead = 0.0
        self.log = ""
        self.settles = True
        self.reverts: list[str] = []
        self.encrypted = b"encrypted " * 50 + WEIGHTS
        self.config = CONFIG
        self.account_nonce = 0
        self.delivered_at = AT
        self.guarded = False
        self.revoked = False
        self.balance = 10**18
        self.refunds: dict[tuple[str, str], int] = {}
        (folder / "train.jsonl").write_text('{"instruction": "Say hello", "input": "", "output": "hello"}\n' * 3)

    def spec(self, **changes: object) -> JobSpec:
        fields = {
            "model": "Qwen2.5-0.5B-Instruct",
            "dataset": self.folder / "train.jsonl",
            "training_params": PARAMS,
            "output_dir": self.folder / "out",
            "deploy": True,
            "key": "k",
        }
        return JobSpec(**(fields | changes))

    def services(self) -> tuple[FineTuningService, ...]:
        quota = Quota(cpu_count=1, node_memory=1, gpu_count=1, node_storage=1, gpu_type="T")
        return tuple(
            FineTuningService(
                provider=provider,
                url=self.urls[provider],
                quota=quota,
                price_per_token=price,
                occupied=False,
                models=(),
                tee_signer_address=self.signers[provider],
                tee_signer_acknowledged=not self.revoked,
            )
            for provider, price in self.prices.items()
            if provider not in self.gone
        )

    def mine(self, row: Row) -> None:
        if not row.mined:
            row.mined = True
            self.transactions.append(row.name)
            if row.name in self.reverts:
                self.reverts.remove(row.name)
                row.reverted = True
            else:
                row.effect()

    def create(self, provider: str, nonce: int, dataset_hash: str, params: str) -> Task:
        if any(not t.is_terminal for t in self.tasks if t.provider == provider):
            raise UnfinishedTaskError("unfinished task", provider=provider)
        now = dt.datetime.fromtimestamp(self.clock.now(), dt.UTC)
        number = len(self.tasks)
        task = Task(
            id=f"{number:08x}-0000-4000-8000-000000000000",
            provider=provider,
            user=WALLET,
            progress=TaskProgress.INIT,
            progress_text="Init",
            created_at=now,
            updated_at=now,
            model_hash="0xmodel",
            dataset_hash=dataset_hash,
            training_params=params,
            fee=0,
            request_nonce=nonce,
            deliver_time=None,
        )
        self.tasks.append(task)
        return task

    def task(self, task_id: str) -> Task:
        return next(task for task in self.tasks if task.id == task_id)

    def set_task(self, task_id: str, progress: TaskProgress, fee: int = 0) -> Task:
        old = self.task(task_id)
        new = dataclasses.replace(old, progress=progress, progress_text=progress.value, fee=fee or old.fee)
        self.tasks[self.tasks.index(old)] = new
        return new

    def advance(self, task_id: str) -> None:
        """Let the provider go one step further."""
        task = self.task(task_id)
        if task.progress in STEPS[:-1]:
            following = STEPS[STEPS.index(task.progress) + 1]
            if following is self.fail_at:
                following = TaskProgress.FAILED
            task = self.set_task(task_id, following, FEE)
            if following is TaskProgress.DELIVERED:
                self.delivered_at = dt.datetime.fromtimestamp(self.clock.now(), dt.UTC)
                self.deliverables[task_id] = Deliverable(
                    id=task_id,
                    model_root_hash=keccak256(self.encrypted),
                    encrypted_secret=b"",
                    acknowledged=False,
                    timestamp=AT,
                    settled=False,
                )
        elif (delivered := self.deliverables.get(task_id)) and delivered.acknowledged and not delivered.settled:
            if not self.settles:
                return
            self.deliverables[task_id] = dataclasses.replace(delivered, settled=True, encrypted_secret=b"s" * 129)
            self.account_nonce = task.request_nonce
            self.set_task(task_id, TaskProgress.FINISHED)

    def acknowledge(self, task_id: str) -> None:
        self.deliverables[task_id] = dataclasses.replace(self.deliverables[task_id], acknowledged=True)

    # ---- what must be true whatever happened

    def check(self, result: JobResult | None, *, transactions: Counter[str], tasks: int = 1) -> None:
        assert result is not None
        assert Counter(self.transactions) == transactions
        assert len(self.tasks) == tasks
        assert len(set(result.transactions)) == len(result.transactions) == len(self.transactions)
        assert result.gas == GAS * len(self.transactions)
        assert result.fee == FEE
        assert self.deliverables[result.task_id].settled
        adapter = Path(result.adapter_path)
        assert (adapter / "adapter_model.safetensors").read_bytes() == WEIGHTS
        assert result.files == ("adapter_config.json", "adapter_model.safetensors")
        assert [path.name for path in adapter.parent.iterdir()] == ["adapter"]
        assert self.adapters[result.task_id] >= (1 if result.adapter_name else 0)


class Process:
    """One run of a program; `fail` decides what happens at each point."""

    def __init__(self, world: World, fail: "Callable[[Process, int, str], None] | None" = None) -> None:
        self.world = world
        self.fail = fail
        self.points: list[str] = []
        self.dead = False
        self.on_crash: Callable[[], None] = lambda: None
        self.broker = Broker(self)

    def point(self, name: str) -> None:
        if self.dead:
            raise Crash
        self.points.append(name)
        if self.fail is not None:
            self.fail(self, len(self.points), name)

    def die(self) -> None:
        self.dead = True
        self.on_crash()
        raise Crash

    async def call(self, name: str, effect: Callable[[], object]) -> object:
        await anyio.lowlevel.checkpoint()
        self.point(f"before {name}")
        result = effect()
        self.point(f"after {name}")
        return result

    async def run(self, spec: JobSpec, store: object) -> JobResult | None:
        """Submit the job and wait; None if the process died."""
        try:
            async with JobRunner(self.broker, PointStore(store, self)) as runner:
                with anyio.CancelScope() as scope:
                    self.on_crash = scope.cancel
                    return await (await runner.submit(spec)).result()
        except Crash:
            pass
        return None


def crash_at(number: int) -> Callable[[Process, int, str], None]:
    def fail(process: Process, count: int, name: str) -> None:
        if count == number:
            process.die()

    return fail


def lose_at(number: int) -> Callable[[Process, int, str], None]:
    """Lose a request or its answer, once."""

    def fail(process: Process, count: int, name: str) -> None:
        if count == number and not name.endswith(("commit", "disk")):
            if "rpc" in name:
                raise ChainUnavailableError("no answer")
            raise ProviderUnavailableError("no answer")

    return fail


class PointStore:
    """A store with points around each commit."""

    def __init__(self, store: object, process: Process) -> None:
        self._store = store
        self._process = process

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    async def append(self, job_id: str, *events: object) -> object:
        self._process.point("before commit")
        result = await self._store.append(job_id, *events)
        self._process.point("after commit")
        return result

    async def create(self, job_id: str, *events: object) -> object:
        self._process.point("before commit")
        result = await self._store.create(job_id, *events)
        self._process.point("after commit")
        return result


class Broker:
    """The managers' methods that stages use, over a world."""

    def __init__(self, process: Process) -> None:
        world = process.world
        self.address = WALLET
        self.wallets = (WALLET,)
        self.can_decrypt = True
        self.requires_cap = False
        self.clock = world.clock
        self.state_dir = world.folder / "state"
        self.chain = FakeChain(process)
        self.ledger = Ledger(process, self.chain)
        self.fine_tuning = FineTuning(process, self.chain)
        self.inference = SimpleNamespace(lora=Lora(process))

    def using(self, wallet: str) -> "Broker":
        assert wallet == WALLET
        return self


class FakeChain:
    chain_id = 31337
    rpc = types.SimpleNamespace(switches=0, last_switch="")
    metrics = Metrics()
    genesis_hash = "0x" + "ab" * 32

    def __init__(self, process: Process) -> None:
        self.process, self.world = process, process.world
        self.heads = SimpleNamespace(time=ChainTime(self.world.clock))
        self.budget = Budget(None, self.heads.time)

    async def charge(self, key: str, amount: int, *, wallet: str, settled: bool = False) -> None:
        self.world.charges[key] = amount

    def watched(self, wallet: str) -> contextlib.AbstractAsyncContextManager[None]:
        return contextlib.nullcontext()

    async def gas_price(self) -> int:
        return 1

    async def block(self) -> SimpleNamespace:
        now = self.world.clock.now() + self.world.chain_ahead
        timestamp = dt.datetime.fromtimestamp(now, dt.UTC)
        self.heads.time.saw(timestamp)
        return SimpleNamespace(timestamp=timestamp)

    async def write(self, name: str, effect: Callable[[], None], *, key: str | None) -> Receipt:
        key = key or f"unnamed {len(self.world.outbox)}"
        self.process.point("before outbox disk")
        row = self.world.outbox.setdefault(key, Row(key, name, effect))
        self.process.point("after outbox disk")
        return await self._finish(row)

    async def _finish(self, row: Row) -> Receipt:
        await self.process.call(f"rpc broadcast {row.name}", lambda: self.world.mine(row))
        receipt = await self.process.call("rpc receipt", lambda: row.receipt)
        if row.reverted:
            raise ContractRevertedError(f"{row.name} reverted", tx_hash=receipt.tx_hash)
        return receipt

    async def balance(self, address: str) -> int:
        return self.world.balance

    async def wait_final(self, tx_hash: str) -> None:
        """What has failed here stays so."""
        raise ContractRevertedError("reverted", tx_hash=tx_hash)

    async def recall(self, key: str, *, wallet: str) -> Receipt | None:
        row = self.world.outbox.get(key)
        return None if row is None else await self._finish(row)

    async def mined_of(self, job: str, *, wallet: str, wait_for: Iterable[str] = ()) -> tuple[SimpleNamespace, ...]:
        for row in tuple(self.world.outbox.values()):
            if not row.mined and any(f"{row.key}/".startswith(f"{key}/") for key in wait_for):
                with contextlib.suppress(ContractRevertedError):
                    await self._finish(row)
        rows = [row for row in self.world.outbox.values() if row.mined and row.key.startswith(f"{job}/")]
        return tuple(SimpleNamespace(key=row.key, tx_hash=row.receipt.tx_hash, gas_cost=GAS) for row in rows)


class Ledger:
    def __init__(self, process: Process, chain: FakeChain) -> None:
        self.process, self.world, self.chain = process, process.world, chain

    async def get_ledger_with_detail(self) -> SimpleNamespace:
        accounts = await self.process.call(
            "rpc read", lambda: [provider for provider, kind in self.world.accounts if kind == "fine-tuning"]
        )
        return SimpleNamespace(fine_tuning=tuple(SimpleNamespace(provider=provider) for provider in accounts))

    async def get_account_room(self, service_type: str) -> AccountRoom:
        providers = {provider for provider, kind in self.world.accounts if kind == service_type}
        return AccountRoom(wallet=WALLET, service_type=service_type, providers=providers, most=self.world.most_accounts)

    async def ensure_funded(self, provider: str, service_type: str, amount: int, *, key: str) -> tuple[Receipt, ...]:
        receipts: list[Receipt] = []
        while known := await self.chain.recall(f"{key}/{len(receipts) + 1}", wallet=WALLET):
            receipts.append(known)
        while step := await self.process.call("rpc read", lambda: self._step((provider, service_type), amount)):
            receipts.append(await self.chain.write(*step, key=f"{key}/{len(receipts) + 1}"))
        return tuple(receipts)

    async def retrieve_fund(self, service_type: str, providers: Sequence[str], *, key: str) -> tuple[Receipt, ...]:
        (provider,) = providers
        assert not any(t.provider == provider and not t.is_terminal for t in self.world.tasks)
        left = self.world.accounts.get((provider, service_type), 0)
        if not left or self.world.refunds.get((provider, service_type)) == left:
            return tuple(r for r in [await self.chain.recall(f"{key}/1", wallet=WALLET)] if r)
        effect = functools.partial(self.world.refunds.__setitem__, (provider, service_type), left)
        return (await self.chain.write("retrieve_fund", effect, key=f"{key}/1"),)

    def _step(self, account: tuple[str, str], amount: int) -> tuple[str, Callable[[], None]] | None:
        missing = amount - self.world.accounts.get(account, 0)
        if missing <= 0:
            return None
        if self.world.ledger is None:
            return "add_ledger", lambda: setattr(self.world, "ledger", max(missing, 3 * 10**18))
        if self.world.ledger < missing:
            return "deposit_fund", lambda: self._add(missing - self.world.ledger)
        return "transfer_fund", lambda: self._transfer(account, missing)

    def _add(self, amount: int) -> None:
        self.world.ledger += amount

    def _transfer(self, account: tuple[str, str], amount: int) -> None:
        assert self.world.ledger >= amount
        self.world.ledger -= amount
        self.world.accounts[account] = self.world.accounts.get(account, 0) + amount


class FineTuning:
    def __init__(self, process: Process, chain: FakeChain) -> None:
        self.process, self.world, self.chain = process, process.world, chain
        self.call = process.call

    async def list_service(self, include_unacknowledged: bool = False) -> tuple[FineTuningService, ...]:
        return await self.call("rpc read", self.world.services)

    async def get_service(self, provider: str) -> FineTuningService:
        for service in await self.call("rpc read", self.world.services):
            if service.provider == provider:
                return service
        raise ServiceNotFoundError("not registered")

    async def resolve_model(self, provider: str, name: str) -> Model:
        if self.world.model_hash is None:
            raise ConfigError(f"unknown model {name}")
        return Model(name=name, hash=self.world.model_hash)

    async def check_dataset(self, path: str) -> object:
        return await check_dataset(path)

    async def list_task(self, provider: str) -> tuple[Task, ...]:
        return await self.call("list", lambda: tuple(t for t in self.world.tasks if t.provider == provider))

    async def acknowledge_provider_signer(self, provider: str, *, key: str) -> Receipt | None:
        if await self.call("quote", lambda: provider in self.world.acknowledged):
            return None
        return await self.chain.write("acknowledge_tee_signer", lambda: self.world.acknowledged.add(provider), key=key)

    async def upload_dataset_to_tee(self, provider: str, path: str) -> UploadedDataset:
        data = Path(path).read_bytes()
        root = hex0x(keccak256(data))
        await self.call("upload", lambda: self.world.datasets.append((provider, root)))
        return UploadedDataset(dataset_hash=root, size=len(data))

    async def next_request_nonce(self, provider: str) -> int:
        now = int(self.world.clock.now() * 1000) * 10_000 + 40
        return await self.call("rpc read", lambda: max(now, self.world.account_nonce + 1))

    async def get_account(self, provider: str) -> SimpleNamespace:
        delivered = [d for d in self.world.deliverables.values() if self.world.task(d.id).provider == provider]
        account = SimpleNamespace(account_nonce=self.world.account_nonce, deliverables=delivered)
        return await self.call("rpc read", lambda: account)

    async def find_task_by_nonce(
        self, provider: str, request_nonce: int, dataset_hash: str | None = None, training_params: str | None = None
    ) -> Task | None:
        tasks = (t for t in await self.list_task(provider) if t.request_nonce == request_nonce)
        return next((t for t in tasks if dataset_hash in (None, t.dataset_hash)), None)

    async def create_task(
        self, provider: str, model: str, dataset_hash: str, params: str, *, policy: str, request_nonce: int
    ) -> str:
        assert (provider, dataset_hash) in self.world.datasets or dataset_hash == "0x" + "11" * 32
        json.loads(params)

        def post() -> str:
            self.world.posts += 1
            return self.world.create(provider, request_nonce, dataset_hash, params).id

        try:
            return await self.call("post task", post)
        except (ProviderUnavailableError, UnfinishedTaskError):
            if task := await self.find_task_by_nonce(provider, request_nonce, dataset_hash):
                return task.id
            raise

    async def get_delivery_terms(self) -> DeliveryTerms:
        return DeliveryTerms(window=int(WINDOW.total_seconds()), penalty_percentage=30)

    async def list_open_tasks(self) -> OpenTasks:
        if not self.world.guarded:
            await anyio.sleep_forever()
        services = {s.provider: s for s in await self.call("rpc read", self.world.services)}
        known, silent = {}, {}
        for provider in services:
            try:
                known.update({task.id: task for task in await self.list_task(provider)})
            except ProviderUnavailableError as error:
                silent[provider] = error
        open_tasks = [
            OpenTask(
                provider=t.provider,
                task_id=t.id,
                service=services.get(t.provider),
                task=known.get(t.id),
                deliverable=self.world.deliverables.get(t.id),
            )
            for t in self.world.tasks
            if not ((d := self.world.deliverables.get(t.id)) and (d.acknowledged or d.settled))
            and (d is not None or (t.id in known and not t.is_terminal))
        ]
        return OpenTasks(tasks=tuple(open_tasks), services=services, silent=silent)

    def watch_task(self, provider: str, task_id: str, *, cursor: str | None = None) -> "Watch":
        return Watch(self.process, provider, task_id, cursor)

    async def get_deliverable(self, provider: str, task_id: str) -> Deliverable:
        found = await self.call("rpc read", lambda: self.world.deliverables.get(task_id))
        if found is None:
            raise DeliverableNotFoundError("none")
        return found

    async def get_log(self, provider: str, task_id: str, *, tail: int | None = None) -> str:
        return await self.call("log", lambda: self.world.log)

    async def cancel_task(self, provider: str, task_id: str) -> CancelOutcome:
        def cancel() -> CancelOutcome:
            task = self.world.task(task_id)
            if not task.is_cancellable:
                return CancelOutcome(result=CancelResult.TOO_LATE, task=task, message="too late")
            task = self.world.set_task(task_id, TaskProgress.FAILED)
            return CancelOutcome(result=CancelResult.CANCELLED, task=task, message="cancelled")

        return await self.call("cancel", cancel)

    async def download_model(self, provider: str, task_id: str, path: Path) -> DownloadedModel:
        deliverable = await self.get_deliverable(provider, task_id)
        data = await self.call("download", lambda: self.world.encrypted)
        part = path.with_suffix(".part")
        part.write_bytes(data)
        self.process.point("before rename disk")
        if keccak256(part.read_bytes()) != deliverable.model_root_hash:
            raise HashMismatchError("not what the chain says")
        part.rename(path)
        self.process.point("after rename disk")
        root = hex0x(deliverable.model_root_hash)
        return DownloadedModel(path=str(path), size=len(data), root_hash=root, matched="keccak256", source="tee")

    async def acknowledge_deliverable(
        self,
        provider: str,
        task_id: str,
        *,
        verified: DownloadedModel | None,
        unverified: bool,
        check_signer: bool,
        key: str,
    ) -> SimpleNamespace:
        deliverable = await self.get_deliverable(provider, task_id)
        if deliverable.acknowledged:
            return SimpleNamespace(receipt=None)
        assert (verified is None) is unverified
        if verified is not None and keccak256(Path(verified.path).read_bytes()) != deliverable.model_root_hash:
            raise HashMismatchError("not what the chain says")
        receipt = await self.chain.write("acknowledge_deliverable", lambda: self.world.acknowledge(task_id), key=key)
        return SimpleNamespace(receipt=receipt)

    async def wait_key(self, provider: str, task_id: str) -> Deliverable:
        deliverable = await self.get_deliverable(provider, task_id)
        assert deliverable.settled
        if not deliverable.encrypted_secret:
            raise LostKeyError("lost")
        return deliverable

    async def decrypt_model(
        self, provider: str, task_id: str, encrypted: str, archive: Path, *, expected_signer: str
    ) -> Path:
        assert expected_signer == self.world.signers[provider]
        deliverable = await self.get_deliverable(provider, task_id)
        assert deliverable.settled
        data = Path(encrypted).read_bytes()
        assert keccak256(data) == deliverable.model_root_hash
        archive.write_bytes(data.removeprefix(b"encrypted " * 50))
        self.process.point("after decrypt disk")
        return archive

    async def unpack_model(self, archive: Path, folder: Path) -> tuple[str, ...]:
        folder.mkdir()
        (folder / "adapter_config.json").write_text(self.world.config)
        self.process.point("half-way through unpacking disk")
        (folder / "adapter_model.safetensors").write_bytes(archive.read_bytes())
        self.process.point("after unpack disk")
        return ("adapter_config.json", "adapter_model.safetensors")


class Watch:
    """Each look lets the provider go one step further."""

    def __init__(self, process: Process, provider: str, task_id: str, cursor: str | None) -> None:
        self.process, self.world = process, process.world
        self.provider, self.task_id = provider, task_id
        self.told = "Delivered" if cursor else None
        self.numbers = itertools.count()

    async def __aenter__(self) -> "Watch":
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    def __aiter__(self) -> "Watch":
        return self

    async def __anext__(self) -> TaskStateChanged | TaskSettled:
        while True:
            if self.told == "settled":
                raise StopAsyncIteration
            if not self.world.settles and self.told == "Delivered":
                await anyio.sleep_forever()
            task = await self.process.call("poll", lambda: self.world.task(self.task_id))
            if self.provider in self.world.gone:
                raise ServiceNotFoundError("not registered")
            deliverable = self.world.deliverables.get(self.task_id)
            common = {
                "id": str(next(self.numbers)),
                "at": AT,
                "provider": self.provider,
                "task_id": self.task_id,
                "cursor": "{}",
            }
            if deliverable and deliverable.settled and self.told:
                self.told = "settled"
                return TaskSettled(**common, source="chain", fee=FEE, acknowledged=deliverable.acknowledged)
            if task.progress.value != self.told and self.told not in ("Delivered", "Finished"):
                previous, self.told = self.told, task.progress.value
                return TaskStateChanged(
                    **common,
                    source="chain" if deliverable else "provider",
                    state=task.progress,
                    previous=TaskProgress(previous) if previous else None,
                    state_text=task.progress_text,
                    task=task,
                    model_root_hash=deliverable.model_root_hash if deliverable else None,
                    ack_deadline=self.world.delivered_at + WINDOW if deliverable else None,
                )
            if self.told == "Failed":
                raise StopAsyncIteration
            if task.progress is self.world.stuck_at:
                await self.world.clock.sleep(15.0)
                continue
            self.world.advance(self.task_id)


class Lora:
    def __init__(self, process: Process) -> None:
        self.process, self.world = process, process.world

    async def preflight(self, provider: str, model: str) -> None:
        return None

    async def deploy_adapter(
        self, provider: str, model: str, task_id: str, *, wait: bool, timeout_seconds: float
    ) -> DeployResponse:
        await self.process.call("deploy", lambda: self.world.adapters.update([task_id]))
        return DeployResponse(message="", adapter_name=f"ft-{task_id[:12]}", state=AdapterState.ACTIVE)


TRANSACTIONS = Counter(
    {
        "add_ledger": 1,
        "transfer_fund": 2,
        "acknowledge_tee_signer": 1,
        "acknowledge_deliverable": 1,
    }
)
"""What one job with a deployed adapter sends from a wallet that holds coins only."""
