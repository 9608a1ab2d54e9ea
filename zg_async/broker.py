"""The broker: opens the transports of one network, and holds the managers of its wallets."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self

import anyio

from zg_async.clock import Clock, SystemClock
from zg_async.errors import ClosedError, ConfigError, WrongChainError
from zg_async.managers.context import Context
from zg_async.managers.costs import CostReport, cost_report
from zg_async.managers.fine_tuning import FineTuningManager
from zg_async.managers.funding_line import FundingLine
from zg_async.managers.inference import InferenceManager
from zg_async.managers.inference_services import InferencePolicy
from zg_async.managers.ledger import LedgerManager
from zg_async.managers.polling import PollPolicy
from zg_async.managers.services import ServiceDirectory
from zg_async.managers.storage import StorageManager
from zg_async.managers.verification import Verifier
from zg_async.managers.watch import WatchHub
from zg_async.metrics import Metrics
from zg_async.networks import Network, get_network
from zg_async.paths import state_dir as default_state_dir
from zg_async.text import hidden
from zg_async.transport.budget import SpendLimits
from zg_async.transport.chain import Chain
from zg_async.transport.fees import FeePolicy
from zg_async.transport.guard import network_guard
from zg_async.transport.http import Http, HttpSettings
from zg_async.transport.key_book import FileKeyBook
from zg_async.transport.limiter import ProviderLimits
from zg_async.transport.outbox import Outbox
from zg_async.transport.rpc import Rpc
from zg_async.transport.signer import DecryptionKey, Guarded, LocalSigner, Signer
from zg_async.transport.sqlite_outbox import SqliteOutbox
from zg_async.transport.storage import Storage
from zg_async.transport.storage_settings import StorageSettings
from zg_async.transport.tee import TeePolicy, require_tee
from zg_async.wire.hashing import parse_address
from zg_async.wire.records import Address

if TYPE_CHECKING:
    import aiohttp

CONTRACTS: Final = ("ledger", "inference", "fine_tuning", "flow")
_MAINNET: Final = 16661
Key = str | bytes


class _Shared:
    """What belongs to the network and not to a wallet: session, limiters, log reader, block watcher, pollers."""

    def __init__(
        self,
        network: Network,
        http: Http,
        chain: Chain,
        clock: Clock,
        signers: Mapping[Address, Signer],
        polling: PollPolicy | None,
        state_dir: Path,
        storage: Storage,
        storage_settings: StorageSettings,
        inference_policy: InferencePolicy | None,
        tee: TeePolicy | None = None,
        verified_only: bool = False,
    ) -> None:
        self.inference_policy = inference_policy
        self.network = network
        self.http = http
        self.chain = chain
        self.clock = clock
        self.signers = signers
        self.state_dir = state_dir
        self.storage = storage
        self.storage_settings = storage_settings
        self.services = ServiceDirectory(network, chain, clock)
        self.verifier = Verifier(self.services, chain, http, clock, policy=tee, state_dir=state_dir)
        self.verified_only = verified_only
        self.hub = WatchHub(chain, http, self.services, clock, policy=polling)
        self.brokers: dict[Address, Broker] = {}
        self.state: Literal["new", "open", "closed"] = "new"

    async def open(self) -> None:
        if self.state != "new":
            raise ClosedError("a broker is opened once", hint="Call create_broker again")
        self.state = "open"
        try:
            await self.http.open()
            await self.chain.open()
            await self._check()
        except BaseException:
            await self.aclose()
            raise

    async def _check(self) -> None:
        """See that the contracts are there and registered (one clear error otherwise)."""
        addresses = {name: getattr(self.network, name) for name in ("ledger", "inference", "fine_tuning")}
        codes = await self.chain.code_sizes([Address(a) for a in addresses.values()])
        missing = [
            f"{name} {address}" for (name, address), size in zip(addresses.items(), codes, strict=True) if not size
        ]
        if missing:
            raise WrongChainError(
                f"no contract on chain {self.chain.chain_id} at: {', '.join(missing)}",
                hint="Check the network, or pass the right addresses as contracts={...}",
            )
        await self.services.full_name("fine-tuning")

    async def aclose(self) -> None:
        if self.state == "closed":
            return
        self.state = "closed"
        with anyio.CancelScope(shield=True):
            await self.hub.aclose()
            await self.chain.aclose()
            await self.http.aclose()
            for signer in self.signers.values():
                if isinstance(signer, LocalSigner):
                    signer.close()


def _funding_lock(shared: _Shared, signer: Signer | None) -> Path | None:
    if signer is None:
        return None
    return shared.state_dir / "funding" / f"{shared.network.chain_id}-{signer.address[2:].lower()}.lock"


class Broker:
    """One wallet's view of a network: `.ledger`, `.fine_tuning`, `.inference` with `.lora`, `.storage`.

    Made by `create_broker`; an async context manager. `using(address)` gives the view of another of its wallets; all
    views share the session, the limiters, the log reader, the block watcher and the pollers.
    """

    def __init__(self, shared: _Shared, signer: Signer | None, *, verified_by: "Broker | None" = None) -> None:
        """Bind the managers to a wallet; `create_broker` is the way to make one."""
        self._shared = shared
        self._signer = signer
        self._verified_view: Broker | None = None
        self.storage = StorageManager(shared.chain, shared.storage, signer, shared.storage_settings)
        self._context = Context(
            chain=shared.chain,
            http=shared.http,
            services=shared.services,
            clock=shared.clock,
            signer=signer,
            storage=self.storage,
            state_dir=shared.state_dir,
            verifier=shared.verifier,
            verified_only=shared.verified_only,
            funding=FundingLine(_funding_lock(shared, signer), shared.clock),
        )
        if verified_by is not None:  # the same lock on the same money
            self._context = dataclasses.replace(verified_by._context, verified_only=True)
        self.ledger = LedgerManager(self._context)
        self.fine_tuning = FineTuningManager(self._context, shared.hub)
        keys = FileKeyBook(shared.state_dir / "api-keys" / str(shared.network.chain_id))
        self.inference = InferenceManager(self._context, shared.inference_policy, keys)

    async def __aenter__(self) -> Self:
        await self._shared.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close everything this broker opened, for all its wallets. Idempotent."""
        await self._shared.aclose()

    @property
    def network(self) -> Network:
        """Where it works."""
        return self._shared.network

    @property
    def chain(self) -> Chain:
        """The chain's transport."""
        return self._shared.chain

    @property
    def http(self) -> Http:
        """The transport to providers."""
        return self._shared.http

    @property
    def metrics(self) -> Metrics:
        """What it has counted, for all its wallets: `broker.metrics.snapshot()`."""
        return self._shared.http.metrics

    @property
    def clock(self) -> Clock:
        """Its source of time."""
        return self._shared.clock

    @property
    def state_dir(self) -> Path:
        """Where this user's outbox and journal lie."""
        return self._shared.state_dir

    @property
    def audit_path(self) -> Path | None:
        """The wallet's audit log, for `read_audit`: each payment and signature; None: its outbox is in memory.

        Raises:
            ConfigError: It is read-only.
            ClosedError: The broker isn't open.
        """
        return self.chain.audit_path(self.address)

    @property
    def address(self) -> Address:
        """The wallet's address.

        Raises:
            ConfigError: It is read-only.
        """
        return self._context.wallet

    @property
    def read_only(self) -> bool:
        """Whether it has no wallet."""
        return self._signer is None

    @property
    def requires_cap(self) -> bool:
        """Whether a job here has to bring its own cap: coins are real, and no limit is set for jobs or days."""
        return self.network.chain_id == _MAINNET and not self._shared.chain.budget.limits.is_capped

    @property
    def can_decrypt(self) -> bool:
        """Whether the wallet's key can open the models it orders; a remote signer usually can't."""
        return isinstance(self._signer, DecryptionKey)

    @property
    def wallets(self) -> tuple[Address, ...]:
        """All its wallets, in the order given."""
        return tuple(self._shared.signers)

    async def cost_report(self, *, first_block: int | None = None, last_block: int | None = None) -> CostReport:
        """Add up what the wallet has paid: fees, penalties, gas, storage and inference.

        The total is what wallet and ledger together have lost in these blocks, if only this user's programs send with
        the key and nobody sends to the wallet.

        Args:
            first_block: Where to begin; None: with the first transaction that the outbox knows.
            last_block: Where to end, included; None: the newest block.

        Returns:
            The sums, the tasks that were settled, and what each job's transactions took.

        Raises:
            ConfigError: The broker is read-only.
            ChainUnavailableError: The RPC endpoint didn't answer (retryable).
        """
        return await cost_report(self._context, first_block=first_block, last_block=last_block)

    def using(self, wallet: str) -> "Broker":
        """Return the view of one of its wallets. It needs no closing.

        Args:
            wallet: The wallet's address.

        Raises:
            ConfigError: The broker has no such wallet.
        """
        address = parse_address(wallet, what="wallet")
        if address not in self._shared.brokers:
            signer = self._shared.signers.get(address)
            if signer is None:
                raise ConfigError(f"the broker has no wallet {address}", hint="Pass its key in private_keys=")
            self._shared.brokers[address] = Broker(self._shared, signer)
        return self._shared.brokers[address]

    def verified_only(self) -> "Broker":
        """Return a view that pays, sends and acknowledges nothing to providers that aren't verified.

        Without the extra `tee` none is, and its calls raise `ConfigError`.
        """
        if self._context.verified_only:
            return self
        if self._verified_view is None:
            self._verified_view = Broker(self._shared, self._signer, verified_by=self)
        return self._verified_view

    def __repr__(self) -> str:
        return f"<Broker {self.network.name} {self._signer.address if self._signer else 'read-only'}>"


def create_broker(
    private_key: Key | None = None,
    network: str | Network | None = None,
    *,
    private_keys: Sequence[Key] = (),
    signer: Signer | None = None,
    rpc_url: str | Sequence[str] | None = None,
    contracts: Mapping[str, str] | None = None,
    outbox: Outbox | None = None,
    state_dir: str | os.PathLike[str] | None = None,
    session: "aiohttp.ClientSession | None" = None,
    http: HttpSettings | None = None,
    allow_hosts: Sequence[str] = (),
    fees: FeePolicy | None = None,
    limits: SpendLimits | None = None,
    polling: PollPolicy | None = None,
    inference: InferencePolicy | None = None,
    indexer_url: str | None = None,
    storage_nodes: Sequence[str] = (),
    storage: StorageSettings | None = None,
    require_verified: bool = False,
    tee: TeePolicy | None = None,
    clock: Clock | None = None,
) -> Broker:
    """Make a broker. Reads nothing and connects to nothing; `async with` opens it.

    Args:
        private_key: The wallet's key: 64 hex digits or 32 bytes. None with no other wallet: a read-only broker.
        network: `"mainnet"`, `"testnet"`, `"testnet-dev"`, `"local"` or a `Network`. There is no default.
        private_keys: Several wallets; the first is the default one.
        signer: A wallet whose key lies elsewhere, for example `LocalSigner.from_keystore(...)`,
            or `await RemoteSigner.connect(url)`.
        rpc_url: Instead of the network's endpoint; several stand in for each other, the first is preferred.
        contracts: Addresses instead of the network's: `ledger`, `inference`, `fine_tuning`, `flow`.
        outbox: Where signed transactions are kept; None: a file in the state folder, shared by this user's programs.
        state_dir: Instead of the user's state folder.
        session: An aiohttp session to use; it is left open. None: an own one.
        http: Time-outs, proxy, certificate authorities and provider limits. None: the defaults and the network's rate.
        allow_hosts: Provider hosts that may have private addresses and plain http, by name.
        fees: Caps and rules for transaction fees.
        limits: What may be spent, per call, job and day. None: what you call for yourself isn't limited, and jobs,
            which run unattended, only start on mainnet with a `max_spend` of their own.
        polling: How often providers are asked.
        inference: How inference providers are talked to: proof of answers, requests at a time, automatic funding.
        indexer_url: The 0G Storage indexer instead of the network's.
        storage_nodes: URLs of storage nodes to use instead of asking an indexer.
        storage: Replicas, fragments, price cap and patience of storage.
        require_verified: Pay, send and acknowledge nothing to providers whose TEE isn't verified; needs extra `tee`.
        tee: What a provider's TEE has to be, to be verified.
        clock: The source of time, for tests.

    Returns:
        The broker, bound to the first wallet.

    Raises:
        ConfigError: Wrong key, unknown network, bad address; or `require_verified` without the extra `tee`.
    """
    if require_verified:
        require_tee()
    private_key, private_keys = hidden(private_key), [hidden(key) for key in private_keys]
    urls = [rpc_url] if isinstance(rpc_url, str) else list(rpc_url or ())
    record = _network(network, urls[0] if urls else None, contracts)
    keys = [private_key, *private_keys] if private_key is not None else list(private_keys)
    guard = network_guard(record, fees or FeePolicy())
    signers: dict[Address, Signer] = {}
    for own in [signer] if signer is not None else []:
        signers[own.address] = own
    for key in keys:
        local = LocalSigner.from_key(key)
        signers[local.address] = local
    for one in signers.values():
        if isinstance(one, Guarded):
            one.arm(guard)
    settings = http or HttpSettings(limits=ProviderLimits(rate=record.provider_rate))
    settings = dataclasses.replace(settings, allow_hosts=(*settings.allow_hosts, *record.allow_hosts, *allow_hosts))
    time = clock or SystemClock()
    client = Http(session=session, settings=settings, clock=time)
    folder = Path(state_dir) if state_dir is not None else default_state_dir()
    if outbox is None and signers:
        outbox = SqliteOutbox(folder / "outbox.sqlite")
    rpc = Rpc(urls or record.rpc_url or "", http=client, clock=time)
    chain = Chain(
        record,
        rpc,
        outbox=outbox,
        signers=tuple(signers.values()),
        fees=fees or FeePolicy(),
        limits=limits,
        metrics=client.metrics,
        clock=time,
    )
    if inference is not None and inference.funding is not None:
        chain.budget.allow_auto_funding(True, per_hour=inference.funding.per_hour)
    chosen = storage or StorageSettings()
    store = Storage(chain, client, clock=time, indexer_url=indexer_url, nodes=storage_nodes, settings=chosen)
    shared = _Shared(
        record, client, chain, time, signers, polling, folder, store, chosen, inference, tee, require_verified
    )
    first = next(iter(signers.values()), None)
    broker = Broker(shared, first)
    if first is not None:
        shared.brokers[first.address] = broker
    return broker


def _network(network: str | Network | None, rpc_url: str | None, contracts: Mapping[str, str] | None) -> Network:
    if network is None:
        raise ConfigError(
            "no network was named", hint='Pass network="mainnet", "testnet" or "local"; there is no default'
        )
    record = get_network(network)
    unknown = set(contracts or ()) - set(CONTRACTS)
    if unknown:
        raise ConfigError(f"unknown contracts {sorted(unknown)}", hint=f"Known are {', '.join(CONTRACTS)}")
    changes: dict[str, Any] = {
        name: parse_address(address, what=f"{name} contract") for name, address in (contracts or {}).items()
    }
    if rpc_url is not None:
        changes["rpc_url"] = rpc_url
    record = dataclasses.replace(record, **changes)
    if not record.rpc_url:
        raise ConfigError(f"network {record.name} has no RPC endpoint", hint="Pass rpc_url=")
    return record
