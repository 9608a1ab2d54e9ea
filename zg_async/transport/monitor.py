"""What becomes of a lane's transactions: mined, moved, dropped, stuck, overtaken. One look per round of the watcher.

None of a node's words decides; receipts of our own hashes do. A hash may be mined in any of its versions. A receipt
that vanishes, while newer blocks come, sends the row back to "signed", and its bytes are sent again. A final row is
looked at again when another block has taken the place of the newest one's: a reorganisation deeper than the network's
confirmations. A nonce that the chain has used without a receipt of ours is a stranger's: only when that transaction is
found, as deep as the network's confirmations, or (where the node can't show it, and the row was never final) when as
many blocks have passed, is the row replaced.
"""

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import anyio

from zg_async.correlation import correlated
from zg_async.errors import ChainError, FeeCapError, InsufficientGasFundsError, LimitError, RpcError, ZgError
from zg_async.logs import get_logger
from zg_async.transport.budget import group_of
from zg_async.transport.fees import Fees, bump
from zg_async.transport.heads import Block
from zg_async.transport.quotes import MOST_AHEAD
from zg_async.transport.receipts import parse_inclusion
from zg_async.transport.recovery import fill, locate
from zg_async.transport.rows import (
    Entry,
    Found,
    Inclusion,
    Money,
    Row,
    found_entry,
    mark_entry,
    mined_entry,
    version_entry,
)
from zg_async.transport.rpc import Ask, quantity
from zg_async.transport.rpc_errors import SendFault
from zg_async.transport.transaction import Transaction

if TYPE_CHECKING:
    from zg_async.transport.lane import Lane

_log = get_logger("zg_async.chain")
_MOST_ROWS: Final = 64
_MISSES: Final = 2
_LEAST_BLOCKS: Final = 3
_MOST_FILLERS: Final = 16
LOOKUP_PAUSE: Final = 1.0
_NEVER: Final = -1e9
Place = tuple[str, int]


class _Care:
    """What this process remembers about an unsettled row."""

    def __init__(self, now: float, head: int) -> None:
        self.sent_at = now
        """When the newest bytes were last sent."""
        self.bumped_at = now
        self.bumped_head = head
        self.consumed_head: int | None = None
        self.looked_up = _NEVER
        self.checked_head = -1
        self.missing_head = -1
        self.misses = 0
        self.bump_now = False
        self.refusal: str | None = None


class Monitor:
    """A lane's part in the watcher's rounds."""

    def __init__(self, lane: "Lane") -> None:
        """Watch a lane; nothing happens before the watcher asks."""
        self._lane = lane
        self._cares: dict[Place, _Care] = {}
        self._asked: list[tuple[str, Row | None, str]] = []
        self._change = anyio.Event()
        self._error: ZgError | None = None
        self._gap: tuple[int, float] | None = None
        """The nonce the chain is at, while our transactions begin further on, and since when."""
        self._dug_head = -1
        self._buried: tuple[frozenset[Place], float] = frozenset(), _NEVER
        """Final rows whose receipts were missing at the last look, and when that was."""
        self.receipts: dict[str, dict[str, Any]] = {}
        """The newest receipts with logs, by hash."""

    async def wait_change(self) -> None:
        """Wait for the next round.

        Raises:
            ZgError: What went wrong in it: the node is away, or the outbox can't record.
        """
        await self._change.wait()
        if self._error is not None:
            raise self._error.again()

    def was_sent(self, row: Row) -> None:
        """Note that a row's bytes were just sent."""
        self._care(row).sent_at = self._now()

    def refused(self, row: Row, fault: SendFault, error: ChainError) -> None:
        """Note a node's words about a row."""
        care = self._care(row)
        care.refusal = error.message
        care.bump_now = care.bump_now or fault is SendFault.FEES_LOW

    def refusal(self, row: Row) -> str | None:
        """Return the node's last words about a row."""
        return self._care(row).refusal

    # --- a round -----------------------------------------------------------------------------------------------------

    def asks(self) -> Sequence[Ask]:
        """Ask for the receipts of all hashes, and for more where something seems wrong."""
        book, now = self._lane.book, self._now()
        asked: list[tuple[str, Row | None, str]] = []
        open_rows = book.open_rows()[:_MOST_ROWS]
        for row in open_rows:
            asked += [("receipt", row, tx_hash) for tx_hash in row.hashes]
            if now - self._care(row).sent_at > self._lane.parts.fees.resend_after:
                asked.append(("pool", row, row.hashes[-1]))
        if open_rows:
            asked.append(("count", None, ""))
        if self._dug_head != self._head_number() and (final := book.final_rows()):
            self._dug_head = self._head_number()
            asked.append(("block", final[-1], ""))
        for row in book.unsettled()[:_MOST_ROWS]:
            if row.inclusion is not None and self._care(row).checked_head != self._head_number():
                asked.append(("again", row, row.inclusion.tx_hash))
        self._asked = asked
        return [self._ask(kind, row, tx_hash) for kind, row, tx_hash in asked]

    def _ask(self, kind: str, row: Row | None, tx_hash: str) -> Ask:
        if kind == "block" and row is not None:
            return _header(row)
        if kind == "count":
            return Ask("eth_getTransactionCount", [self._lane.wallet, "latest"])
        return Ask("eth_getTransactionByHash" if kind == "pool" else "eth_getTransactionReceipt", [tx_hash])

    async def answered(self, head: Block, answers: Sequence[Any]) -> None:
        """Draw the conclusions and tell those who wait."""
        try:
            await self._conclude(head, answers)
        except ZgError as error:
            _log.warning("%s: %s", self._lane.wallet, error)
            self._tell(error)
        else:
            self._tell(None)

    def failed(self, error: ZgError) -> None:
        """Tell those who wait that the node is away."""
        self._tell(error)

    def _tell(self, error: ZgError | None) -> None:
        self._error = error
        self._change.set()
        self._change = anyio.Event()

    async def _conclude(self, head: Block, answers: Sequence[Any]) -> None:
        entries: list[Entry] = []
        mined: set[Place] = set()
        lost: list[Row] = []
        used: int | None = None
        is_deep = False
        for (kind, row, _), answer in zip(self._asked, answers, strict=True):
            if isinstance(answer, ChainError):
                continue
            if row is None:
                used = quantity(answer)
            elif kind == "pool":
                if answer is None:
                    lost.append(row)
            elif kind == "block":
                is_deep = not _is_block_of(row, answer)
            elif kind == "again":
                entries += self._recheck(row, answer, head)
            elif (inclusion := self._included(answer, head)) is not None and _place(row) not in mined:
                mined.add(_place(row))
                entries.append(mined_entry(row, inclusion, at=self._lane.parts.clock.now()))
        if entries and await self._lane.parts.outbox.append(self._lane.id, await self._with_balances(entries)):
            self._count(entries)
            self._forget()
        if is_deep or self._buried[0] or (used is not None and used < self._lane.book.final_count()):
            await self.dig()
        open_rows = [row for row in self._lane.book.open_rows() if _place(row) not in mined]
        await self._care_for(open_rows, lost, used, head)

    def _count(self, entries: Sequence[Entry]) -> None:
        metrics = self._lane.parts.metrics
        for entry in entries:
            if entry["kind"] == "mined":
                metrics.count("transactions" if entry["status"] == 1 else "transactions.reverted")
                metrics.count("fees.gas", entry["gas_used"] * int(entry["gas_price"]))

    async def _with_balances(self, entries: Sequence[Entry]) -> Sequence[Entry]:
        """Add for the audit log the wallet's balance in the block before and in its own, if the node can tell."""
        if self._lane.parts.outbox.audit_path(self._lane.id) is None:
            return entries
        blocks = {
            number for e in entries if e["kind"] == "mined" for number in (e["block_number"] - 1, e["block_number"])
        }
        if not blocks:
            return entries
        asked = sorted(blocks)
        asks = [Ask("eth_getBalance", [self._lane.wallet, hex(number)]) for number in asked]
        answers: Sequence[Any] = ()
        with contextlib.suppress(ChainError):
            answers = await self._lane.parts.rpc.batch(asks, retries=False)
        known = dict(zip(asked, answers, strict=False))
        return [_with_balances(entry, known) if entry["kind"] == "mined" else entry for entry in entries]

    def _included(self, answer: Any, head: Block | None = None) -> Inclusion | None:
        """Read a receipt; one of a block beyond the newest isn't believed: another back-end may know it, or none."""
        if not isinstance(answer, dict) or not answer.get("blockHash"):
            return None
        inclusion = parse_inclusion(answer)
        if head is not None and inclusion.block_number > head.number:
            return None
        if len(self.receipts) >= 4 * _MOST_ROWS:
            self.receipts.pop(next(iter(self.receipts)))
        self.receipts[inclusion.tx_hash] = answer
        return inclusion

    async def look_again(self, row: Row) -> Row:
        """Ask once more how a mined row ended: who repeats an effect for a wrong word pays it twice."""
        tx_hash = row.inclusion.tx_hash if row.inclusion is not None else row.tx_hash
        with contextlib.suppress(ChainError):
            answer = await self._lane.parts.rpc.request("eth_getTransactionReceipt", [tx_hash])
            inclusion = self._included(answer, self._lane.parts.watcher.head)
            if inclusion is not None and inclusion != row.inclusion:
                _log.warning("the node told %s's end in two ways, the later counts", tx_hash)
                entry = mined_entry(row, inclusion, at=self._lane.parts.clock.now())
                await self._lane.parts.outbox.append(self._lane.id, [entry])
        return self._lane.book.current(row)

    def _recheck(self, row: Row, answer: Any, head: Block) -> list[Entry]:
        """Compare a mined row with the chain of now."""
        care, old = self._care(row), row.inclusion
        if old is None or self._lane.book.current(row) != row:
            return []
        care.checked_head = head.number
        inclusion = self._included(answer, head)
        if inclusion is None:
            if head.number == care.missing_head:
                return []
            care.missing_head, care.misses = head.number, care.misses + 1
            if care.misses < _MISSES and head.number >= old.block_number:
                care.checked_head = -1
                return []
            with correlated(job_id=group_of(row.key)):
                _log.warning("%s was removed from block %d", row.tx_hash, old.block_number)
            care.misses, care.sent_at = 0, 2 * _NEVER
            return [mark_entry("unmined", row)]
        care.misses = 0
        if (inclusion.block_hash, inclusion.status) != (old.block_hash, old.status):
            return [mined_entry(row, inclusion, at=self._lane.parts.clock.now())]
        if head.number - inclusion.block_number + 1 >= self._lane.parts.confirmations:
            return [mark_entry("final", row)]
        return []

    async def dig(self) -> bool:
        """Look whether final rows are in their blocks yet. What the chain has lost is taken back and sent again.

        Returns:
            Whether some seem lost: look again after `LOOKUP_PAUSE` seconds. One look is too few, as a node may lag.

        Raises:
            ChainError: The node is away.
        """
        rows = self._lane.book.final_rows()[-_MOST_ROWS:]
        before, at = self._buried
        if not rows or (before and self._now() - at < LOOKUP_PAUSE):
            return bool(rows)
        moved, lost = await self._unearth(rows)
        again = [row for row in lost if _place(row) in before]
        self._buried = frozenset(map(_place, lost)), self._now()
        if not moved and not again:
            return bool(lost)
        entries = [*moved, *(mark_entry("unmined", row, deep=True) for row in again)]
        if await self._lane.parts.outbox.append(self._lane.id, await self._with_balances(entries)):
            for row in again:
                with correlated(job_id=group_of(row.key)):
                    _log.error("%s (nonce %d) was final and is gone: sending it again", row.tx_hash, row.account_nonce)
        self._buried = frozenset(), _NEVER
        await self._lane.sweep()
        return True  # there may be more

    async def _unearth(self, rows: Sequence[Row]) -> tuple[list[Entry], list[Row]]:
        """Compare final rows, the newest first, with the chain, down to one that is in its block yet."""
        rpc, wallet = self._lane.parts.rpc, self._lane.wallet
        if await self._is_in_place(rows[-1]):
            return [], []
        asks = [Ask("eth_getTransactionCount", [wallet, "latest"])]
        for row in rows:
            asks += [_header(row), *(Ask("eth_getTransactionReceipt", [tx_hash]) for tx_hash in row.hashes)]
        told = iter(await rpc.batch(asks, retries=False))
        count, sound = _answer(next(told)), -1
        moved: dict[int, Entry] = {}
        lost: dict[int, Row] = {}
        for index, row in enumerate(rows):
            block, *receipts = (_answer(next(told)) for _ in range(1 + len(row.hashes)))
            found = next((place for one in receipts if (place := self._included(one)) is not None), None)
            if _is_block_of(row, block):
                sound = index
            elif found is not None:
                moved[index] = {**mined_entry(row, found, at=self._lane.parts.clock.now()), "deep": True}
            elif block is not None or quantity(count) <= row.account_nonce:
                lost[index] = row
        return [e for i, e in moved.items() if i > sound], [row for i, row in lost.items() if i > sound]

    async def _is_in_place(self, row: Row) -> bool:
        ask = _header(row)
        return _is_block_of(row, await self._lane.parts.rpc.request(ask.method, ask.params))

    # --- rows that aren't mined --------------------------------------------------------------------------------------

    async def _care_for(self, rows: Sequence[Row], lost: Sequence[Row], used: int | None, head: Block) -> None:
        lost_places = {_place(row) for row in lost}
        first = True
        for row in rows:
            with correlated(job_id=group_of(row.key)):
                if used is not None and used > row.account_nonce:
                    await self._overtaken(row, head)
                    continue
                if used is not None:
                    self._care(row).consumed_head = None  # a reorganisation gave the nonce back
                bumped = first and await self._maybe_bump(row, head)
                first = False
                if not bumped and (_place(row) in lost_places or self._care(row).sent_at < _NEVER):
                    await self._resend(row)
        if rows and used is not None:
            await self._close_gap(used, rows[0])

    async def _close_gap(self, used: int, row: Row) -> None:
        """Free the oldest transaction: nonces before it that nobody uses keep it from being mined, for ever.

        A node that counted wrong once leaves such a gap. It is filled with transfers of nothing to the wallet itself,
        after a while and only if the pool holds nothing there: it may be another program's.
        """
        if used >= row.account_nonce:
            self._gap = None
            return
        if self._gap is None or self._gap[0] != used:
            self._gap = (used, self._now())
        if self._now() - self._gap[1] <= self._lane.parts.fees.bump_after:
            return
        self._gap = (used, self._now())
        rpc = self._lane.parts.rpc
        if row.account_nonce - used > MOST_AHEAD:
            self._care(row).refusal = f"the chain is at nonce {used}, too far behind to be filled up"
            return
        if quantity(await rpc.request("eth_getTransactionCount", [self._lane.wallet, "pending"])) != used:
            return
        missing = range(used, min(row.account_nonce, used + _MOST_FILLERS))
        _log.warning("nonces %d to %d of %s are used by nobody: closing the gap", used, missing[-1], self._lane.wallet)
        try:
            for account_nonce in missing:
                await fill(self._lane, account_nonce)
        except (FeeCapError, LimitError, InsufficientGasFundsError) as error:
            self._care(row).refusal = f"nonce {used}, before it, is used by nobody and can't be closed: {error.message}"
        await self._lane.sweep()

    async def _resend(self, row: Row) -> None:
        if not row.versions[-1].raw:
            return
        _log.info("%s (nonce %d): sending its bytes again", row.name, row.account_nonce)
        try:
            await self._lane.send(row)
        except ChainError as error:
            self._care(row).refusal = error.message
        self.was_sent(row)

    async def _maybe_bump(self, row: Row, head: Block) -> bool:
        """Raise the fees of the lane's oldest transaction, if it has waited long enough or was refused for them."""
        care, parts = self._care(row), self._lane.parts
        waited = self._now() - care.bumped_at > parts.fees.bump_after and head.number - care.bumped_head >= 2
        if not row.versions[-1].raw or not (waited or care.bump_now):
            return False
        care.bump_now, care.bumped_at, care.bumped_head = False, self._now(), head.number
        last = row.versions[-1]
        old = Fees(max_fee_per_gas=last.max_fee_per_gas, max_priority_fee_per_gas=last.max_priority_fee_per_gas)
        wanted = Fees(
            max_fee_per_gas=2 * (head.base_fee or 0) + old.max_priority_fee_per_gas,
            max_priority_fee_per_gas=old.max_priority_fee_per_gas,
        )
        fees = bump(parts.fees, old, wanted)
        if fees is None:
            care.refusal = f"its fee is at the cap of {parts.fees.max_fee_per_gas} neuron per gas"
            return False
        transaction = Transaction(
            chain_id=self._lane.id.chain_id,
            account_nonce=row.account_nonce,
            to=row.to,
            data=row.data,
            value=row.value,
            gas=row.gas,
            max_fee_per_gas=fees.max_fee_per_gas,
            max_priority_fee_per_gas=fees.max_priority_fee_per_gas,
        )
        more = row.gas * (fees.max_fee_per_gas - max(version.max_fee_per_gas for version in row.versions))
        try:
            with parts.budget.hold(row.key, Money(gone=max(more, 0)), self._lane.wallet):
                signed = await self._lane.signed(transaction)
                entry = version_entry(row, transaction, signed, at=parts.watcher.time.unix())
                is_new = await parts.outbox.append(self._lane.id, [entry])
        except LimitError as error:
            care.refusal = error.message
            return False
        if is_new:
            _log.info("%s (nonce %d): fee raised to %d", row.name, row.account_nonce, fees.max_fee_per_gas)
            await self._resend(self._lane.book.current(row))
        return True

    async def _overtaken(self, row: Row, head: Block) -> None:
        """The chain has used this nonce, and none of our hashes has a receipt."""
        care, parts = self._care(row), self._lane.parts
        if care.consumed_head is None:
            care.consumed_head = head.number
            care.looked_up = self._now() if head.number else care.looked_up
            return
        if self._now() - care.looked_up < LOOKUP_PAUSE:
            return
        care.looked_up = self._now()
        found = await locate(parts.rpc, self._lane.wallet, row.account_nonce)
        if found is not None and found.tx_hash in row.hashes:
            return  # ours after all: its receipt will come
        if found is not None:
            if head.number - found.block_number + 1 < parts.confirmations:
                return
            await self._overtaken_by(row, found)
        elif row.was_final:  # its key paid already: a node's silence doesn't make it pay again
            care.refusal = f"nonce {row.account_nonce} was used by a transaction that the node can't show"
        elif head.number - care.consumed_head >= max(parts.confirmations, _LEAST_BLOCKS):
            _log.error("nonce %d of %s was used by an unknown transaction", row.account_nonce, self._lane.wallet)
            await parts.outbox.append(self._lane.id, [mark_entry("replaced", row, by=None)])

    async def _overtaken_by(self, row: Row, found: Found) -> None:
        lane = self._lane
        if found.intent == row.intent:  # the same effect, signed with our key by a lost part of the outbox
            answer = await lane.parts.rpc.request("eth_getTransactionReceipt", [found.tx_hash])
            if (inclusion := self._included(answer)) is not None:
                entry = mined_entry(row, inclusion, at=lane.parts.clock.now())
                await lane.parts.outbox.append(lane.id, await self._with_balances([entry]))
            return
        _log.error("nonce %d of %s was used by %s, not by %s", row.account_nonce, lane.wallet, found.tx_hash, row.name)
        await lane.parts.outbox.append(lane.id, [mark_entry("replaced", row, by=found.tx_hash), found_entry(found)])

    # --- memory ------------------------------------------------------------------------------------------------------

    def _care(self, row: Row) -> _Care:
        care = self._cares.get(_place(row))
        if care is None:
            care = self._cares[_place(row)] = _Care(self._now(), self._head_number())
        return care

    def _forget(self) -> None:
        alive = {_place(row) for row in self._lane.book.unsettled()}
        for place in [place for place in self._cares if place not in alive]:
            del self._cares[place]

    def _now(self) -> float:
        return self._lane.parts.clock.monotonic()

    def _head_number(self) -> int:
        head = self._lane.parts.watcher.head
        return head.number if head is not None else 0


def _with_balances(entry: Entry, known: Mapping[int, Any]) -> Entry:
    before, after = (known.get(number) for number in (entry["block_number"] - 1, entry["block_number"]))
    try:
        return {**entry, "balance_before": str(quantity(before)), "balance_after": str(quantity(after))}
    except RpcError:  # a node without the state of that block
        return entry


def _header(row: Row) -> Ask:
    return Ask("eth_getBlockByNumber", [hex(row.inclusion.block_number if row.inclusion is not None else 0), False])


def _is_block_of(row: Row, block: Any) -> bool:
    told = str(block.get("hash")).lower() if isinstance(block, dict) else None
    return row.inclusion is not None and told == row.inclusion.block_hash


def _answer(answer: Any) -> Any:
    if isinstance(answer, ChainError):
        raise answer
    return answer


def _place(row: Row) -> Place:
    return row.key, row.attempt
