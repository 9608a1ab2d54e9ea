"""Transactions that put the storage contracts on a chain: reward, market and flow behind proxies.

On a fresh devnet they follow the sixteen of `deploy`, so that the flow contract's address is always the same.
"""

from typing import Final, NamedTuple

from eth_abi.abi import encode

from zg_async.devnet.chain_client import rlp
from zg_async.devnet.deploy import DeployTransaction, load_artifact
from zg_async.wire.hashing import checksum_address, keccak256
from zg_async.wire.records import Address

PRICE_PER_SECTOR: Final = 30_733_644_962
"""Neuron, as on the `turbo` networks."""
BLOCKS_PER_EPOCH: Final = 2**64
"""So many that no epoch ever ends."""


class StorageDeployment(NamedTuple):
    """What to send, in order, and where the contracts will then be."""

    flow: Address
    market: Address
    transactions: tuple[DeployTransaction, ...]


def plan_storage(sender: str, *, first_nonce: int, price_per_sector: int = PRICE_PER_SECTOR) -> StorageDeployment:
    """Lay out the deployment of the storage contracts.

    Args:
        sender: Who sends, and then administers them.
        first_nonce: The sender's next account nonce.
        price_per_sector: Neuron for 256 bytes.

    Returns:
        The nine transactions, and the proxies of flow and market.
    """
    steps = _Steps(sender, first_nonce)
    reward = steps.create("MiningReward")
    market = steps.create_proxied("FixedPriceMarket")
    flow = steps.create_proxied("FixedPriceFlow", encode(("uint256",), (0,)))
    steps.call(
        market,
        "initialize(uint256,address,address)",
        encode(("uint256", "address", "address"), (price_per_sector, flow, reward)),
    )
    steps.call(flow, "initialize(address,uint256)", encode(("address", "uint256"), (market, BLOCKS_PER_EPOCH)))
    return StorageDeployment(flow, market, tuple(steps.transactions))


class _Steps:
    """The list while it grows."""

    def __init__(self, sender: str, nonce: int) -> None:
        self._sender = sender
        self._nonce = nonce
        self.transactions: list[DeployTransaction] = []

    def create(self, name: str, arguments: bytes = b"") -> Address:
        nonce = self._nonce + len(self.transactions)
        address = checksum_address(keccak256(rlp([bytes.fromhex(self._sender[2:]), nonce]))[12:])
        code = bytes.fromhex(load_artifact(name)["bytecode"][2:])
        self.transactions.append(DeployTransaction(nonce=nonce, to=None, data=code + arguments, creates=address))
        return address

    def create_proxied(self, name: str, arguments: bytes = b"") -> Address:
        beacon = self.create("UpgradeableBeacon", encode(("address",), (self.create(name, arguments),)))
        return self.create("BeaconProxy", encode(("address", "bytes"), (beacon, b"")))

    def call(self, to: Address, signature: str, arguments: bytes) -> None:
        nonce = self._nonce + len(self.transactions)
        data = keccak256(signature.encode())[:4] + arguments
        self.transactions.append(DeployTransaction(nonce=nonce, to=to, data=data))
