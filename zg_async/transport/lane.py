"""One wallet on one chain: nonces, signatures, broadcasts.

The failure modes, and what is done about each:

- Nonces are handed out under the lane's lock, from the outbox and the node's pool, whichever is higher, without waiting
  for earlier ones. A transaction is recorded before it is sent; a crash leaves a row that is sent again, not signed
  again. At most 16 are unmined; then writers wait.
- A lost answer, "already known", "nonce too low", "underpriced" mean neither failed nor done: the hashes decide
  (`monitor`).
- Several programs share the lane through the outbox: who loses the race for a nonce signs with the next one, and the
  losing bytes are forgotten unsent.
- A reorganisation deeper than the network's confirmations takes back what was final: the same bytes are sent again, and
  nothing is priced, simulated or planned meanwhile on the chain that lacks them.
- If a part of the outbox is lost (its head file says so), nothing is signed before `recovery` has accounted for every
  nonce. If the chain's nonce is ahead without such a sign, other programs use the key, or an old backup was restored:
  the newest of those transactions are looked up, and a key whose very effect is among them counts it as its own.
"""

import contextlib
import dataclasses
from collections.abc import AsyncGenerator, Callable
from typing import Any, Final

import anyio

from zg_async.clock import Clock
from zg_async.errors import (
    ChainError,
    ChainUnavailableError,
    ConfigError,
    ContractRevertedError,
    InsufficientGasFundsError,
    JournalError,
    RpcError,
    TransactionReplacedError,
    TransactionTimeoutError,
    ZgError,
)
from zg_async.logs import get_logger
from zg_async.metrics import Metrics
from zg_async.transport.book import LaneBook
from zg_async.transport.budget import Budget, money_of
from zg_async.transport.fees import FeePolicy
from zg_async.transport.guard import Guard
from zg_async.transport.heads import BlockWatcher
from zg_async.transport.monitor import LOOKUP_PAUSE, Monitor
from zg_async.transport.outbox import Outbox
from zg_async.transport.quotes import FewerError, Quote, check_count, check_money, quote
from zg_async.transport.receipts import parse_receipt, receipt_of
from zg_async.transport.recovery import find_missing, reconcile
from zg_async.transport.rows import LaneId, Money, Row, RowStatus, charge_entry, claimed_entry, signed_entry
from zg_async.transport.rpc import Ask, Rpc
from zg_async.transport.rpc_errors import SendFault, send_fault
from zg_async.transport.signer import Signer
from zg_async.transport.transaction import SignedTransaction, Transaction, intent_digest
from zg_async.wire.contracts import Call
from zg_async.wire.hashing import hex0x, keccak256
from zg_async.wire.records import Address, Receipt

_log = get_logger("zg_async.chain")
MAX_UNMINED: Final = 16
_RACES: Final = 200
_STALE: Final = 2.0
_DAY: Final = 86_400.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LaneParts:
    """What all lanes of a chain share."""

    rpc: Rpc
    outbox: Outbox
    guard: Guard
    fees: FeePolicy
    clock: Clock
    watcher: BlockWatcher
    confirmations: int
    budget: Budget
    metrics: Metrics


class Lane:
    """The writes of one wallet."""

    def __init__(self, parts: LaneParts, lane: LaneId, signer: Signer, book: LaneBook) -> None:
        """Bind a wallet; `open_lane` is the way to make one."""
        self.parts = parts
        self.id = lane
        self.signer = signer
        self.book = book
        parts.budget.watch(lane.address, book.totals)
        self.monitor = Monitor(self)
        self._lock = anyio.Lock()
        self._gate = anyio.Lock()
        self._inside = 0
        self._send_lock = anyio.Lock()
        self._outgoing: dict[tuple[str, int], Row] = {}
        self._answers: dict[tuple[str, int], Any] = {}

    @property
    def wallet(self) -> Address:
        """The wallet's address."""
        return self.id.address

    # --- writing ---------------------------------------------------------------------------------------------------

    async def submit(self, call: Call[Any], key: str, *, named: bool) -> Row:
        """Sign, record and send a write, or find what became of it before.

        Args:
            call: What to do.
            key: Names the effect; the same key never has it twice.
            named: The caller chose the key, so an earlier life of this program may have used it.

        Returns:
            Its row, sent if it isn't mined.
        """
        row = self._known(await self._refreshed(), call, key)
        if row is None or row.status is RowStatus.REPLACED:
            await self.parts.budget.require_consent(call, self.wallet, self.book.payees)
            async with self._admitted():
                price = await self.quote(call)
                if self.book.next_nonce == 0:
                    dearest = price.gas * price.fees.max_fee_per_gas
                    await self.parts.budget.require_first_consent(call, self.wallet, dearest)
                row = await self._sign(call, key, named, price)
        if row.status is RowStatus.SIGNED:
            await self.send(row)
        return row

    async def quote(self, call: Call[Any]) -> Quote:
        """Simulate and price a write, on a chain that holds all that was final."""
        try:
            return await self._quote(call, self.book.final_count())
        except FewerError as error:
            _log.info("%s", error)
            await self.restored()
        return await self._quote(call, 0)

    async def _quote(self, call: Call[Any], least: int) -> Quote:
        known = [row.inclusion.block_number for row in self.book.unsettled() if row.inclusion is not None]
        parts = self.parts
        return await quote(
            parts.rpc, call, self.wallet, parts.fees, parts.clock, above=max(known, default=0), least=least
        )

    async def restored(self) -> bool:
        """Have what was final on the chain again, if a reorganisation removed it.

        Returns:
            Whether some had been removed.

        Raises:
            TransactionTimeoutError: Some of it isn't mined for long.
            ChainUnavailableError: The node is away.
        """
        rows, removals = self.book.final_rows(), self.book.removals
        while await self.monitor.dig():
            await self.parts.clock.sleep(LOOKUP_PAUSE)
        for row in rows:
            with contextlib.suppress(TransactionReplacedError):
                await self.wait_mined(row)
        return self.book.removals != removals

    def _known(self, book: LaneBook, call: Call[Any], key: str) -> Row | None:
        row = book.find(key)
        if row is not None and row.intent != intent_digest(call.to, call.data, call.value):
            raise ConfigError(
                f"the key {key!r} was used for another transaction ({row.name})",
                hint="A key names one effect for ever; choose a new one",
            )
        return row

    async def _refreshed(self) -> LaneBook:
        return await self.parts.outbox.refresh(self.id)

    async def _sign(self, call: Call[Any], key: str, named: bool, price: Quote) -> Row:
        async with self._lock:
            price = await self._room(call, price)
            if self.book.loss is not None:
                await reconcile(self)
            for _ in range(_RACES):
                book = await self._refreshed()
                row = self._known(book, call, key)
                if row is not None and row.status is not RowStatus.REPLACED:
                    return row
                if price.latest > book.next_nonce > 0:
                    await find_missing(self, price.latest)
                if named and await self._claim(call, key):
                    continue
                if await self._record(call, key, price):
                    return self._found(key)
        raise JournalError(f"no nonce could be had for {self.wallet}: other programs take them all")

    @contextlib.asynccontextmanager
    async def _admitted(self) -> AsyncGenerator[None, None]:
        """Hold one of the places for unmined transactions, so that what is asked inside is still true when signing."""
        async with self._gate:
            await self._wait_for_room(lambda: self._inside)
            self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1

    async def _wait_for_room(self, more: Callable[[], int]) -> None:
        if len(self.book.open_rows()) + more() >= MAX_UNMINED:
            async with self.watched():
                while len(self.book.open_rows()) + more() >= MAX_UNMINED:
                    await self.monitor.wait_change()

    async def _room(self, call: Call[Any], price: Quote) -> Quote:
        await self._wait_for_room(lambda: 0)  # other programs may have filled it
        if self.parts.clock.monotonic() - price.at > _STALE:
            return await self.quote(call)
        return price

    async def _claim(self, call: Call[Any], key: str) -> bool:
        found = self.book.unclaimed(intent_digest(call.to, call.data, call.value))
        if found is None:
            return False
        _log.warning("%s is taken as the transaction of %s, which the outbox had lost", found.tx_hash, key)
        entry = claimed_entry(
            found,
            key=key,
            attempt=self._attempt(key),
            name=call.name,
            to=call.to,
            data=call.data,
            value=call.value,
            at=self.parts.watcher.time.unix(),
        )
        return await self.parts.outbox.append(self.id, [entry])

    async def _record(self, call: Call[Any], key: str, price: Quote) -> bool:
        book, parts = self.book, self.parts
        check_count(latest=price.latest, pending=price.pending, ours=book.next_nonce, wallet=self.wallet)
        check_money(
            parts.fees,
            self.wallet,
            value=call.value,
            gas=price.gas,
            fees=price.fees,
            balance=price.balance,
            open_cost=sum(row.reserved for row in book.open_rows()),
            gas_today=book.spent(parts.watcher.time.earliest() - _DAY)[1],
        )
        transaction = Transaction(
            chain_id=self.id.chain_id,
            account_nonce=max(book.next_nonce, price.pending),
            to=call.to,
            data=call.data,
            value=call.value,
            gas=price.gas,
            max_fee_per_gas=price.fees.max_fee_per_gas,
            max_priority_fee_per_gas=price.fees.max_priority_fee_per_gas,
        )
        money, _ = money_of(call.name, call.data, call.value)
        with parts.budget.hold(key, money.plus(Money(gone=price.gas * price.fees.max_fee_per_gas)), self.wallet):
            signed = await self.signed(transaction)
            entry = signed_entry(
                transaction,
                signed,
                key=key,
                attempt=self._attempt(key),
                name=call.name,
                at=parts.watcher.time.unix(),
                balance=price.balance,
            )
            return await parts.outbox.append(self.id, [entry])

    async def charge(self, key: str, amount: int, *, settled: bool) -> None:
        """Count what a task may cost, or has cost, against the limits; the newest amount of a key stands.

        Raises:
            LimitError: More than before, and it would break a limit. Nothing was recorded.
        """
        parts = self.parts
        for _ in range(_RACES):
            book = await self._refreshed()
            before = book.charges.get(key, (0.0, 0))[1]
            if before == amount:
                return
            free = settled or amount < before
            with contextlib.nullcontext() if free else parts.budget.hold(key, Money(gone=amount - before), self.wallet):
                entry = charge_entry(key=key, amount=amount, at=parts.watcher.time.unix(), height=book.height + 1)
                if await parts.outbox.append(self.id, [entry]):
                    return
        raise JournalError(f"the outbox of {self.wallet} is too busy to record what a task costs")

    async def signed(self, transaction: Transaction) -> SignedTransaction:
        """Sign what the guard lets pass, whatever signer it is."""
        self.parts.guard.check(transaction, sender=self.wallet)
        signed = await self.signer.sign_transaction(transaction)
        if hex0x(keccak256(signed.raw)) != signed.tx_hash:
            raise ConfigError("the signer's hash isn't that of its bytes", hint="Nothing was sent")
        return signed

    def _attempt(self, key: str) -> int:
        row = self.book.find(key)
        return 1 if row is None else row.attempt + 1

    def _found(self, key: str) -> Row:
        row = self.book.find(key)
        if row is None:
            raise JournalError(f"the outbox doesn't hold {key!r}, which it has just recorded")
        return row

    # --- sending ---------------------------------------------------------------------------------------------------

    async def send(self, row: Row) -> None:
        """Broadcast a row's newest bytes; what waits meanwhile goes along, in the order of nonces.

        Raises:
            InsufficientGasFundsError: The wallet can't pay; the row stays and is sent again.
        """
        place = (row.key, row.attempt)
        self._answers.pop(place, None)
        self._outgoing[place] = row
        async with self._send_lock:
            if place in self._outgoing:
                await self._flush()
        answer = self._answers.pop(place, None)
        if isinstance(answer, ChainError):
            self._judge(row, answer)

    async def _flush(self) -> None:
        rows = sorted(self._outgoing.values(), key=lambda row: row.account_nonce)
        sendable = [row for row in rows if row.versions[-1].raw]
        asks = [Ask("eth_sendRawTransaction", [hex0x(row.versions[-1].raw)], row.name, row.to) for row in sendable]
        answers: list[Any]
        try:
            answers = await self.parts.rpc.batch(asks, retries=False) if asks else []
        except ChainError as error:
            _log.info("the answer to %d transactions is lost: %s", len(asks), error)
            answers = [error] * len(asks)
        for row in rows:
            self._outgoing.pop((row.key, row.attempt), None)
            self.monitor.was_sent(row)
        for row, answer in zip(sendable, answers, strict=True):
            self._answers[row.key, row.attempt] = answer
        self.parts.watcher.nudge()

    def _judge(self, row: Row, error: ChainError) -> None:
        fault = send_fault(error)
        if fault in (SendFault.KNOWN, SendFault.NONCE_LOW, SendFault.REVERTED):
            return
        _log.info("%s (nonce %d): %s: %s", row.name, row.account_nonce, fault.value, error)
        if fault is SendFault.FUNDS:
            raise InsufficientGasFundsError(
                f"the wallet {self.wallet} can't pay {row.name}: {error.message}",
                hint=f"Fund the wallet. The transaction stays recorded with nonce {row.account_nonce}; repeat the call",
            )
        self.monitor.refused(row, fault, error)

    async def sweep(self) -> int:
        """Send again whatever is signed and not known to be mined; return how many."""
        rows = (await self._refreshed()).open_rows()
        for row in rows:
            self._outgoing.setdefault((row.key, row.attempt), row)
        if rows:
            with contextlib.suppress(InsufficientGasFundsError):
                await self.send(rows[0])
        return len(rows)

    # --- waiting ---------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncGenerator[None, None]:
        """Keep the chain's watcher looking after this lane."""
        async with self.parts.watcher.joined(self.monitor):
            yield

    async def wait_mined(self, row: Row) -> Row:
        """Wait until a row is in a block.

        Raises:
            TransactionTimeoutError: Not within `FeePolicy.wait_seconds`; it may still be.
            TransactionReplacedError: A stranger's transaction has its nonce, for good.
            ChainUnavailableError: The node is away.
        """
        return await self._wait(row, lambda now: now.status is not RowStatus.SIGNED)

    async def wait_final(self, row: Row) -> Row:
        """Wait until a row is as deep as the network's confirmations, through any reorganisation."""
        return await self._wait(row, lambda now: now.final)

    async def _wait(self, row: Row, done: Callable[[Row], bool]) -> Row:
        clock, patience = self.parts.clock, self.parts.fees.wait_seconds
        started = clock.monotonic()
        row = self.book.current(row)
        if not _over(row, done):
            async with self.watched():
                while not _over(row, done):
                    await self.monitor.wait_change()
                    row = self.book.current(row)
                    waited = clock.monotonic() - started
                    if row.status is RowStatus.SIGNED and waited > patience:
                        raise self._timeout(row, waited)
        if row.status is RowStatus.REPLACED:
            raise _replaced(row, self.wallet)
        return row

    def _timeout(self, row: Row, waited: float) -> TransactionTimeoutError:
        why = self.monitor.refusal(row)
        return TransactionTimeoutError(
            f"{row.name} (nonce {row.account_nonce}) isn't mined after {waited:.0f} s" + (f": {why}" if why else ""),
            tx_hash=row.tx_hash,
            hint="It isn't lost: look again with its hash or key",
        )

    async def receipt(self, row: Row) -> Receipt:
        """Return a mined row's receipt with logs.

        Raises:
            ContractRevertedError: It was mined and reverted; that, and the reason, are asked for again.
        """
        if row.status is RowStatus.REVERTED:
            row = await self.monitor.look_again(row)
        inclusion = row.inclusion
        if inclusion is None:
            raise ChainUnavailableError(f"{row.name} was removed from its block", hint="Wait for it again")
        if row.status is RowStatus.REVERTED:
            raise await self._reason(row)
        if row.final:
            with contextlib.suppress(ChainUnavailableError):
                await self.restored()
            if self.book.current(row).inclusion != inclusion:
                return await self.receipt(await self.wait_mined(row))
        kept = self.monitor.receipts.get(inclusion.tx_hash)
        if kept is None or str(kept.get("blockHash")).lower() != inclusion.block_hash:
            with contextlib.suppress(ZgError):
                kept = await self.parts.rpc.request("eth_getTransactionReceipt", [inclusion.tx_hash])
        if isinstance(kept, dict) and str(kept.get("blockHash")).lower() == inclusion.block_hash:
            try:
                return parse_receipt(kept)
            except RpcError:
                self.monitor.receipts.pop(inclusion.tx_hash, None)  # the next call asks again
                raise
        return receipt_of(inclusion)

    async def _reason(self, row: Row) -> ContractRevertedError:
        inclusion = row.inclusion
        number = inclusion.block_number if inclusion is not None else 0
        fields = {"from": self.wallet, "to": row.to, "data": hex0x(row.data), "value": hex(row.value)}
        asks = [Ask("eth_call", [fields, hex(at)], row.name, row.to) for at in (number, number - 1) if at >= 0]
        answers: list[Any] = []
        with contextlib.suppress(ChainError):
            answers = await self.parts.rpc.batch(asks)
        error = next((a for a in answers if isinstance(a, ContractRevertedError)), None)
        if error is None:
            ran_out = inclusion is not None and row.gas and inclusion.gas_used >= row.gas * 63 // 64
            why = "it ran out of gas" if ran_out else "the contract gave no reason"
            error = ContractRevertedError(f"{row.name} was refused: {why}", contract=row.to)
        error.tx_hash = row.tx_hash
        error.add_note(f"mined with status 0 in block {number}, nonce {row.account_nonce}")
        return error


async def open_lane(parts: LaneParts, lane: LaneId, signer: Signer) -> Lane:
    """Open a wallet's lane and send again what a crash may have left unsent."""
    opened = Lane(parts, lane, signer, await parts.outbox.open_lane(lane))
    if opened.book.open_rows():
        await opened.sweep()
    return opened


def _over(row: Row, done: Callable[[Row], bool]) -> bool:
    return row.status is RowStatus.REPLACED or done(row)


def _replaced(row: Row, wallet: Address) -> TransactionReplacedError:
    by = f"by {row.replaced_by}" if row.replaced_by is not None else "by a transaction that couldn't be found"
    return TransactionReplacedError(
        f"nonce {row.account_nonce} of {wallet}, meant for {row.name}, was used {by}",
        account_nonce=row.account_nonce,
        tx_hash=row.replaced_by,
        hint="Look at the state it left; the same call with the same key signs anew",
    )
