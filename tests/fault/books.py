"""Compares what a wallet's own records say with what is on the chain, to the neuron."""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import aiohttp

from zg_async.devnet.chain_client import ChainClient, HttpRpc, parse_log
from zg_async.errors import AccountNotFoundError, LedgerNotFoundError
from zg_async.transport.audit import AuditedTransaction, AuditTrail
from zg_async.transport.receipts import parse_inclusion
from zg_async.wire.contract_events import DeliverableAcknowledged, FeesSettled, decode_log
from zg_async.wire.contracts import FineTuningContract, InferenceContract, LedgerContract
from zg_async.wire.hashing import hex0x
from zg_async.wire.records import Address, TaskId

_DEPOSITS = frozenset({"LedgerManager.addLedger", "LedgerManager.depositFund"})


@dataclasses.dataclass(frozen=True)
class Books:
    """A wallet's chain, seen without the SDK's transport."""

    devnet: Mapping[str, Any]
    session: aiohttp.ClientSession

    @property
    def client(self) -> ChainClient:
        return ChainClient(HttpRpc(self.devnet["rpc_url"], self.session))

    async def check(
        self, wallet: Address, trail: AuditTrail, *, start: int, since: int, fees: Mapping[TaskId, int]
    ) -> list[str]:
        """Return what is wrong.

        Args:
            wallet: Whose books.
            trail: Its audit log.
            start: Neuron it began with.
            since: The block from which on it did anything.
            fees: What each of its tasks cost, by its journal.
        """
        wrong = _Differences()
        wrong.compare("audit lines that can't be read", trail.unreadable, 0)
        await self._nonces(wallet, trail, wrong)
        for transaction in trail.transactions:
            await self._place(transaction, wrong)
        settled = await self._settled(wallet, since, fees, wrong)
        wrong.compare("wallet's balance", await self.client.balance(wallet), start - trail.paid)
        await self._ledger(wallet, [t for t in trail.transactions if t.status == 1], settled, wrong)
        return list(wrong)

    async def _nonces(self, wallet: Address, trail: AuditTrail, wrong: "_Differences") -> None:
        nonces = sorted(transaction.account_nonce for transaction in trail.transactions)
        for tag in ("latest", "pending"):
            count = int(await self.client.request("eth_getTransactionCount", wallet, tag), 16)
            wrong.compare(f"nonces up to the {tag} count", nonces, list(range(count)))

    async def _place(self, told: AuditedTransaction, wrong: "_Differences") -> None:
        receipt = await self.client.request("eth_getTransactionReceipt", told.tx_hash)
        if receipt is None:
            wrong.append(f"{told.key}: {told.tx_hash} is not on the chain")
            return
        found = parse_inclusion(receipt)
        wrong.compare(
            f"{told.key}: block, status, gas",
            (found.block_number, found.status, found.gas_used * found.gas_price),
            (told.block_number, told.status, told.gas_cost),
        )

    async def _settled(
        self, wallet: Address, since: int, fees: Mapping[TaskId, int], wrong: "_Differences"
    ) -> list[FeesSettled]:
        query = {
            "address": self.devnet["fine_tuning"],
            "fromBlock": hex(since),
            "topics": [None, hex0x(bytes(12) + bytes.fromhex(wallet[2:]))],
        }
        events = [decode_log(parse_log(log)) for log in await self.client.request("eth_getLogs", query)]
        acknowledged = [event.id for event in events if isinstance(event, DeliverableAcknowledged)]
        settled = [event for event in events if isinstance(event, FeesSettled)]
        wrong.compare("acknowledged, each once", sorted(acknowledged), sorted(fees))
        wrong.compare("paid, each once", sorted((e.id, e.fee, e.acknowledged) for e in settled), _due(fees))
        return settled

    async def _ledger(
        self,
        wallet: Address,
        done: Sequence[AuditedTransaction],
        settled: Iterable[FeesSettled],
        wrong: "_Differences",
    ) -> None:
        deposited = sum(transaction.value for transaction in done if transaction.name in _DEPOSITS)
        moved: dict[tuple[str, Address], int] = collections.Counter()
        for transaction in done:
            if transaction.payee is not None:
                moved[_service(transaction), transaction.payee] += transaction.transferred
        paid = sum(event.fee for event in settled)
        for event in settled:
            moved["fine-tuning", event.provider] -= event.fee
        try:
            ledger = await self.client.call(LedgerContract(self.devnet["ledger"]).get_ledger(wallet))
        except LedgerNotFoundError:
            wrong.compare("the ledger is missing, deposits", deposited, 0)
            return
        wrong.compare("ledger's total", ledger.total_balance, deposited - paid)
        wrong.compare("ledger's free part", ledger.available_balance, deposited - paid - sum(moved.values()))
        for (service, provider), amount in moved.items():
            wrong.compare(f"{service} at {provider}", await self._account(service, wallet, provider), amount)

    async def _account(self, service: str, wallet: Address, provider: Address) -> int | None:
        contract = (
            FineTuningContract(self.devnet["fine_tuning"]).get_account(wallet, provider)
            if service == "fine-tuning"
            else InferenceContract(self.devnet["inference"]).get_account(wallet, provider)
        )
        try:
            return (await self.client.call(contract)).balance
        except AccountNotFoundError:
            return None


class _Differences(list[str]):
    def compare(self, what: str, found: object, expected: object) -> None:
        if found != expected:
            self.append(f"{what}: {found} instead of {expected}")


def _due(fees: Mapping[TaskId, int]) -> list[tuple[TaskId, int, bool]]:
    return sorted((task_id, fee, True) for task_id, fee in fees.items())


def _service(transfer: AuditedTransaction) -> str:
    """Say which service a transfer of a job went to."""
    return "inference" if "fund/inference" in transfer.key else "fine-tuning"
