import json
import os
import signal
import subprocess
import sys
from typing import Literal

import aiohttp
import anyio
import pytest

from tests.devnet.provider_kit import chain_user
from zg_async.devnet.accounts import owner
from zg_async.devnet.anvil import Anvil, find_anvil
from zg_async.devnet.network import start_devnet
from zg_async.devnet.process import DevnetProcess
from zg_async.errors import ConfigError
from zg_async.networks import NETWORKS

pytestmark = pytest.mark.slow


@pytest.fixture
async def session():
    async with aiohttp.ClientSession() as opened:
        yield opened


async def _post(session, url, body=None, **headers):
    async with session.post(url, json=body, headers=headers) as reply:
        return reply.status, await reply.json()


# --- control ---


async def test_control_is_reached_by_path_or_bearer_token_only(zg_devnet, session):
    url, token = zg_devnet.info["control_url"], zg_devnet.info["control_token"]
    bare = url.removesuffix(token)
    assert (await _post(session, f"{url}/mine"))[0] == 200
    assert (await _post(session, url, {"command": "mine", "blocks": 2}))[0] == 200
    assert (await _post(session, f"{bare}mine", Authorization=f"Bearer {token}"))[0] == 200
    for wrong in (f"{bare}mine", f"{bare}{token[:-1]}x/mine", f"{bare}x/mine"):
        assert (await _post(session, wrong))[0] == 403


async def test_control_refuses_browsers_and_other_host_names(zg_devnet, session):
    url = zg_devnet.info["control_url"]
    assert (await _post(session, f"{url}/mine", Origin="http://localhost"))[0] == 403
    assert (await _post(session, f"{url}/mine", Host="rebound.example"))[0] == 403


@pytest.mark.goal("DOC-04", part="controls")
async def test_control_only_reads_with_get(zg_devnet, session):
    async with session.get(zg_devnet.info["control_url"]) as reply:
        status = await reply.json()
    assert status["ledger"] == zg_devnet.info["ledger"]
    assert len(status["state"]) == len(zg_devnet.providers)
    async with session.get(f"{zg_devnet.info['control_url']}/mine") as reply:
        assert reply.status == 400


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("nothing", {}),
        ("increase_time", {}),
        ("increase_time", {"seconds": -1}),
        ("settings", {"nope": 1}),
        ("faults", {"drop": "x"}),
        ("restart", {"provider": 99}),
        ("faucet", {"amount": 1}),
        ("faucet", {"address": "junk", "amount": 1}),
        ("rpc_faults", {"nope": 1}),
    ],
)
def test_a_wrong_command_is_refused_with_its_reason(zg_devnet, command, arguments):
    with pytest.raises(ConfigError):
        zg_devnet.control(command, **arguments)


async def test_a_changed_price_is_on_chain_too(zg_devnet):
    async with chain_user(zg_devnet, "price") as user:
        await user.control("settings", price_per_token=5)
        service = await user.client.call(user.contract.get_service(user.provider))
        assert service.price_per_token == 5
        await user.control("settings", price_per_token=10**12)


async def test_the_owners_approval_can_be_taken_back(zg_devnet):
    async with chain_user(zg_devnet, "approval") as user:
        await user.control("revoke")
        status, answer = await user.create("0x" + "ab" * 32)
        assert (status, "has not been acknowledged by 0G team" in answer["error"]) == (400, True)
        await user.control("approve")
        assert (await user.create("0x" + "ab" * 32))[0] == 201


async def test_a_lost_rpc_answer_hits_clients_but_not_providers(zg_devnet):
    async with chain_user(zg_devnet, "lost") as user:
        await zg_devnet.control_async("rpc_faults", kind="lose_answer", operation="eth_chainId", times=1)
        body = {"jsonrpc": "2.0", "id": 1, "method": "eth_chainId", "params": []}
        with pytest.raises(aiohttp.ClientConnectionError):
            await user.session.post(zg_devnet.rpc_url, json=body)
        async with user.session.post(zg_devnet.rpc_url, json=body) as reply:
            assert (await reply.json())["result"] == "0x7a69"


# --- the network ---


async def test_the_published_local_addresses_come_out():
    async with start_devnet(port=0, providers=0) as devnet:
        local = NETWORKS["local"]
        told = devnet.describe()
        assert (told["ledger"], told["inference"], told["fine_tuning"]) == (
            local.ledger,
            local.inference,
            local.fine_tuning,
        )
        assert devnet.describe()["providers"] == []


@pytest.mark.parametrize(
    "engine",
    ["pyevm", pytest.param("anvil", marks=pytest.mark.skipif(find_anvil() is None, reason="anvil isn't installed"))],
)
async def test_blocks_come_by_the_clock_once_everything_stands(engine: Literal["pyevm", "anvil"]):
    async with start_devnet(port=0, providers=0, block_time=0.05, engine=engine) as devnet:
        first, _, _ = await devnet.client.head()
        with anyio.fail_after(5):
            while (await devnet.client.head())[0] < first + 3:
                await anyio.sleep(0.01)


@pytest.mark.skipif(find_anvil() is None, reason="anvil isn't installed")
async def test_an_anvil_that_is_closed_between_two_blocks_closes_in_silence(caplog):
    async with Anvil({}) as anvil:
        await anvil.set_block_time(1e-4)
        with anyio.fail_after(5):
            while int(await anvil.request("eth_blockNumber"), 16) < 3:
                pass
    assert not caplog.records


@pytest.mark.skipif(find_anvil() is None, reason="anvil isn't installed")
async def test_anvil_stands_in_for_the_embedded_chain():
    with DevnetProcess("--engine", "anvil", "--limits", "off") as devnet:
        async with chain_user(devnet, "anvil") as user:
            task_id = await user.train()
            await user.wait(task_id, "Delivered")
            await user.acknowledge(task_id)
            await user.wait(task_id, "Finished")
            await user.control("increase_time", seconds=86400)
            assert (await devnet.control_async("status"))["clock_offset"] >= 86400 - 2


async def test_user_accounts_play_no_role_of_the_network(zg_devnet):
    users = {account["address"] for account in zg_devnet.accounts}
    assert owner().address not in users
    assert not users & {provider["address"] for provider in zg_devnet.providers}


async def test_a_taken_port_is_an_error_when_it_was_asked_for(zg_devnet):
    port = int(zg_devnet.rpc_url.rsplit(":", 1)[1])
    with pytest.raises(ConfigError, match="is taken"):
        async with start_devnet(port=port):
            pass


async def test_providers_join_contracts_that_stand_already():
    with DevnetProcess("--providers", "0") as base:
        os.environ["ZG_OWNER_KEY"] = f"0x{owner().private_key.hex()}"
        addresses = (
            "--ledger-ca",
            base.info["ledger"],
            "--inference-ca",
            base.info["inference"],
            "--fine-tuning-ca",
            base.info["fine_tuning"],
        )
        try:
            for _ in range(2):  # the second time they are registered already, under another port
                with DevnetProcess("--attach", base.rpc_url, *addresses, "--limits", "off") as joined:
                    assert joined.info["ledger"] == base.info["ledger"]
                    async with (
                        aiohttp.ClientSession() as session,
                        session.get(f"{joined.providers[0]['url']}/v1/quote") as reply,
                    ):
                        assert reply.status == 200
        finally:
            del os.environ["ZG_OWNER_KEY"]


# --- the command ---


@pytest.mark.goal("DOC-04", part="process")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_prints_one_line_and_ends_cleanly_on_a_signal(number):
    command = [sys.executable, "-m", "zg_async.cli.main", "devnet", "up", "--json", "--port", "0", "--providers", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    info = json.loads(process.stdout.readline())
    process.send_signal(number)
    rest, errors = process.communicate(timeout=20)
    assert (process.returncode, rest, errors) == (0, b"", b"")
    wanted = ["rpc_url", "chain_id", "ledger", "inference", "fine_tuning", "control_url", "providers", "accounts"]
    assert set(wanted) <= info.keys()


def test_the_command_ends_with_whoever_started_it():
    with DevnetProcess("--providers", "0") as running:
        process = running._process
        process.stdin.close()
        assert process.wait(20) == 0


@pytest.mark.parametrize(
    ("words", "code"),
    [(("--attach", "http://127.0.0.1:1"), 2), (("--ledger-ca", "0x1"), 2), (("--lock-time", "60"), 8)],
    ids=str,
)
def test_options_that_cant_be_are_refused(words, code):
    command = [sys.executable, "-m", "zg_async.cli.main", "devnet", "up", "--json", "--port", "0", *words]
    done = subprocess.run(command, capture_output=True, timeout=60, env=os.environ | {"ZG_OWNER_KEY": ""})
    assert done.returncode == code
    assert b"error" in done.stderr
    assert b"Traceback" not in done.stderr
