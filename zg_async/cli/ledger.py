"""The account's commands: the ledger, its sub-accounts, and what moves between them."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from zg_async.cli.opening import HERE, PAYING, Paying, Where, open_broker
from zg_async.cli.output import UNIT, UsageError, coins, confirm, emit, note, remaining, table
from zg_async.cli.params import Address, Amount, AnyProvider, Infer, Provider, Service, service_of
from zg_async.units import format_amount

if TYPE_CHECKING:
    from zg_async.managers.retrieving import Retrieval
    from zg_async.wire.records import (
        AccountSummary,
        Deliverable,
        FineTuningAccountDetail,
        InferenceAccountDetail,
        LedgerDetail,
        Receipt,
    )

_REQUESTED = f"Requested Return to Main Account ({UNIT})"


async def get_account(*, where: Where = HERE) -> None:
    """Show the ledger's balances and all sub-accounts.

    Args:
        where: Network, wallet and output.
    """
    async with open_broker(where) as broker:
        detail = await broker.ledger.get_ledger_with_detail()
    emit(where, "account", detail, lambda: _account_tables(detail))


async def add_account(*, amount: Amount, where: Paying = PAYING) -> None:
    """Open the ledger and put money into it.

    Args:
        amount: 0G, at least what the contract demands (3 where nothing else is set).
        where: Network, wallet and output.
    """
    async with open_broker(where) as broker:
        note(where, "Adding account...")
        receipt = await broker.ledger.add_ledger(amount)
        detail = await broker.ledger.get_ledger_with_detail()
    fields = {"transaction": receipt_fields(receipt), "account": detail}
    emit(where, "account_created", fields, lambda: ["Account Created!", *_account_tables(detail)])


async def deposit(
    *,
    amount: Amount,
    recipient: Annotated[Address | None, Parameter(name="--recipient")] = None,
    where: Paying = PAYING,
) -> None:
    """Put money into the ledger; opens it when there is none.

    Args:
        amount: 0G.
        recipient: Put it into this wallet's ledger instead of the own one.
        where: Network, wallet and output.
    """
    async with open_broker(where) as broker:
        to = broker.ledger
        receipt = await (to.deposit_fund(amount) if recipient is None else to.deposit_fund_for(recipient, amount))
    _moved(where, "deposit", "Deposited funds", amount, receipt)


async def refund(*, amount: Amount, where: Paying = PAYING) -> None:
    """Take money from the ledger back to the wallet.

    Args:
        amount: 0G. Nothing, or at least the contract's minimum, has to stay; taking all deletes the ledger.
        where: Network, wallet and output.
    """
    async with open_broker(where) as broker:
        ledger = await broker.ledger.get_ledger()
        if amount == ledger.total_balance:
            confirm(where, "This deletes the ledger with all its sub-accounts and the record of deliveries. Go on?")
        receipt = await broker.ledger.refund(amount)
    _moved(where, "refund", "Refunded amount", amount, receipt)


async def transfer_fund(
    *, provider: Provider, amount: Amount, service: Service = None, infer: Infer = False, where: Paying = PAYING
) -> None:
    """Move money from the ledger to the sub-account at a provider; opens it and acknowledges the TEE signer.

    Args:
        provider: The provider's address.
        amount: 0G.
        service: fine-tuning or inference.
        infer: The same as --service inference.
        where: Network, wallet and output.
    """
    kind = service_of(service, infer=infer)
    if kind is None:
        raise UsageError("--service is missing: give --service fine-tuning or --service inference")
    async with open_broker(where) as broker:
        note(where, f"Transferring {format_amount(amount)} to {provider} for {kind}...")
        receipt = await broker.ledger.transfer_fund(provider, kind, amount)
    _moved(where, "transfer", f"Transferred to {provider} for {kind}", amount, receipt)


async def retrieve_fund(
    *,
    service: Service = None,
    provider: AnyProvider = None,
    infer: Infer = False,
    wait: bool = False,
    where: Paying = PAYING,
) -> None:
    """Ask for the money of sub-accounts back; once the lock time is over, a second call moves it to the ledger.

    Args:
        service: Only sub-accounts of this service type: fine-tuning or inference. Default: both.
        provider: Only the sub-account at this provider.
        infer: The same as --service inference.
        wait: Stay until the lock time is over, and collect everything.
        where: Network, wallet and output.
    """
    providers = None if provider is None else [provider]
    async with open_broker(where) as broker:
        if wait:
            note(where, "Waiting until everything is collected; Ctrl-C is harmless, a later call goes on from there")
        done = await broker.ledger.retrieve_all(
            wait=wait, service_type=service_of(service, infer=infer), providers=providers
        )
    left = None if done.next_unlock is None or done.as_of is None else done.next_unlock - done.as_of
    fields = {
        "transactions": [receipt_fields(receipt) for receipt in done.receipts],
        "left": done.left,
        "locked": done.locked,
        "next_unlock": done.next_unlock,
        "remaining_seconds": left,
    }
    emit(where, "retrieval", fields, lambda: _retrieval_lines(done))


async def get_sub_account(
    *, provider: Provider, service: Service = None, infer: Infer = False, where: Where = HERE
) -> None:
    """Show the sub-account at a provider: balance, refunds on their way back, deliveries.

    Args:
        provider: The provider's address.
        service: fine-tuning (default) or inference.
        infer: The same as --service inference.
        where: Network, wallet and output.
    """
    kind = service_of(service, infer=infer) or "fine-tuning"
    detail: FineTuningAccountDetail | InferenceAccountDetail
    async with open_broker(where) as broker:
        manager = broker.fine_tuning if kind == "fine-tuning" else broker.inference
        detail = await manager.get_account_with_detail(provider)
    refunds = [
        {"index": r.index, "amount": r.amount, "created_at": r.created_at, "unlocks_at": r.unlocks_at}
        | {"remaining_seconds": r.remaining(detail.as_of)}
        for r in detail.refunds
    ]
    fields = {"service": kind, "account": detail.account, "refunds": refunds, "lock_time": detail.lock_time}
    emit(where, "sub_account", {**fields, "as_of": detail.as_of}, lambda: _sub_account_tables(detail))


# --- what they share --------------------------------------------------------------------------------------------------


def receipt_fields(receipt: "Receipt") -> dict[str, Any]:
    """Return what scripts want to know of a transaction."""
    return {
        "tx_hash": receipt.tx_hash,
        "block_number": receipt.block_number,
        "gas_used": receipt.gas_used,
        "gas_cost": receipt.gas_cost,
    }


def _moved(where: Where, kind: str, text: str, amount: int, receipt: "Receipt") -> None:
    fields = {"amount": amount, "transaction": receipt_fields(receipt)}
    emit(where, kind, fields, lambda: f"{text}: {format_amount(amount)}")
    note(where, f"transaction {receipt.tx_hash}, gas {format_amount(receipt.gas_cost)}")


def _account_tables(detail: "LedgerDetail") -> Iterable[str]:
    ledger = detail.ledger
    rows = [
        ("Total", coins(ledger.total_balance)),
        ("Locked (transferred to sub-accounts)", coins(ledger.locked_balance)),
        ("Available", coins(ledger.available_balance)),
    ]
    yield table(rows, ("Balance", f"Value ({UNIT})"), title="Overview")
    for name, accounts in (("Inference", detail.inference), ("Fine-tuning", detail.fine_tuning)):
        if accounts:
            yield table(
                _summary_rows(accounts),
                ("Provider", f"Balance ({UNIT})", _REQUESTED),
                title=f"{name} sub-accounts (Dynamically Created per Used Provider)",
            )


def _summary_rows(accounts: "Sequence[AccountSummary]") -> list[tuple[str, str, str]]:
    return [(a.provider, coins(a.balance), coins(a.pending_refund)) for a in accounts]


def _sub_account_tables(detail: "FineTuningAccountDetail | InferenceAccountDetail") -> Iterable[str]:
    account = detail.account
    rows = [
        ("Provider", account.provider),
        (f"Balance ({UNIT})", coins(account.balance)),
        (f"Funds Applied for Return to Main Account ({UNIT})", coins(account.pending_refund)),
    ]
    yield table(rows, ("Field", "Value"), title="Overview")
    if detail.refunds:
        yield table(
            [(coins(r.amount), remaining(r.remaining(detail.as_of))) for r in detail.refunds],
            (f"Amount ({UNIT})", "Remaining Locked Time"),
            title="Details of Each Amount Applied for Return to Main Account",
        )
    deliverables: Sequence[Deliverable] = getattr(account, "deliverables", ())
    if deliverables:
        yield table(
            [(_root(d.model_root_hash), "✓" if d.acknowledged else "", d.id) for d in deliverables],
            ("Root Hash", "Access Confirmed", "ID"),
            title="Deliverables",
        )


def _root(raw: bytes) -> str:
    """Write a root hash: 32 bytes as hex, older providers' lists as the text they are."""
    return "0x" + raw.hex() if len(raw) == 32 else raw.decode("utf-8", "replace")


def _retrieval_lines(done: "Retrieval") -> Iterable[str]:
    count = len(done.receipts)
    yield f"{count} transaction{'s' if count != 1 else ''} sent" if count else "nothing to ask for or to collect now"
    for provider, reason in done.left.items():
        yield f"left at {provider}: {reason}"
    if done.next_unlock is not None and done.as_of is not None:
        yield (
            f"{format_amount(done.locked)} locked; the first part unlocks in "
            f"{remaining(done.next_unlock - done.as_of)}: call retrieve-fund again then"
        )
