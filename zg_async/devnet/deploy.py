"""The sixteen transactions that put the three contracts at their published local addresses.

Source: the official SDK's `hardhat` address set, which is what the first development account gets when it sends
exactly these on a fresh chain: implementation, beacon, proxy and initialisation of LedgerManager, then
implementation, beacon, proxy, initialisation, registration and recommendation of each serving contract.
Whatever else a devnet deploys comes after nonce 15, or from another account.
"""

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from eth_abi.abi import encode

from zg_async.devnet.accounts import owner as owner_account
from zg_async.units import NEURON_PER_0G
from zg_async.wire.hashing import checksum_address, keccak256
from zg_async.wire.records import Address

ARTIFACTS_DIR: Final = Path(__file__).parent / "artifacts"
FINE_TUNING_NAME: Final = "fine-tuning-v1.0"
INFERENCE_NAME: Final = "inference-v1.0"
_MAX_NONCE: Final = 0x7F


@dataclass(frozen=True, slots=True, kw_only=True)
class DeployTransaction:
    """One transaction to sign and send; gas and fees are the sender's affair."""

    nonce: int
    to: Address | None
    """None creates a contract."""
    data: bytes
    value: int = 0
    """In neuron."""
    creates: Address | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """What to send, in order, and where the contracts will then be."""

    sender: Address
    ledger: Address
    inference: Address
    fine_tuning: Address
    transactions: tuple[DeployTransaction, ...]


@functools.cache
def load_artifact(name: str) -> dict[str, Any]:
    """Read a compiled contract by its name; keys as `build_contracts` writes them."""
    artifact: dict[str, Any] = json.loads((ARTIFACTS_DIR / f"{name}.json").read_text("utf-8"))
    return artifact


def create_address(sender: str, nonce: int) -> Address:
    """Where the contract lands that `sender` creates with `nonce` (0 to 127)."""
    if not 0 <= nonce <= _MAX_NONCE:
        raise ValueError(f"only nonces up to {_MAX_NONCE} are needed here, not {nonce}")
    rlp = b"\xd6\x94" + bytes.fromhex(sender[2:]) + (bytes([nonce]) if nonce else b"\x80")
    return checksum_address(keccak256(rlp)[12:])


def plan_deployment(
    *,
    sender: str | None = None,
    lock_time: int = 86_400,
    penalty_percentage: int = 30,
    min_account_balance: int = 3 * NEURON_PER_0G,
    min_transfer_amount: int = NEURON_PER_0G,
) -> Deployment:
    """Lay out the deployment on a fresh chain.

    Args:
        sender: Who sends from nonce 0 on and then owns everything; the first development account by default. Only
            with it do the addresses come out as published.
        lock_time: Seconds between asking money back and getting it; the contracts take 3600 to 604800.
        penalty_percentage: Share of the fee for a deliverable that was never acknowledged, 0 to 100.
        min_account_balance: Least neuron to open a ledger with: 3 0G on mainnet, 0.1 on the testnet.
        min_transfer_amount: Least neuron of a first transfer to a provider: 1 0G on mainnet, 0.01 on the testnet.

    Returns:
        The sixteen transactions and the three proxy addresses.

    Raises:
        ValueError: A lock time or percentage that the contracts would refuse.
    """
    if not 3600 <= lock_time <= 604_800:
        raise ValueError(f"the contracts take a lock time of 3600 to 604800 seconds, not {lock_time}")
    if not 0 <= penalty_percentage <= 100:
        raise ValueError(f"a penalty is 0 to 100 percent, not {penalty_percentage}")
    steps = _Steps(checksum_address(sender or owner_account().address))
    ledger = steps.add_proxied(
        "LedgerManager", encode(("uint256", "uint256"), (min_account_balance, min_transfer_amount))
    )
    steps.add_call(ledger, "initialize(address)", steps.sender)
    inference = steps.add_proxied("InferenceServing")
    steps.add_call(inference, "initialize(uint256,address,address)", lock_time, ledger, steps.sender)
    steps.add_registration(ledger, "inference", inference)
    fine_tuning = steps.add_proxied("FineTuningServing")
    steps.add_call(
        fine_tuning,
        "initialize(uint256,address,address,uint256)",
        lock_time,
        ledger,
        steps.sender,
        penalty_percentage,
    )
    steps.add_registration(ledger, "fine-tuning", fine_tuning)
    return Deployment(
        sender=steps.sender,
        ledger=ledger,
        inference=inference,
        fine_tuning=fine_tuning,
        transactions=tuple(steps.transactions),
    )


class _Steps:
    """The list while it grows."""

    def __init__(self, sender: Address) -> None:
        self.sender = sender
        self.transactions: list[DeployTransaction] = []

    def add_creation(self, name: str, arguments: bytes = b"") -> Address:
        nonce = len(self.transactions)
        code = bytes.fromhex(load_artifact(name)["bytecode"][2:])
        address = create_address(self.sender, nonce)
        self.transactions.append(DeployTransaction(nonce=nonce, to=None, data=code + arguments, creates=address))
        return address

    def add_proxied(self, name: str, arguments: bytes = b"") -> Address:
        implementation = self.add_creation(name, arguments)
        beacon = self.add_creation("UpgradeableBeacon", encode(("address",), (implementation,)))
        return self.add_creation("BeaconProxy", encode(("address", "bytes"), (beacon, b"")))

    def add_call(self, to: Address, signature: str, *arguments: Any) -> None:
        data = keccak256(signature.encode())[:4] + encode(_types(signature), arguments)
        self.transactions.append(DeployTransaction(nonce=len(self.transactions), to=to, data=data))

    def add_registration(self, ledger: Address, service_type: str, service: Address) -> None:
        self.add_call(ledger, "registerService(string,string,address,string)", service_type, "v1.0", service, "")
        self.add_call(ledger, "setRecommendedService(string,string)", service_type, "v1.0")


def _types(signature: str) -> Sequence[str]:
    return signature[signature.index("(") + 1 : -1].split(",")
