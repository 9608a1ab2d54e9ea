"""One simulated fine-tuning provider: its key, its server, its workers, its state."""

from pathlib import Path

import aiohttp
import anyio
import anyio.to_thread
from aiohttp import web

from zg_async.background import Background
from zg_async.clock import Clock
from zg_async.devnet.chain_client import ChainClient, Wallet, address_of
from zg_async.devnet.chain_watch import ChainWatch
from zg_async.devnet.provider_files import ProviderFiles
from zg_async.devnet.provider_gate import Gate
from zg_async.devnet.provider_routes import build_app
from zg_async.devnet.provider_settings import Faults, Settings
from zg_async.devnet.provider_store import TaskStore
from zg_async.devnet.provider_workers import Workers
from zg_async.devnet.storage_network import StorageNetwork
from zg_async.logs import get_logger
from zg_async.wire.contracts import Call, FineTuningContract
from zg_async.wire.records import Address, Quota, TaskProgress

_log = get_logger("zg_async.devnet.provider")
QUOTA = Quota(cpu_count=8, node_memory=64, gpu_count=1, node_storage=500, gpu_type="H200")
STAKE = 100 * 10**18


class ProviderNode:
    """A provider that can be started, stopped and restarted on the same port.

    State lives in `folder`; a restart marks every task that isn't over as Failed, as a broker does.
    """

    def __init__(
        self,
        *,
        wallet: Wallet,
        tee_key: bytes,
        contract: Address,
        watch: ChainWatch,
        session: aiohttp.ClientSession,
        folder: Path,
        settings: Settings | None = None,
        clock: Clock | None = None,
        storage: StorageNetwork | None = None,
    ) -> None:
        """Make a provider; nothing runs until `start`.

        Args:
            wallet: Sends its transactions; may be shared with its inference side.
            tee_key: Signs quotes, file tags and settlements.
            contract: FineTuningServing.
            watch: Follows the chain; shared by all providers.
            session: For the hand-over of keys to the inference side; stays open.
            folder: Its disk.
            settings: What can be changed while it runs.
            clock: The machine's time.
            storage: Where models go and datasets come from; None: there is none.
        """
        self.wallet = wallet
        self.address = wallet.address
        self.tee_key = tee_key
        self.tee_signer = address_of(tee_key)
        self.contract = FineTuningContract(contract)
        self.watch = watch
        self.session = session
        self.files = ProviderFiles(folder)
        self.settings = settings or Settings()
        self.storage = storage
        self.faults = Faults()
        self.clock: Clock = clock or watch.client.clock
        self.gate = Gate(self.settings, self.faults, self.clock)
        self.creation = anyio.Lock()
        self.store = TaskStore(self.files.tasks)
        self.inference_url: str | None = None
        """Where the adapter keys go; None: no inference side."""
        self.port = 0
        self._runner: web.AppRunner | None = None
        self._background = Background()
        self._publishing = anyio.Lock()
        self._workers: Workers | None = None

    @property
    def client(self) -> ChainClient:
        """The node the provider uses."""
        return self.wallet.client

    @property
    def url(self) -> str:
        """Where it serves."""
        return f"http://127.0.0.1:{self.port}"

    def wall_time(self) -> float:
        """Return the machine's time as this provider sees it: what signatures' timestamps are checked against."""
        return self.clock.now() + self.faults.stale_clock

    def now(self) -> float:
        """Return the time by the chain's clock, for stamps, windows and retention."""
        return self.watch.now() + self.faults.stale_clock

    async def log(self, task_id: str, text: str, *, stamp: bool = True) -> None:
        """Append to a task's log."""
        now = self.now() if stamp else None
        await anyio.to_thread.run_sync(self.files.append_log, task_id, text, now)

    async def serve(self) -> None:
        """Open the server, on the port of the last time if there was one."""
        self.gate.closing = anyio.Event()
        self._runner = web.AppRunner(build_app(self), access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def start(self) -> None:
        """Open the server, mark what was left unfinished as Failed, and start the workers."""
        await self.store.fail_unfinished(self.now())
        if self._runner is None:
            await self.serve()
        self._background = Background()
        self._workers = Workers(self)
        for name, loop in self._workers.loops().items():
            self._background.start(loop, name=f"devnet {name} {self.address}")

    async def register(self) -> None:
        """Put the service on chain with the stake. The server must be open: its address is part of it."""
        stake = await self.client.call(self.contract.min_provider_stake())
        await self.wallet.send(self.service_call(occupied=False, stake=stake))

    async def publish(self, *, occupied: bool) -> None:
        """Write the service's record with its present settings; the gas of two at once would be estimated too low."""
        async with self._publishing:
            await self.wallet.send(self.service_call(occupied=occupied))

    def service_call(self, *, occupied: bool, stake: int = 0) -> Call[None]:
        """Return the call that registers or updates the service."""
        return self.contract.add_or_update_service(
            url=self.url,
            quota=QUOTA,
            price_per_token=self.settings.price_per_token,
            occupied=occupied,
            models=sorted(model.name for model in self.settings.models),
            tee_signer_address=self.tee_signer,
            value=stake,
        )

    async def stop(self) -> None:
        """Stop workers and server; the state stays."""
        self.gate.closing.set()
        if self._workers is not None:
            self._workers.stop_training()
        await self._background.aclose()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @property
    def is_training(self) -> bool:
        """Whether a task is in training now."""
        return self.store.first(TaskProgress.TRAINING) is not None

    async def clean_up(self) -> None:
        """Run the retention clean-up now."""
        if self._workers is not None:
            await self._workers.settlement.clean_up()

    async def restart(self) -> None:
        """Stop and start again, reading the state from disk."""
        await self.stop()
        self.store = await anyio.to_thread.run_sync(TaskStore, self.files.tasks)
        await self.start()
