"""One user, one fine-tuning provider and its TEE signer on the contracts, and the steps of a task between them."""

from types import SimpleNamespace
from typing import Any

from tests.devnet.evm_harness import ZG, Receipt, World, base_world, sign_settlement
from zg_async.devnet.accounts import dev_account

USER, PROVIDER, SIGNER, OTHER = (dev_account(index) for index in (1, 2, 3, 4))
A_USER, A_PROVIDER = USER.address, PROVIDER.address
NOBODY = "0x" + "0" * 40
DAY = 86_400
ROOT = bytes(range(32))
SECRET = b"\4" + bytes(range(128))
REJECTING_WALLET = bytes.fromhex("60006000fd")


def task_world() -> World:
    """A registered, approved provider and a user with 4 of 10 0G in the sub-account."""
    world = base_world().fork()
    world.register(PROVIDER, SIGNER)
    world.open_ledger(USER)
    world.transfer(USER, PROVIDER, 4 * ZG)
    return world


def deliver(world: World, task_id: str = "task", root: bytes = ROOT) -> Receipt:
    return world.fine_tuning.send(PROVIDER, "addDeliverable", A_USER, task_id, root)


def acknowledge(world: World, task_id: str = "task") -> Receipt:
    return world.fine_tuning.send(USER, "acknowledgeDeliverable", A_PROVIDER, task_id)


def settle(world: World, **fields: Any) -> Receipt:
    fields = {"root": ROOT} | fields
    return world.fine_tuning.send(PROVIDER, "settleFees", sign_settlement(world, SIGNER, USER, **fields))


def deliverable(world: World, task_id: str = "task") -> SimpleNamespace:
    found: SimpleNamespace = world.fine_tuning.call("getDeliverable", A_USER, A_PROVIDER, task_id)
    return found


def add_money(world: World, amount: int) -> None:
    """New money beside what is pending; a top-up by the user would cancel that first."""
    data = world.fine_tuning.data("depositFund", A_USER, A_PROVIDER, 0)
    world.machine.send(world.ledger.address, world.fine_tuning.address, data, amount)
