"""Watching transactions."""

import contextlib
import dataclasses

import anyio
import pytest

from tests.devnet.conftest import open_broker
from zg_async import get_network

pytestmark = pytest.mark.slow


@pytest.fixture
async def deep(devnet, key, tmp_path):
    """A broker that takes three blocks as final."""
    network = dataclasses.replace(get_network("local"), confirmations=3, rpc_url=devnet.rpc_url)
    async with open_broker(devnet, key, tmp_path / "s", network=network) as broker:
        yield broker


@pytest.mark.goal("WAT-01", part="transactions")
async def test_a_transaction_is_watched_to_its_depth_and_back_through_a_reorganisation(devnet, deep):
    seen = []
    call = deep.fine_tuning._ctx.services.ledger.add_ledger("", value=3 * 10**18)
    with anyio.fail_after(30):
        sent = await deep.chain.submit(call, wallet=deep.address)
        async with anyio.create_task_group() as group:
            group.start_soon(deep.chain.wait_final, sent.key)  # sends it again when its block is gone
            async with contextlib.aclosing(deep.chain.watch_transaction(sent.tx_hash)) as changes:
                async for change in changes:
                    seen.append((change.state, change.succeeded))
                    if seen == [("mined", True)]:
                        devnet.control("reorg", depth=1)
                    if ("pending", None) in seen and change.state == "mined":
                        devnet.control("mine", blocks=2)
    assert seen[0] == ("mined", True)
    assert ("pending", None) in seen
    assert seen[-1] == ("final", True)


@pytest.mark.goal("WAT-01", part="waiting for transactions")
async def test_waiting_for_a_transaction_obeys_the_callers_deadline(deep):
    with pytest.raises(TimeoutError), anyio.fail_after(0.2):
        await deep.chain.wait_receipt("0x" + "12" * 32)

    async def watch():
        async with contextlib.aclosing(deep.chain.watch_transaction("0x" + "12" * 32)) as changes:
            async for change in changes:
                assert change.state == "pending"

    with pytest.raises(TimeoutError), anyio.fail_after(0.2):
        await watch()
    receipt = await deep.ledger.add_ledger("3")
    assert (await deep.chain.wait_receipt(receipt.tx_hash)).block_hash == receipt.block_hash
