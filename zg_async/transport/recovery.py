"""Transactions of a wallet that its outbox doesn't hold: finding them on the chain, and accounting for a loss.

The rule after a loss: every nonce that may have been signed is accounted for before anything else is signed. Mined ones
are looked up and kept as "found", by what they did, so that the key whose effect it was takes it as its own instead of
paying again. Nonces that the head file knows but the chain hasn't used are closed with transfers of nothing to the
wallet itself: whichever of the two is mined, the nonce is settled, and a lost transaction that wins is found like the
others. What can't be found stops the lane with `JournalError`; `Chain.accept_loss` is the user's word that it is known.
"""

from typing import TYPE_CHECKING, Any, Final

from zg_async.errors import ChainError, JournalError
from zg_async.logs import get_logger
from zg_async.transport.fees import choose_fees
from zg_async.transport.heads import parse_block
from zg_async.transport.receipts import parse_found
from zg_async.transport.rows import Entry, Found, found_entry, signed_entry
from zg_async.transport.rpc import Ask, Rpc, quantity
from zg_async.transport.transaction import Transaction
from zg_async.wire.records import Address

if TYPE_CHECKING:
    from zg_async.transport.lane import Lane

_log = get_logger("zg_async.chain")
_MOST_STRICT: Final = 256
_MOST_CASUAL: Final = 16
_FILLER_GAS: Final = 21_000


async def locate(rpc: Rpc, wallet: Address, account_nonce: int) -> Found | None:
    """Find the mined transaction with a nonce, by bisecting the wallet's transaction count.

    Args:
        rpc: The node; it needs the state of old blocks unless the transaction is recent.
        wallet: The sender.
        account_nonce: Its nonce.

    Returns:
        The transaction, or None: not mined, or the node can't tell.
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
    """Sign a transfer of nothing to the wallet itself, which uses a nonce up; sending it is the caller's.

    Raises:
        ChainError: The node is away, or gas costs more than the cap.
    """
    parts = lane.parts
    answers: list[Any] = await parts.rpc.batch(
        [Ask("eth_getBlockByNumber", ["latest", False]), Ask("eth_gasPrice"), Ask("eth_maxPriorityFeePerGas")]
    )
    for answer in answers[:2]:
        if isinstance(answer, ChainError):
            raise answer
    tip = None if isinstance(answers[2], ChainError) else quantity(answers[2])
    fees = choose_fees(parts.fees, base_fee=parse_block(answers[0]).base_fee, gas_price=quantity(answers[1]), tip=tip)
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
    signed = await lane.signed(transaction)
    entry = signed_entry(
        transaction,
        signed,
        key=f"filler/{account_nonce}/{lane.book.height}",
        attempt=1,
        name="transfer of nothing",
        at=parts.clock.now(),
        filler=True,
    )
    await parts.outbox.append(lane.id, [entry])


def _unaccounted(lane: "Lane", why: str) -> JournalError:
    reason = lane.book.loss.reason if lane.book.loss is not None else "lost"
    return JournalError(
        f"a part of the outbox of {lane.wallet} is lost ({reason}), and {why}",
        hint="Nothing was signed. Check the wallet's last transactions in an explorer, then call chain.accept_loss",
    )
