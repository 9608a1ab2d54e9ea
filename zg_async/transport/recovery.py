"""Transactions of a wallet that its outbox doesn't hold: finding them on the chain, and accounting for a loss.

The rule after a loss: every nonce that may have been signed is accounted for before anything else is signed. Mined ones
are looked up and kept as "found", by what they did, so that the key whose effect it was takes it as its own instead of
paying again. Nonces that the head file knows but the chain hasn't used are closed with transfers of nothing to the
wallet itself: whichever of the two is mined, the nonce is settled, and a lost transaction that wins is found like the
others. What can't be found stops the lane with `JournalError`; `Chain.accept_loss` is the user's word that it is known.
"""

from typing import TYPE_CHECKING, Final

from zg_async.errors import ChainError, ChainUnavailableError, JournalError
from zg_async.logs import get_logger
from zg_async.transport.budget import FILLER
from zg_async.transport.fees import choose_fees
from zg_async.transport.heads import parse_block
from zg_async.transport.quotes import check_money
from zg_async.transport.receipts import parse_found
from zg_async.transport.rows import Entry, Found, Money, found_entry, signed_entry
from zg_async.transport.rpc import Ask, Rpc, quantity
from zg_async.transport.transaction import Transaction
from zg_async.wire.records import Address

if TYPE_CHECKING:
    from zg_async.transport.lane import Lane

_log = get_logger("zg_async.chain")
_MOST_STRICT: Final = 256
_MOST_CASUAL: Final = 16
_FILLER_GAS: Final = 21_000
_DAY: Final = 86_400.0


async def locate(rpc: Rpc, wallet: Address, account_nonce: int) -> Found | None:
    """Find the mined transaction with a nonce, by bisecting the wallet's transaction count.

    Args:
        rpc: The node; it needs the state of old blocks unless the transaction is recent.
        wallet: The sender.
        account_nonce: Its nonce.

    Returns:
        The transaction, or None: not mined, or the node can't tell.

    Raises:
        ChainUnavailableError: It didn't answer, which tells nothing.
    """
    try:
        high = quantity(await rpc.request("eth_blockNumber"))
        if await _count(rpc, wallet, high) <= account_nonce:
            return None
        step, low = 1, high
        while low > 0 and await _count(rpc, wallet, low) > account_nonce:
            high, low, step = low, max(low - step, 0), step * 2
        while high - low > 1:
            middle = (low + high) // 2
            if await _count(rpc, wallet, middle) > account_nonce:
                high = middle
            else:
                low = middle
        block = await rpc.request("eth_getBlockByNumber", [hex(high), True])
        for item in (block or {}).get("transactions") or ():
            if str(item.get("from", "")).lower() == wallet.lower() and quantity(item["nonce"]) == account_nonce:
                return parse_found(item)
    except ChainUnavailableError:
        raise
    except (ChainError, AttributeError, KeyError) as error:
        _log.info("nonce %d of %s can't be looked up: %s", account_nonce, wallet, error)
    return None


async def _count(rpc: Rpc, wallet: Address, block: int) -> int:
    return quantity(await rpc.request("eth_getTransactionCount", [wallet, hex(block)]))


async def find_missing(lane: "Lane", latest: int) -> None:
    """Look up the newest transactions that others made with this key, as far as the node can tell.

    Args:
        lane: The wallet's lane.
        latest: The chain's next nonce.

    Raises:
        ChainUnavailableError: The node is away.
    """
    first = max(lane.book.next_nonce, latest - _MOST_CASUAL)
    _log.warning(
        "%s has used nonces up to %d elsewhere, the outbox knows them up to %d: does another program use this key?",
        lane.wallet,
        latest - 1,
        lane.book.next_nonce - 1,
    )
    entries = [found_entry(f) for n in range(first, latest) if (f := await locate(lane.parts.rpc, lane.wallet, n))]
    if not entries or entries[-1]["nonce"] != latest - 1:
        return
    await lane.parts.outbox.append(lane.id, entries)


async def reconcile(lane: "Lane") -> None:
    """Account for every nonce that a lost part of the outbox may have signed, then let the lane sign again.

    Raises:
        JournalError: One of them can't be accounted for. Nothing was signed.
        ChainUnavailableError: The node is away.
    """
    loss, rpc = lane.book.loss, lane.parts.rpc
    if loss is None:
        return
    latest = quantity(await rpc.request("eth_getTransactionCount", [lane.wallet, "latest"]))
    await _take_in(lane, latest)
    fillers = range(max(lane.book.next_nonce, latest), loss.next_nonce or 0)
    for account_nonce in fillers:
        await fill(lane, account_nonce)
    if lane.book.open_rows():
        await lane.sweep()
        async with lane.watched():
            while lane.book.open_rows():
                await lane.monitor.wait_change()
    latest = quantity(await rpc.request("eth_getTransactionCount", [lane.wallet, "latest"]))
    await _take_in(lane, latest)
    await lane.parts.outbox.append(lane.id, [{"kind": "reconciled", "nonce": latest}])
    _log.warning("the outbox lane of %s is reconciled with the chain up to nonce %d", lane.wallet, latest)


async def _take_in(lane: "Lane", latest: int) -> None:
    missing = range(lane.book.next_nonce, latest)
    if len(missing) > _MOST_STRICT:
        raise _unaccounted(lane, f"{len(missing)} transactions, from nonce {missing[0]}, would have to be looked up")
    entries: list[Entry] = []
    for account_nonce in missing:
        found = await locate(lane.parts.rpc, lane.wallet, account_nonce)
        if found is None:
            raise _unaccounted(lane, f"the transaction with nonce {account_nonce} can't be found on the chain")
        entries.append(found_entry(found))
    if entries:
        await lane.parts.outbox.append(lane.id, entries)


async def fill(lane: "Lane", account_nonce: int) -> None:
    """Sign and record a transfer of nothing to the wallet itself, which uses a nonce up; sending it is the caller's.

    It obeys the same caps as everything else, and leaves a nonce alone that any recorded transaction has.

    Raises:
        FeeCapError: Gas costs more than a cap.
        LimitError: Its gas would break a limit.
        InsufficientGasFundsError: The wallet can't pay it beside what isn't mined yet.
        ChainError: The node is away.
    """
    parts = lane.parts
    book = await parts.outbox.refresh(lane.id)
    if not book.is_free(account_nonce):
        return
    asks = [
        Ask("eth_getBlockByNumber", ["latest", False]),
        Ask("eth_gasPrice"),
        Ask("eth_getBalance", [lane.wallet, "latest"]),
        Ask("eth_maxPriorityFeePerGas"),
    ]
    block, price, balance, tip = answers = await parts.rpc.batch(asks)
    for answer in answers[:3]:
        if isinstance(answer, ChainError):
            raise answer
    fees = choose_fees(
        parts.fees,
        base_fee=parse_block(block).base_fee,
        gas_price=quantity(price),
        tip=None if isinstance(tip, ChainError) else quantity(tip),
    )
    check_money(
        parts.fees,
        lane.wallet,
        value=0,
        gas=_FILLER_GAS,
        fees=fees,
        balance=quantity(balance),
        open_cost=sum(row.reserved for row in book.open_rows()),
        gas_today=book.spent(parts.watcher.time.earliest() - _DAY)[1],
    )
    transaction = Transaction(
        chain_id=lane.id.chain_id,
        account_nonce=account_nonce,
        to=lane.wallet,
        data=b"",
        value=0,
        gas=_FILLER_GAS,
        max_fee_per_gas=fees.max_fee_per_gas,
        max_priority_fee_per_gas=fees.max_priority_fee_per_gas,
    )
    key = f"{FILLER}/{account_nonce}/{book.height}"
    with parts.budget.hold(key, Money(gone=transaction.max_cost), lane.wallet):
        entry = signed_entry(
            transaction,
            await lane.signed(transaction),
            key=key,
            attempt=1,
            name="transfer of nothing",
            at=parts.watcher.time.unix(),
            filler=True,
        )
        await parts.outbox.append(lane.id, [entry])


def _unaccounted(lane: "Lane", why: str) -> JournalError:
    reason = lane.book.loss.reason if lane.book.loss is not None else "lost"
    return JournalError(
        f"a part of the outbox of {lane.wallet} is lost ({reason}), and {why}",
        hint="Nothing was signed. Check the wallet's last transactions in an explorer, then call chain.accept_loss",
    )
