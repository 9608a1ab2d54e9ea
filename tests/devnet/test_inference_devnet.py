"""A whole job on a devnet with real contracts ends in a chat with what was trained, and its fee is settled."""

import time
from pathlib import Path

import aiohttp
import anyio
import pytest

from tests.devnet.inference_kit import session
from tests.devnet.provider_kit import User
from zg_async.devnet.chain_client import Wallet
from zg_async.devnet.network import start_devnet
from zg_async.wire.contracts import LedgerContract
from zg_async.wire.inference_api import adapter_name

DATA = Path(__file__).parents[2] / "zg_async/devnet/data"
OG = 10**18


@pytest.mark.slow
@pytest.mark.goal("DOC-04", part="inference serves what was trained")
async def test_a_trained_adapter_answers_on_a_devnet_and_its_fee_is_settled() -> None:
    async with start_devnet(port=0, limits="off") as devnet, aiohttp.ClientSession() as http:
        node, account = devnet.providers[0], devnet.accounts[0]
        inference = devnet.inference[node.address]
        wallet, ledger = Wallet(devnet.client, account.private_key), LedgerContract(devnet.ledger)
        await wallet.send(ledger.add_ledger("", value=20 * OG))
        for service in ("fine-tuning-v1.0", "inference-v1.0"):
            await wallet.send(ledger.transfer_fund(node.address, service, 2 * OG))

        user = User(account.private_key, http, node.url)
        params = (DATA / "demo_params.json").read_text()
        task_id = await user.train((DATA / "demo.jsonl").read_bytes(), trainingParams=params)
        await user.wait(task_id, "Delivered")
        await wallet.send(devnet.fine_tuning_contract.acknowledge_deliverable(node.address, task_id))
        name = adapter_name(inference.base_model, task_id)
        with anyio.fail_after(30):
            while (entry := inference.adapters.get(name)) is None or entry.state.value != "active":
                await anyio.sleep(0.05)

        headers = session(account.private_key, time.time(), provider=node.address)
        question = {"role": "user", "content": "What is the code of station Hamar?"}
        url = f"{inference.url}/v1/proxy/chat/completions"
        async with http.post(url, json={"model": name, "messages": [question]}, headers=headers) as reply:
            body = await reply.json()
        assert body["choices"][0]["message"]["content"] == "The code of station Hamar is 022."

        owed = inference.fees.unsettled(wallet.address)
        assert [result.status for result in await inference.settle()] == [0]
        left = await devnet.client.call(devnet.inference_contract.get_account(wallet.address, node.address))
        assert left.balance == 2 * OG - owed
