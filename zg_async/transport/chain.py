"""The chain: calls that read, writes through the outbox, blocks and logs."""

import contextlib
import uuid
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self, TypeVar

import anyio

from zg_async.background import Background
from zg_async.clock import Clock
from zg_async.errors import (
    ChainError,
    ClosedError,
    ConfigError,
    RpcError,
    TransactionReplacedError,
    TransactionTimeoutError,
    WrongChainError,
    ZgError,
)
from zg_async.logs import get_logger
from zg_async.metrics import Metrics
from zg_async.networks import Network
from zg_async.tracing import span
from zg_async.transport.budget import Budget, SpendLimits
from zg_async.transport.fees import FeePolicy
from zg_async.transport.guard import Guard, network_guard
from zg_async.transport.handover import Handover, hand_over, take_over
from zg_async.transport.heads import Block, BlockWatcher, ReceiptPoll, parse_block
from zg_async.transport.lane import Lane, LaneParts, open_lane
from zg_async.transport.logs import LogReader, Topics
from zg_async.transport.outbox import MemoryOutbox, Outbox
from zg_async.transport.quotes import BEHIND_PAUSE, BEHIND_TRIES, behind, call_fields, quote
from zg_async.transport.receipts import parse_receipt
from zg_async.transport.rows import LaneId, Row
from zg_async.transport.rpc import Ask, Rpc, blob, quantity
from zg_async.transport.signer import Guarded, Signer
from zg_async.transport.tx_watch import TransactionChanged, watch_transaction
from zg_async.wire.contracts import Call
from zg_async.wire.hashing import checksum_address, hex0x
from zg_async.wire.records import Address, Log, Receipt, TxHash

if TYPE_CHECKING:
    from web3 import AsyncWeb3

T = TypeVar("T")
_log = get_logger("zg_async.chain")
_ATTEMPTS: Final = 3


class Submitted(NamedTuple):
    """A write that is recorded and sent."""

    key: str
    tx_hash: TxHash
    account_nonce: int


class Chain:
    """One network's chain. An async context manager, or `open` and `aclose`."""

    def __init__(
        self,
        network: Network,
        rpc: Rpc,
        *,
        outbox: Outbox | None = None,
        signers: Sequence[Signer] = (),
        fees: FeePolicy | None = None,
        guard: Guard | None = None,
        limits: SpendLimits | None = None,
        metrics: Metrics | None = None,
        clock: Clock,
    ) -> None:
        """Prepare; nothing is asked until `open`.

        Args:
            network: Chain id, addresses, confirmations.
            rpc: The node.
            outbox: Where signed transactions are kept; None: in memory. It is closed with the chain.
            signers: The wallets; `add_wallet` adds more.
            fees: Caps and patience.
            guard: What may be signed; None: what this package sends to the network's contracts.
            limits: What may be spent; None: only what a job itself is capped at.
            metrics: Counts transactions and what they cost.
            clock: The source of time.
        """
        self.metrics = metrics or Metrics()
        self.network = network
        self.rpc = rpc
        self.fees = fees or FeePolicy()
        self._guard = guard or network_guard(network, self.fees)
        self._outbox: Outbox = outbox or MemoryOutbox()
        self._clock = clock
        self._background = Background()
        self.heads = BlockWatcher(rpc, clock, self._background)
        self.budget = Budget(limits, self.heads.time)
        self.logs = LogReader(rpc, self.heads)
        self._signers: dict[Address, Signer] = {}
        self._lanes: dict[Address, Lane] = {}
        self._opening = anyio.Lock()
        self._genesis: str | None = None
        self._closed = False
        for signer in signers:
            self.add_wallet(signer)

    # --- opening -----------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Check that the node is on this network's chain. Idempotent; called before the first signature at latest.

        Raises:
            WrongChainError: It isn't.
            ChainUnavailableError: No answer.
        """
        async with self._opening:
            if self._closed:
                raise ClosedError("the chain connection is closed")
            if self._genesis is not None:
                return
            asks = [Ask("eth_chainId"), Ask("eth_getBlockByNumber", ["0x0", False])]
            chain_id, genesis = await self.rpc.batch(asks)
            if isinstance(chain_id, ChainError):
                raise chain_id
            if quantity(chain_id) != self.network.chain_id:
                raise WrongChainError(
                    f"{self.rpc.host} is on chain {quantity(chain_id)}, {self.network.name} is {self.network.chain_id}",
                    hint="Check network and rpc_url; nothing was signed",
                )
            if isinstance(genesis, ChainError) or genesis is None:
                raise RpcError(f"{self.rpc.host} doesn't show block 0", hint="Use a node that has all headers")
            self.rpc.expect_chain(self.network.chain_id)
            self._genesis = parse_block(genesis).hash

    async def aclose(self) -> None:
        """Stop waiting and close the outbox. Idempotent; the session stays open."""
        self._closed = True
        await self._background.aclose()
        await self._outbox.aclose()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    @property
    def chain_id(self) -> int:
        """The network's chain id."""
        return self.network.chain_id

    @property
    def genesis_hash(self) -> str:
        """The hash of block 0, which tells networks of one chain id apart.

        Raises:
            ClosedError: The chain isn't open.
        """
        if self._genesis is None:
            raise ClosedError("the chain connection isn't open", hint="Enter the broker first")
        return self._genesis

    @property
    def wallets(self) -> tuple[Address, ...]:
        """Addresses that can sign here."""
        return tuple(self._signers)

    def add_wallet(self, signer: Signer) -> Address:
        """Let a signer write here, behind this network's guard.

        Args:
            signer: Whose wallet.

        Returns:
            Its address.
        """
        if isinstance(signer, Guarded):
            signer.arm(self._guard)
        self._signers[signer.address] = signer
        return signer.address

    def web3(self) -> "AsyncWeb3[Any]":
        """Make an `AsyncWeb3` over this connection. The first call imports web3, which takes a second."""
        return self.rpc.web3()

    # --- reading -----------------------------------------------------------------------------------------------------

    async def call(self, call: Call[T], *, sender: str | None = None, block: int | str = "latest") -> T:
        """Run a call on a node without sending anything.

        Args:
            call: What to run.
            sender: By whom; None: nobody in particular.
            block: On which state: a number, or `"latest"`.

        Returns:
            The decoded result.

        Raises:
            ContractRevertedError: The contract refused, with the decoded reason.
            ChainUnavailableError: No answer.
        """
        params = [call_fields(call, sender), _block(block)]
        return call.decode(blob(await self.rpc.request("eth_call", params, what=call.name, contract=call.to)))

    async def call_agreed(self, call: Call[T], matter: Callable[[T], object]) -> T:
        """Run a call on every endpoint there is, and see that they agree where it matters.

        Args:
            call: What to run.
            matter: The part of the result that decides; an endpoint that lags may differ elsewhere.

        Returns:
            The result of the endpoint in use.

        Raises:
            RpcError: Two endpoints tell different things; it names both.
        """
        found = await self.call(call)
        if self.rpc.endpoints == 1:
            return found
        ask = Ask("eth_call", [call_fields(call, None), "latest"], call.name, call.to)
        for host, answer in await self.rpc.everywhere(ask):
            told = _decoded(call, answer)
            if not isinstance(told, ZgError) and matter(told) != matter(found):
                raise RpcError(
                    f"the RPC endpoints {self.rpc.host} and {host} tell different things of {call.name}",
                    hint="One of them lies, or is far behind. Nothing was sent; find out which, and leave it out",
                )
        return found

    async def call_many(
        self, calls: Iterable[Call[Any]], *, sender: str | None = None, block: int | str = "latest"
    ) -> list[Any]:
        """Run many calls in one round trip (per hundred).

        Args:
            calls: What to run.
            sender: By whom.
            block: On which state.

        Returns:
            Decoded results in order; in the place of a failed one its `ZgError`.

        Raises:
            ChainUnavailableError: No answer at all.
        """
        wanted = list(calls)
        asks = [Ask("eth_call", [call_fields(c, sender), _block(block)], c.name, c.to) for c in wanted]
        answers = await self.rpc.batch(asks) if asks else []
        return [_decoded(call, answer) for call, answer in zip(wanted, answers, strict=True)]

    async def call_many_for(
        self, calls: Iterable[Call[Any]], wallet: str, *, block: int | str = "latest"
    ) -> tuple[list[Any], int, int]:
        """Run calls as `call_many` does, and read in the same round trip what whoever pays has to know.

        Args:
            calls: What to run.
            wallet: Whose balance.
            block: On which state the calls run.

        Returns:
            The calls' results, what a transaction pays per gas now, and the wallet's newest balance, in neuron.

        Raises:
            ChainError: Price or balance can't be read.
        """
        wanted = list(calls)
        asks = [Ask("eth_call", [call_fields(c, None), _block(block)], c.name, c.to) for c in wanted]
        asks += [Ask("eth_gasPrice"), Ask("eth_getBalance", [checksum_address(wallet), "latest"])]
        *answers, price, balance = await self.rpc.batch(asks)
        for answer in (price, balance):
            if isinstance(answer, ChainError):
                raise answer
        decoded = [_decoded(call, answer) for call, answer in zip(wanted, answers, strict=True)]
        return decoded, quantity(price), quantity(balance)

    async def block(self, tag: int | str = "latest") -> Block:
        """Read a block's header.

        Args:
            tag: A number, a 32-byte hash, or `"latest"`.

        Raises:
            RpcError: There is no such block.
        """
        by_hash = isinstance(tag, str) and len(tag) == 66
        method = "eth_getBlockByHash" if by_hash else "eth_getBlockByNumber"
        answer = await self.rpc.request(method, [_block(tag), False])
        if answer is None:
            raise RpcError(f"the node has no block {tag}")
        block = parse_block(answer)
        if tag == "latest":
            self.heads.time.saw(block.timestamp)
        return block

    async def balance(self, address: str, *, block: int | str = "latest") -> int:
        """Read an address's balance in neuron."""
        return quantity(await self.rpc.request("eth_getBalance", [checksum_address(address), _block(block)]))

    async def transaction_count(self, address: str, *, block: int | str = "latest") -> int:
        """Read how many transactions an address has had mined."""
        return quantity(await self.rpc.request("eth_getTransactionCount", [checksum_address(address), _block(block)]))

    async def code_sizes(self, addresses: Sequence[str]) -> list[int]:
        """Read how many bytes of code stand at some addresses, in one round trip."""
        answers = await self.rpc.batch([Ask("eth_getCode", [a, "latest"]) for a in addresses])
        for answer in answers:
            if isinstance(answer, ChainError):
                raise answer
        return [len(blob(answer)) for answer in answers]

    async def gas_price(self) -> int:
        """Read what a transaction pays per gas now, in neuron."""
        return quantity(await self.rpc.request("eth_gasPrice"))

    async def get_logs(self, addresses: Iterable[str], topics: Topics, first: int, last: int) -> tuple[Log, ...]:
        """Read the logs of a range of blocks; see `LogReader.get_logs`."""
        return await self.logs.get_logs(addresses, topics, first, last)

    # --- writing -----------------------------------------------------------------------------------------------------

    async def write(self, call: Call[Any], *, wallet: str, key: str | None = None) -> Receipt:
        """Do something on the chain, exactly once, and wait until it is in a block.

        It is simulated first, so what would fail costs nothing. Its signed bytes are recorded before they are sent;
        lost answers, crashes and repeated calls never make it happen twice. Cancelling ends the waiting only: once it
        is recorded it will happen. Mined isn't final: `wait_final` is.

        Args:
            call: What to do.
            wallet: Who pays and signs.
            key: Names the effect: the same key has it once, however often and in whatever process it is asked for.
                None: a fresh one.

        Returns:
            The receipt, status 1.

        Raises:
            ContractRevertedError: It would be reverted (`tx_hash` None, nothing sent), or was mined and reverted.
            InsufficientGasFundsError: The wallet can't pay.
            FeeCapError: Gas or price is above a cap.
            RefusedToSignError: The guard doesn't know it.
            TransactionTimeoutError: Not mined in `FeePolicy.wait_seconds`; call again with the same key to go on.
            TransactionReplacedError: An unknown transaction took its nonce: look at the state before repeating.
            ConfigError: The key was used for something else, or there is no such wallet.
            JournalError: The outbox can't record, or a part of it is lost and not accounted for.
            ChainUnavailableError: No answer for long.
        """
        lane = await self._lane(wallet)
        name = key if key is not None else f"once/{uuid.uuid4()}"
        left = _ATTEMPTS
        with span("zg.transaction", call=call.name, key=name, wallet=lane.wallet) as traced:
            while True:
                row = await lane.submit(call, name, named=key is not None)
                traced.set_attribute("zg.tx_hash", row.tx_hash)
                try:
                    return await lane.receipt(await lane.wait_mined(row))
                except TransactionReplacedError as error:
                    left -= 1
                    if error.tx_hash is None or not left:
                        raise
                    _log.warning("%s; it is final and did something else, so this is signed anew", error.message)

    async def submit(self, call: Call[Any], *, wallet: str, key: str | None = None) -> Submitted:
        """Sign, record and send, without waiting. Arguments and errors as `write`, as far as they come before mining.

        Returns:
            The key to wait with, the hash as of now (a fee bump changes it), and the nonce.
        """
        lane = await self._lane(wallet)
        row = await lane.submit(call, key if key is not None else f"once/{uuid.uuid4()}", named=key is not None)
        return Submitted(row.key, row.tx_hash, row.account_nonce)

    async def wait_mined(self, key_or_hash: str) -> Receipt:
        """Wait for a submitted write, in this or another process.

        Args:
            key_or_hash: Its key, or any of its hashes.

        Returns:
            The receipt, status 1; errors as `write`.
        """
        found = await self._find(key_or_hash)
        if found is not None:
            lane, row = found
            return await lane.receipt(await lane.wait_mined(row))
        if not (key_or_hash.startswith("0x") and len(key_or_hash) == 66):
            raise ConfigError(f"no wallet here has sent anything under the key {key_or_hash!r}")
        return await self.wait_receipt(key_or_hash)

    async def wait_final(self, key_or_hash: str) -> Receipt:
        """Wait until a write is as deep as the network's confirmations; a reorganisation on the way sends it again.

        Raises:
            ContractRevertedError: It was reverted.
            ConfigError: No wallet here has sent it.
        """
        found = await self._find(key_or_hash)
        if found is None:
            raise ConfigError(f"no wallet here has sent {key_or_hash!r}")
        lane, row = found
        while True:
            receipt = await lane.receipt(await lane.wait_final(row))
            if lane.book.current(row).final:  # not so if a deep reorganisation has just been seen
                return receipt

    async def wait_receipt(self, tx_hash: str) -> Receipt:
        """Wait for the receipt of any transaction, whoever sent it, whatever its status.

        Raises:
            TransactionTimeoutError: None within `FeePolicy.wait_seconds`.
            ChainUnavailableError: The node is away.
        """
        poll, started = ReceiptPoll(tx_hash), self._clock.monotonic()
        async with self.heads.joined(poll):
            while poll.receipt is None:
                if self._clock.monotonic() - started > self.fees.wait_seconds:
                    raise TransactionTimeoutError(f"{tx_hash} isn't mined", tx_hash=tx_hash, hint="Look again later")
                await poll.wait_round()
        return parse_receipt(poll.receipt)

    def watch_transaction(self, tx_hash: str) -> AsyncGenerator[TransactionChanged, None]:
        """Watch a transaction, whoever sent it, until it is final; `wait_receipt` and `wait_final` only wait.

        Drive it with `contextlib.aclosing`.

        Args:
            tx_hash: Which.

        Returns:
            Where it stands, each time that changes; a reorganisation takes it back to `pending`.
        """
        return watch_transaction(self.heads, tx_hash.lower(), self.network.confirmations)

    async def gas_cost_estimate(self, call: Call[Any], *, wallet: str) -> int:
        """Estimate what a write's gas would cost at today's price, in neuron. Errors as `write` before signing."""
        address = checksum_address(wallet)
        return (await quote(self.rpc, call, address, self.fees, self._clock, above=0)).likely_cost

    async def recall(self, key: str, *, wallet: str) -> Receipt | None:
        """Look up what was sent under a key, in this or an earlier process, and wait until it is mined.

        Args:
            key: The effect's name.
            wallet: Whose.

        Returns:
            Its receipt; None when nothing was ever signed under this key.

        Raises:
            ContractRevertedError: It was mined and reverted.
        """
        lane = await self._lane(wallet)
        row = (await self._outbox.refresh(lane.id)).find(key)
        return None if row is None else await lane.receipt(await lane.wait_mined(row))

    async def wait_sent(self, wallet: str, to: str) -> int:
        """Wait until all that a wallet has signed for a contract, in any program on this outbox, is mined.

        Args:
            wallet: Whose.
            to: The contract's address.

        Returns:
            The newest block that holds any of it, 0 if none is known: older views of the chain don't show it.

        Raises:
            TransactionTimeoutError: Some of it isn't mined for long.
            ChainUnavailableError: The node is away.
        """
        lane, contract = await self._lane(wallet), checksum_address(to)
        for row in (await self._outbox.refresh(lane.id)).open_rows():
            if row.to == contract:
                with contextlib.suppress(TransactionReplacedError):
                    await lane.wait_mined(row)
        rows = (*lane.book.unsettled(), *lane.book.final_rows())  # a back-end may lag by more than what makes final
        return max((row.inclusion.block_number for row in rows if row.inclusion), default=0)

    @contextlib.asynccontextmanager
    async def watched(self, wallet: str) -> AsyncGenerator[None, None]:
        """Look after what a wallet has sent before: what a reorganisation takes out of its block is sent again.

        Args:
            wallet: Whose.
        """
        lane: Lane | None = None
        with contextlib.suppress(ChainError):  # the node is away: whoever needs it learns that
            lane = await self._lane(wallet)
        async with lane.watched() if lane is not None and lane.book.unsettled() else contextlib.nullcontext():
            yield

    async def removals(self, wallet: str) -> int:
        """Count how often a reorganisation has removed something of a wallet's from its block, or moved it."""
        return (await self._lane(wallet)).book.removals

    async def wait_unmoved(self, wallet: str, to: str, *, since: int) -> bool:
        """Wait until all that a wallet has sent to a contract lies in the blocks in which it was last seen.

        Args:
            wallet: Whose.
            to: The contract's address.
            since: The `removals` before the chain was read.

        Returns:
            Whether some of it had left its block: what was read of the chain before may lack it.

        Raises:
            ChainUnavailableError: The node is away.
        """
        lane, contract = await self._lane(wallet), checksum_address(to)
        await lane.restored()
        moved = lane.book.removals != since
        while places := [r.inclusion for r in lane.book.unsettled() if r.inclusion is not None and r.to == contract]:
            asks = [Ask("eth_getTransactionReceipt", [place.tx_hash]) for place in places]
            told = zip(places, await self.rpc.batch(asks), strict=True)
            if all(isinstance(answer, dict) and answer.get("blockHash") == place.block_hash for place, answer in told):
                break
            moved = True
            async with lane.watched():
                await lane.monitor.wait_change()
        return moved

    async def block_from(self, number: int) -> Block:
        """Read the newest block's header, from a back-end that has a certain block.

        Raises:
            ChainUnavailableError: No answer, or the node stays behind.
        """
        block = await self.block()
        for _ in range(BEHIND_TRIES):
            if block.number >= number:
                return block
            await self._clock.sleep(BEHIND_PAUSE)  # another back-end behind the same URL
            block = await self.block()
        raise behind(block.number, number)

    async def sweep(self) -> int:
        """Send again, for all wallets, what is recorded and not mined; return how many. `write` does so by itself."""
        return sum([await (await self._lane(wallet)).sweep() for wallet in self.wallets])

    async def spent(self, wallet: str, *, since: float = 0.0) -> tuple[int, int]:
        """Sum up what a wallet has signed here since a unix time, unmined ones at their dearest.

        Returns:
            Neuron with values, and neuron of gas alone.
        """
        lane = await self._lane(wallet)
        return lane.book.spent(since)

    async def mined_rows(self, wallet: str) -> tuple[Row, ...]:
        """Return what this user's programs have sent from a wallet and is in a block, by nonce."""
        lane = await self._lane(wallet)
        return (await self._outbox.refresh(lane.id)).mined_rows()

    async def mined_of(self, job: str, *, wallet: str, wait_for: Iterable[str] = ()) -> tuple[Row, ...]:
        """Return what a job has sent from a wallet and is in a block, reverted or not, by nonce.

        Args:
            job: Its id, with which its keys begin.
            wallet: Whose.
            wait_for: Keys; what was signed under them or under steps of them is waited for.
        """
        lane, keys = await self._lane(wallet), tuple(wait_for)
        for row in (await self._outbox.refresh(lane.id)).rows_of(job):
            if row.inclusion is None and any(f"{row.key}/".startswith(f"{key}/") for key in keys):
                await lane.wait_mined(row)
        return tuple(r for r in (await self._outbox.refresh(lane.id)).rows_of(job) if r.inclusion is not None)

    async def hand_over(self, job: str, *, wallet: str) -> Handover:
        """Wait until all that a job has signed is mined, and say what it was; see `JobRunner.export_job`."""
        return await hand_over(await self._lane(wallet), job)

    async def take_over(self, handover: Handover, *, wallet: str) -> None:
        """Record what a job sent from this wallet on another machine; see `JobRunner.import_job`."""
        await take_over(await self._lane(wallet), handover)

    async def charge(self, key: str, amount: int, *, wallet: str, settled: bool = False) -> None:
        """Count what a task may cost, or has cost, at a provider, durably, with all else that is spent.

        Without any limit nothing is recorded.

        Args:
            key: The effect's name, `<job>/fee`; the newest amount stands.
            amount: Neuron: the most it can be before it is known, then what it is.
            wallet: Who pays.
            settled: It is gone already, so no limit can refuse it.

        Raises:
            LimitError: It would break a limit. Nothing was recorded.
        """
        if self.budget.is_set:
            await (await self._lane(wallet)).charge(key, amount, settled=settled)

    async def note_signature(self, wallet: str, digest: bytes, *, purpose: str, provider: str | None = None) -> None:
        """Write a signature that isn't a transaction's to the wallet's audit log, before it is made.

        Args:
            wallet: Whose key signs.
            digest: What is signed.
            purpose: What for, see `AuditedSignature`.
            provider: Who will get it.

        Raises:
            JournalError: It can't be written. Nothing may be signed then.
        """
        await self.open()
        fields = {"purpose": purpose, "provider": provider, "digest": hex0x(digest)}
        await self._outbox.note_signature(self._lane_id(checksum_address(wallet)), self._clock.now(), fields)

    def audit_path(self, wallet: str) -> Path | None:
        """Return where a wallet's audit log lies, for `read_audit`; None: the outbox is in memory and has none.

        Raises:
            ClosedError: The chain isn't open.
        """
        return self._outbox.audit_path(self._lane_id(checksum_address(wallet)))

    async def accept_loss(self, wallet: str) -> None:
        """Let a wallet sign again whose outbox lost a part, on the user's word that nothing of it will be repeated."""
        lane = await self._lane(wallet)
        if lane.book.loss is not None:
            await self._outbox.append(lane.id, [{"kind": "reconciled", "nonce": lane.book.next_nonce}])

    async def _find(self, key_or_hash: str) -> tuple[Lane, Row] | None:
        for wallet in self.wallets:
            lane = await self._lane(wallet)
            book = await self._outbox.refresh(lane.id)
            row = book.find(key_or_hash) or book.find_hash(key_or_hash.lower())
            if row is not None:
                return lane, row
        return None

    async def _lane(self, wallet: str) -> Lane:
        address = checksum_address(wallet)
        signer = self._signers.get(address)
        if signer is None:
            raise ConfigError(f"there is no key for the wallet {address}", hint="Give it to create_broker")
        await self.open()
        async with self._opening:
            counted = self._signers if self.budget.is_set else (address,)
            for one in [one for one in counted if one not in self._lanes]:
                await self._open_lane(one)
        return self._lanes[address]

    async def _open_lane(self, address: Address) -> None:
        if not self.heads.time.is_known:
            await self.block()  # limits for a day count by its time too
        parts = LaneParts(
            rpc=self.rpc,
            outbox=self._outbox,
            guard=self._guard,
            fees=self.fees,
            clock=self._clock,
            watcher=self.heads,
            confirmations=self.network.confirmations,
            budget=self.budget,
            metrics=self.metrics,
        )
        self._lanes[address] = await open_lane(parts, self._lane_id(address), self._signers[address])

    def _lane_id(self, address: Address) -> LaneId:
        return LaneId(self.chain_id, self.genesis_hash, address)


def _decoded(call: Call[Any], answer: Any) -> Any:
    if isinstance(answer, ChainError):
        return answer
    try:
        return call.decode(blob(answer))
    except ZgError as error:
        return error


def _block(tag: int | str) -> str:
    return hex(tag) if isinstance(tag, int) else tag
