"""Paying for storage: the exact fee, to the pinned flow contract, at the price its own market names."""

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

from zg_async.errors import (
    ConfigError,
    ContractRevertedError,
    FeeCapError,
    InsufficientGasFundsError,
    StorageError,
    WrongChainError,
)
from zg_async.logs import get_logger
from zg_async.transport.chain import Chain
from zg_async.units import format_amount
from zg_async.wire.contracts import Call, FlowContract, MarketContract
from zg_async.wire.hashing import checksum_address
from zg_async.wire.merkle import MerkleTree
from zg_async.wire.records import Address, Receipt, TxHash
from zg_async.wire.submission import storage_fee, submit_call, submitted

T = TypeVar("T")
_log = get_logger("zg_async.storage")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the flow contract put a file."""

    tx_seq: int
    start_entry: int
    tx_hash: TxHash | None = None
    """None: it was there before."""


class Cashier:
    """Submits files to the network's flow contract. Nodes and indexers have no say in whom or how much."""

    def __init__(self, chain: Chain, *, max_price: int) -> None:
        """Pay through a chain.

        Args:
            chain: Whose network names the flow contract.
            max_price: Neuron per sector above which nothing is paid.

        Raises:
            ConfigError: The network has no flow contract.
        """
        if chain.network.flow is None:
            raise ConfigError(
                f"network {chain.network.name} has no storage flow contract", hint='Pass contracts={"flow": ...}'
            )
        self.flow: Address = checksum_address(chain.network.flow)
        self._chain = chain
        self._max_price = max_price
        self._legacy = False

    async def price(self) -> int:
        """Read what a sector costs, in neuron.

        Raises:
            FeeCapError: It is above the cap.
            StorageError: There is no flow contract.
        """
        market = await self._ask(FlowContract(self.flow).market())
        price = await self._ask(MarketContract(market).price_per_sector())
        if price > self._max_price:
            raise FeeCapError(
                f"a storage sector costs {price} neuron, the cap is {self._max_price}",
                hint="If that is right, raise StorageSettings.max_price_per_sector",
            )
        return price

    async def submissions(self) -> int:
        """Read how many submissions there were.

        Raises:
            StorageError: There is no flow contract.
        """
        return await self._ask(FlowContract(self.flow).num_submissions())

    async def _ask(self, call: Call[T]) -> T:
        try:
            return await self._chain.call(call)
        except (ContractRevertedError, WrongChainError) as error:
            raise StorageError(
                f"there is no flow contract at {self.flow} on {self._chain.network.name}: {error.message}",
                hint='Check the network, or pass the right address as contracts={"flow": ...}',
            ) from error

    async def fee(self, trees: Sequence[MerkleTree]) -> int:
        """Return what storing files costs now, in neuron, gas not included."""
        return storage_fee(trees, await self.price())

    async def pay(
        self, trees: Sequence[MerkleTree], *, wallet: Address, key: str | None = None
    ) -> tuple[tuple[Place, ...], int]:
        """Submit files in one transaction and wait until it is mined.

        Args:
            trees: Of the files.
            wallet: Pays, and is named as submitter.
            key: Names the effect; the same key is never paid twice.

        Returns:
            The files' places in order, and the fee in neuron.

        Raises:
            InsufficientGasFundsError: The wallet holds less than the fee; nothing was signed.
            FeeCapError: The price is above the cap.
            ContractRevertedError: The contract refused.
            StorageError: The contract speaks neither layout, or its receipt doesn't show the submission.
        """
        price = await self.price()
        fee = storage_fee(trees, price)
        balance = await self._chain.balance(wallet)
        if balance < fee:
            raise InsufficientGasFundsError(
                f"storing {sum(t.size for t in trees)} bytes costs {format_amount(fee)} and gas, "
                f"{wallet} holds {format_amount(balance)}",
                hint="Fund the wallet; nothing was signed",
            )
        receipt = await self._write(trees, price, wallet, key)
        return self._places(receipt, trees), fee

    async def _write(self, trees: Sequence[MerkleTree], price: int, wallet: Address, key: str | None) -> Receipt:
        """Send it in the layout the contract speaks: one that speaks another reverts without any data."""
        layouts = (True, False) if self._legacy else (False, True)
        failure: ContractRevertedError | None = None
        for legacy in layouts:
            call = submit_call(self.flow, trees, submitter=wallet, price=price, legacy=legacy)
            try:
                receipt = await self._chain.write(call, wallet=wallet, key=key)
            except ContractRevertedError as error:
                if error.data or error.error_name is not None or error.tx_hash is not None:
                    raise
                failure = error
                _log.debug("the flow contract gives no reason; trying the other layout")
            else:
                self._legacy = legacy
                return receipt
        raise StorageError(
            f"no flow contract at {self.flow} speaks either submission layout: both revert without a reason",
            hint="The address is probably that of another contract, or an upgrade changed the layout",
        ) from failure

    def _places(self, receipt: Receipt, trees: Sequence[MerkleTree]) -> tuple[Place, ...]:
        events = submitted(receipt.logs, self.flow)
        shown = [(event.identity, event.submission[0]) for event in events]
        if shown != [(tree.identity, tree.size) for tree in trees]:
            raise StorageError(f"the receipt of {receipt.tx_hash} doesn't show the submission that was paid")
        return tuple(
            Place(tx_seq=e.submission_index, start_entry=e.start_position, tx_hash=receipt.tx_hash) for e in events
        )
