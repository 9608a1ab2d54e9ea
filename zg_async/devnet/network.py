"""A whole devnet: chain, contracts, providers, inference, control.

`start_devnet` opens one in this process; `zg devnet up` and `process.DevnetProcess` run one in a process of its own.
"""

import contextlib
import dataclasses
import shutil
import tempfile
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import aiohttp
import anyio
import anyio.to_thread

from zg_async.clock import Clock, SystemClock
from zg_async.devnet import accounts
from zg_async.devnet.chain_client import ChainClient, HttpRpc, Wallet, address_of
from zg_async.devnet.chain_watch import ChainWatch
from zg_async.devnet.control import Control
from zg_async.devnet.controller import ControllerNode
from zg_async.devnet.deploy import DeployTransaction, plan_deployment
from zg_async.devnet.deploy_storage import plan_storage
from zg_async.devnet.engine import Engine
from zg_async.devnet.engines import make_engine
from zg_async.devnet.faults import Fault, FaultProxy, Faults
from zg_async.devnet.inference import InferenceNode, InferenceSettings
from zg_async.devnet.inference_chain import WalletChain
from zg_async.devnet.provider import STAKE, ProviderNode
from zg_async.devnet.provider_settings import Settings, update
from zg_async.devnet.record import network_of
from zg_async.devnet.storage_network import StorageNetwork, parse_shards
from zg_async.devnet.tdx import devnet_maker
from zg_async.errors import ConfigError, ContractRevertedError, RpcError
from zg_async.logs import get_logger
from zg_async.networks import Network
from zg_async.units import NEURON_PER_0G
from zg_async.wire.contracts import FineTuningContract, InferenceContract
from zg_async.wire.hashing import checksum_address, keccak256
from zg_async.wire.records import Address, TaskId

_log = get_logger("zg_async.devnet.network")
DEFAULT_PORT: Final = 8545
CHAIN_ID: Final = 31337
USER_BALANCE: Final = 100_000 * NEURON_PER_0G
PROVIDER_BALANCE: Final = 1_000 * NEURON_PER_0G
REAL_TICK: Final = 60.0
_CLOSE_SECONDS: Final = 15.0
_DEPLOY_GAS: Final = 8_000_000
"""For each deployment transaction: an estimate would run it twice more."""
_ON_CHAIN: Final = frozenset({"input_price", "output_price", "lora_enabled"})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """Contracts that already stand on some chain."""

    rpc_url: str
    ledger: str
    inference: str
    fine_tuning: str
    owner_key: bytes = dataclasses.field(repr=False)
    """Pays stake and gas, and approves signers."""
    flow: str | None = None
    """None: with storage nodes, storage contracts are deployed, too."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a devnet is to be. Times are in seconds."""

    providers: int = 1
    engine: Literal["pyevm", "anvil"] = "pyevm"
    port: int | None = None
    """Of the node; None: 8545 if free, else any. 0: any."""
    block_time: float | None = None
    """None: each transaction gets its block at once."""
    lock_time: int = 86_400
    ack_timeout: float = 48 * 3600.0
    train_seconds: float = 0.0
    limits: Literal["default", "off"] = "default"
    ticks: Literal["fast", "real"] = "fast"
    inference: bool = True
    storage_nodes: int = 0
    """Without any there is no storage contract and no indexer."""
    shards: str = "1"
    """How the nodes share the segments; see `storage_network.parse_shards`."""
    indexer_port: int = 0
    state_dir: Path | None = None
    """Where providers keep their files; None: a temporary folder, removed at the end."""
    attach: Attachment | None = None


class Devnet:
    """What runs, and where. Made by `start_devnet`."""

    def __init__(self, options: Options, session: aiohttp.ClientSession, clock: Clock) -> None:
        """Hold the parts; `start_devnet` fills them in."""
        self.options = options
        self.session = session
        self.clock = clock
        self.engine: Engine | None = None
        self.rpc_faults: Faults | None = None
        self.rpc_url = ""
        self.chain_id = CHAIN_ID
        self.providers: list[ProviderNode] = []
        self.inference: dict[Address, InferenceNode] = {}
        """Inference sides, by the wallet they share with a fine-tuning provider."""
        self.controllers: dict[Address, ControllerNode] = {}
        """Controllers of the inference sides."""
        self.accounts: tuple[accounts.DevAccount, ...] = ()
        self.storage: StorageNetwork | None = None
        self.control = Control(self)
        self.client: ChainClient
        self.owner: Wallet
        self.watch: ChainWatch
        self.ledger: Address
        self.fine_tuning_contract: FineTuningContract
        self.inference_contract: InferenceContract

    @property
    def network(self) -> Network:
        """Return the record to make a broker with: the devnet's endpoints, contracts and root of trust."""
        return network_of(self.describe())

    def describe(self) -> dict[str, Any]:
        """Return what `zg devnet up` prints."""
        told = self._describe_all()
        if (storage := self.storage) is not None:
            told["flow"] = storage.flow.address
            told["indexer_url"] = storage.indexer.url
            told["storage_nodes"] = [
                {"url": node.url, "shard": node.shard, "shards": node.shards} for node in storage.nodes
            ]
        return told

    def _describe_all(self) -> dict[str, Any]:
        return {
            "rpc_url": self.rpc_url,
            "chain_id": self.chain_id,
            "ledger": self.ledger,
            "inference": self.inference_contract.address,
            "fine_tuning": self.fine_tuning_contract.address,
            "control_url": self.control.url,
            "control_token": self.control.token,
            "tee_root": devnet_maker().root_der.hex(),
            "pccs_url": self.control.pccs_url,
            "providers": [self._describe(node) for node in self.providers],
            "accounts": [
                {"address": account.address, "private_key": f"0x{account.private_key.hex()}"}
                for account in self.accounts
            ],
        }

    def _describe(self, node: ProviderNode) -> dict[str, str]:
        told = {"address": node.address, "url": node.url}
        if (inference := self.inference.get(node.address)) is not None:
            told["inference_url"] = inference.url
        if (controller := self.controllers.get(node.address)) is not None:
            told["controller_url"] = controller.url
        return told

    async def increase_time(self, seconds: int) -> None:
        """Move the clock of chain and providers, and mine a block that shows it."""
        await self.client.request("evm_increaseTime", seconds)
        await self.client.request("evm_mine")
        await self.watch.round()

    async def fund(self, address: str, amount: int) -> None:
        """Give an address more neuron: out of nothing on the devnet's own chain, else from the owner."""
        target = checksum_address(address)
        if self.engine is not None:
            await self.engine.set_balance(target, await self.client.balance(target) + amount)
        else:
            await self.owner.transact(target, value=amount)

    async def approve(self, provider: Address) -> None:
        """Let the owner approve a provider's TEE signers."""
        await self.owner.send(self.fine_tuning_contract.acknowledge_tee_signer_by_owner(provider))
        if provider in self.inference:
            await self.owner.send(self.inference_contract.acknowledge_tee_signer_by_owner(provider))

    async def revoke(self, provider: Address) -> None:
        """Let the owner take the approval back."""
        await self.owner.send(self.fine_tuning_contract.revoke_tee_signer_acknowledgement(provider))
        if provider in self.inference:
            await self.owner.send(self.inference_contract.revoke_tee_signer_acknowledgement(provider))

    def set_rpc_faults(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Arm a fault between clients and the node; without any field disarm all. Providers aren't hit."""
        if self.rpc_faults is None:
            raise ConfigError("the node of an attached network isn't ours to disturb")
        if not changes:
            self.rpc_faults.clear()
            return {}
        try:
            return {"fault": self.rpc_faults.add(Fault(**changes))}
        except TypeError as error:
            raise ConfigError(f"not a fault: {error}") from error

    async def switch_inference(self, providers: Sequence[Address], changes: Mapping[str, Any]) -> dict[str, Any]:
        """Switch the inference sides of some providers."""
        nodes = [self.inference[address] for address in providers if address in self.inference]
        if not nodes:
            raise ConfigError("this devnet has no inference side")
        for node in nodes:
            update(node.settings, changes)
            if _ON_CHAIN & changes.keys():
                wallet = next(one.wallet for one in self.providers if one.address == node.address)
                await wallet.send(self.inference_contract.add_or_update_service(**node.service_params()))
        return {"inference": [dataclasses.asdict(node.settings) for node in nodes]}


@contextlib.asynccontextmanager
async def start_devnet(*, clock: Clock | None = None, **options: Any) -> AsyncGenerator[Devnet, None]:
    """Open a devnet in this process and close it at the end.

    Args:
        clock: The machine's time, for tests.
        **options: The fields of `Options`.

    Yields:
        The running network: everything is registered, funded and approved.

    Raises:
        ConfigError: An option can't be.
        ChainError: The chain refused a step.
    """
    stack = contextlib.AsyncExitStack()
    try:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        devnet = Devnet(Options(**options), session, clock or SystemClock())
        await _Builder(devnet, stack).build()
        yield devnet
    finally:
        with anyio.move_on_after(_CLOSE_SECONDS, shield=True):
            await stack.aclose()


_ROLES: Final[Mapping[str, Callable[[int], accounts.DevAccount]]] = {
    "provider": accounts.fine_tuning_provider,
    "signer": accounts.fine_tuning_signer,
    "inference signer": accounts.inference_signer,
}
_REAL_INFERENCE_POLL: Final = 5.0


class _Builder:
    """Puts a devnet together; what it opens goes on the stack."""

    def __init__(self, devnet: Devnet, stack: contextlib.AsyncExitStack) -> None:
        self._devnet = devnet
        self._stack = stack
        self._options = devnet.options

    async def build(self) -> None:
        """Start everything in order."""
        devnet, options = self._devnet, self._options
        if options.attach is None:
            await self._own_chain()
        else:
            await self._attached_chain(options.attach)
        devnet.watch = ChainWatch(
            devnet.client, (devnet.fine_tuning_contract.address,), interval=0.2 if options.ticks == "fast" else 2.0
        )
        self._stack.push_async_callback(devnet.watch.aclose)
        await devnet.watch.start()
        folder = await self._folder()
        if options.storage_nodes:
            await self._open_storage(folder)
        devnet.providers = [self._provider(number, folder) for number in range(options.providers)]
        await self._open_all()
        if devnet.engine is not None and options.block_time:  # only now: thirty transactions would take thirty blocks
            await devnet.engine.set_block_time(options.block_time)
        await devnet.control.start()
        self._stack.push_async_callback(devnet.control.aclose)

    async def _open_all(self) -> None:
        try:
            async with anyio.create_task_group() as group:
                for number, node in enumerate(self._devnet.providers):
                    group.start_soon(self._open_provider, number, node)
        except ExceptionGroup as errors:  # one provider's reason is enough
            raise errors.exceptions[0] from errors

    # --- chain ---

    async def _own_chain(self) -> None:
        devnet = self._devnet
        devnet.engine = await self._engine()
        devnet.client = ChainClient(devnet.engine.request, devnet.clock)
        devnet.owner = Wallet(devnet.client, accounts.owner().private_key)
        devnet.accounts = accounts.users()
        try:
            plan = plan_deployment(lock_time=self._options.lock_time)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        await self._deploy(plan.transactions)
        devnet.ledger = plan.ledger
        devnet.fine_tuning_contract = FineTuningContract(plan.fine_tuning)
        devnet.inference_contract = InferenceContract(plan.inference)

    async def _deploy(self, transactions: Sequence[DeployTransaction]) -> None:
        for step in transactions:
            await self._devnet.owner.transact(step.to, step.data, step.value, gas=_DEPLOY_GAS)

    async def _engine(self) -> Engine:
        wanted = self._options.port
        try:
            return await self._open_engine(DEFAULT_PORT if wanted is None else wanted)
        except OSError as error:
            if wanted is not None:
                raise ConfigError(
                    f"port {wanted} is taken", hint="Give another --port, or 0 for any free one"
                ) from error
            return await self._open_engine(0)

    async def _open_engine(self, port: int) -> Engine:
        devnet, options = self._devnet, self._options
        balances: dict[str, int] = {account.address: USER_BALANCE for account in (accounts.owner(), *accounts.users())}
        faults = devnet.rpc_faults = Faults(clock=devnet.clock)
        embedded = options.engine == "pyevm"
        engine = await anyio.to_thread.run_sync(
            lambda: make_engine(
                options.engine,
                balances,
                port=port if embedded else 0,
                clock=devnet.clock,
                middlewares=(faults.middleware,),
            )
        )
        if embedded:
            await self._stack.enter_async_context(engine)
            devnet.rpc_url = engine.url
            return engine
        async with contextlib.AsyncExitStack() as opened:  # a taken port must not leave anvil behind
            await opened.enter_async_context(engine)
            proxy = await opened.enter_async_context(FaultProxy(engine.url, faults, port=port))
            await self._stack.enter_async_context(opened.pop_all())
        devnet.rpc_url = proxy.url
        return engine

    async def _attached_chain(self, attach: Attachment) -> None:
        devnet = self._devnet
        devnet.rpc_url = attach.rpc_url
        devnet.client = ChainClient(HttpRpc(attach.rpc_url, devnet.session), devnet.clock)
        devnet.chain_id = await devnet.client.chain_id()
        devnet.owner = Wallet(devnet.client, attach.owner_key)
        devnet.ledger = checksum_address(attach.ledger)
        devnet.fine_tuning_contract = FineTuningContract(checksum_address(attach.fine_tuning))
        devnet.inference_contract = InferenceContract(checksum_address(attach.inference))
        if devnet.chain_id == CHAIN_ID:  # elsewhere the development accounts belong to everybody
            devnet.accounts = accounts.users()
            for account in devnet.accounts:
                await self._top_up(account.address, 100 * NEURON_PER_0G)

    async def _top_up(self, address: Address, least: int) -> None:
        balance = await self._devnet.client.balance(address)
        if balance < least:
            await self._devnet.fund(address, least - balance)

    # --- storage ---

    async def _open_storage(self, folder: Path) -> None:
        """Deploy the storage contracts right after the sixteen others, and serve."""
        devnet, options = self._devnet, self._options
        shards = parse_shards(options.shards, options.storage_nodes)
        flow = checksum_address(options.attach.flow) if options.attach and options.attach.flow else None
        if flow is None:
            nonce = int(await devnet.client.request("eth_getTransactionCount", devnet.owner.address, "latest"), 16)
            plan = plan_storage(devnet.owner.address, first_nonce=nonce)
            await self._deploy(plan.transactions)
            flow = plan.flow
        devnet.storage = StorageNetwork(
            devnet.client,
            flow,
            folder / "storage",
            shards=shards,
            chain_id=devnet.chain_id,
            clock=devnet.clock,
            interval=0.05 if options.ticks == "fast" else 0.5,
        )
        devnet.storage.indexer.port = options.indexer_port
        self._stack.push_async_callback(devnet.storage.aclose)
        try:
            await devnet.storage.start()
        except OSError as error:
            raise ConfigError(f"port {options.indexer_port} is taken") from error

    # --- providers ---

    async def _folder(self) -> Path:
        if self._options.state_dir is not None:
            return self._options.state_dir
        folder = Path(await anyio.to_thread.run_sync(lambda: tempfile.mkdtemp(prefix="zg-devnet-")))
        self._stack.push_async_callback(anyio.to_thread.run_sync, lambda: shutil.rmtree(folder, ignore_errors=True))
        return folder

    def _key(self, role: str, number: int) -> bytes:
        """Return a role's key: a development account's, or on a chain of others one that only the owner can derive."""
        if self._devnet.chain_id == CHAIN_ID:
            return _ROLES[role](number).private_key
        return keccak256(self._devnet.owner.private_key + f"{role} {number}".encode())

    def _provider(self, number: int, folder: Path) -> ProviderNode:
        devnet, options = self._devnet, self._options
        wallet_key, tee_key = self._key("provider", number), self._key("signer", number)
        settings = Settings(
            ack_timeout=float(options.ack_timeout),
            train_seconds=float(options.train_seconds),
            rate_limit=options.limits == "default",
            tick=Settings().tick if options.ticks == "fast" else REAL_TICK,
        )
        return ProviderNode(
            wallet=Wallet(devnet.client, wallet_key),
            tee_key=tee_key,
            contract=devnet.fine_tuning_contract.address,
            watch=devnet.watch,
            session=devnet.session,
            folder=folder / address_of(wallet_key).lower(),
            settings=settings,
            clock=devnet.clock,
            storage=devnet.storage,
        )

    async def _open_provider(self, number: int, node: ProviderNode) -> None:
        devnet = self._devnet
        stakes = 2 if self._options.inference else 1
        least = PROVIDER_BALANCE if devnet.engine is not None else stakes * STAKE + 10 * NEURON_PER_0G
        await node.serve()
        self._stack.push_async_callback(node.stop)
        service = await self._registered(node)
        if service is None:
            await self._top_up(node.address, least)
            await node.register()
        else:
            await self._top_up(node.address, 2 * NEURON_PER_0G)
            await node.publish(occupied=False)
        if service != node.tee_signer:
            await devnet.owner.send(devnet.fine_tuning_contract.acknowledge_tee_signer_by_owner(node.address))
        if self._options.inference:
            await self._open_inference(number, node)
        await node.start()

    async def _open_inference(self, number: int, node: ProviderNode) -> None:
        """Serve inference on the same wallet and register it."""
        devnet, contract = self._devnet, self._devnet.inference_contract
        tee_key = self._key("inference signer", number)
        fast = self._options.ticks == "fast"

        async def fetch(task_id: TaskId) -> Path:
            return node.files.encrypted(task_id)

        inference = InferenceNode(
            provider_key=node.wallet.private_key,
            tee_key=tee_key,
            provider_address=node.address,
            tee_address=address_of(tee_key),
            chain=WalletChain(node.wallet, devnet.chain_id, contract, devnet.fine_tuning_contract, devnet.watch),
            fetch_model=fetch,
            work_dir=node.files.folder / "inference",
            settings=InferenceSettings(
                limits=self._options.limits == "default", poll_interval=0.2 if fast else _REAL_INFERENCE_POLL
            ),
            clock=devnet.clock,
        )
        await inference.serve()
        self._stack.push_async_callback(inference.aclose)
        try:
            service = await devnet.client.call(contract.get_service(node.address))
        except (ContractRevertedError, RpcError):
            service = None
        stake = await devnet.client.call(contract.min_provider_stake()) if service is None else 0
        await node.wallet.send(contract.add_or_update_service(**inference.service_params(), value=stake))
        if service is None or not service.tee_signer_acknowledged or service.tee_signer_address != inference.tee_signer:
            await devnet.owner.send(contract.acknowledge_tee_signer_by_owner(node.address))
        await inference.start(from_block=(await devnet.client.head())[0])
        controller = devnet.controllers[node.address] = ControllerNode(node.address, devnet.clock)
        await controller.serve()
        self._stack.push_async_callback(controller.aclose)
        devnet.inference[node.address] = inference
        node.inference_url = inference.url

    async def _registered(self, node: ProviderNode) -> Address | None:
        """Return the approved signer of a service that already stands; a zero address if none is approved."""
        try:
            service = await self._devnet.client.call(node.contract.get_service(node.address))
        except (ContractRevertedError, RpcError):
            return None
        return service.tee_signer_address if service.tee_signer_acknowledged else Address("0x" + "00" * 20)
