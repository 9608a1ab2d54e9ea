"""Gas of the devnet's contracts beside what was measured on the deployed ones."""

import pytest

from tests.devnet.contract_kit import (
    A_PROVIDER,
    DAY,
    OTHER,
    PROVIDER,
    SECRET,
    SIGNER,
    USER,
    acknowledge,
    deliver,
    settle,
)
from tests.devnet.evm_harness import INFERENCE_NAME, ZG, World, base_world, offer
from zg_async.devnet.accounts import dev_account

TASK_ID = "6b607314-88b0-4fef-91e7-43227a54de57"
DEPLOYED = {
    "addLedger": 171_879,
    "depositFund existing": 53_754,
    "depositFund creating": 153_935,
    "transferFund new": 448_531,
    "transferFund new, inference": 444_099,
    "transferFund new, another": 397_243,
    "transferFund existing": 93_326,
    "retrieveFund 1": 194_741,
    "retrieveFund 20": 2_728_455,
    "retrieveFund 20 collecting": 794_812,
    "refund partial": 59_429,
    "refund full, 3 sub-accounts": 334_880,
    "addOrUpdateService first": 381_437,
    "addOrUpdateService update": 73_835,
    "addDeliverable": 271_461,
    "acknowledgeDeliverable": 49_255,
    "acknowledgeTEESigner": 37_385,
    "settleFees": 321_807,
    "revokeToken": 58_629,
    "revokeAllTokens": 59_217,
}
"""What the published builds use in the same steps on the same engine."""


def task(world: World) -> dict[str, int]:
    """One task from the ledger on."""
    gas = {}
    gas["addLedger"] = world.open_ledger(USER).gas_used
    gas["depositFund existing"] = world.ledger.send(USER, "depositFund", value=ZG).gas_used
    gas["depositFund creating"] = world.ledger.send(OTHER, "depositFund", value=3 * ZG).gas_used
    gas["transferFund new"] = world.transfer(USER, PROVIDER, ZG).gas_used
    gas["transferFund new, another"] = world.transfer(USER, SIGNER, ZG).gas_used
    gas["transferFund new, inference"] = world.transfer(USER, PROVIDER, ZG, INFERENCE_NAME).gas_used
    gas["transferFund existing"] = world.transfer(USER, PROVIDER, ZG).gas_used
    gas["addOrUpdateService first"] = world.register(PROVIDER, SIGNER).gas_used
    gas["addOrUpdateService update"] = world.fine_tuning.send(PROVIDER, "addOrUpdateService", *offer(SIGNER)).gas_used
    gas["acknowledgeTEESigner"] = world.fine_tuning.send(USER, "acknowledgeTEESigner", A_PROVIDER, True).gas_used
    gas["addDeliverable"] = deliver(world, TASK_ID).gas_used
    gas["acknowledgeDeliverable"] = acknowledge(world, TASK_ID).gas_used
    gas["settleFees"] = settle(world, id=TASK_ID, secret=SECRET).gas_used
    gas["revokeToken"] = world.inference.send(USER, "revokeToken", A_PROVIDER, 3).gas_used
    gas["revokeAllTokens"] = world.inference.send(USER, "revokeAllTokens", A_PROVIDER).gas_used
    gas["refund partial"] = world.ledger.send(USER, "refund", ZG).gas_used
    return gas


def refunds(world: World, count: int) -> tuple[int, int, int]:
    """Asking back, collecting, and withdrawing everything."""
    providers = [dev_account(index) for index in range(10, 10 + count)]
    world.open_ledger(USER, 30 * ZG)
    for provider in providers:
        world.transfer(USER, provider, ZG)
    asked = world.retrieve(USER, *providers).gas_used
    world.pass_time(DAY)
    collected = world.retrieve(USER, *providers).gas_used
    return asked, collected, world.ledger.send(USER, "refund", 30 * ZG).gas_used


@pytest.mark.slow
def test_gas_stays_within_a_tenth_of_the_deployed_contracts():
    gas = task(base_world().fork())
    gas["retrieveFund 1"], _, _ = refunds(base_world().fork(), 1)
    gas["retrieveFund 20"], gas["retrieveFund 20 collecting"], _ = refunds(base_world().fork(), 20)
    _, _, gas["refund full, 3 sub-accounts"] = refunds(base_world().fork(), 3)
    far = {name: (gas[name], used) for name, used in DEPLOYED.items() if abs(gas[name] - used) > used / 10}
    assert gas.keys() == DEPLOYED.keys()
    assert far == {}
