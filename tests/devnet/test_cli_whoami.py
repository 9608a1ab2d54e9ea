"""Who am I, on which network, and why; and the question before the first spending."""

import dataclasses
import io
import json

import anyio.to_thread
import pytest

from tests.http_server import serving
from tests.unit.test_cli_config import home as home
from tests.unit.test_remote_signer import SigningServer
from zg_async.cli import config, opening
from zg_async.cli.main import run
from zg_async.cli.opening import Where, open_broker
from zg_async.cli.output import UsageError
from zg_async.networks import NETWORKS
from zg_async.transport import keystore as keystore_module
from zg_async.transport.signer import LocalSigner
from zg_async.units import NEURON_PER_0G

pytestmark = pytest.mark.slow


async def zg(*words):
    return await anyio.to_thread.run_sync(run, list(words))


@pytest.fixture(autouse=True)
def quick(home, monkeypatch):
    monkeypatch.setattr(keystore_module, "SCRYPT_N", 4096)
    monkeypatch.setenv("ZG_STATE_DIR", str(home / "state"))


@pytest.mark.goal("CFG-01", part="whoami")
@pytest.mark.goal("SEC-10", part="native balance")
async def test_whoami_tells_address_balance_network_and_where_each_value_is_from(
    devnet, key, home, capsys, monkeypatch
):
    address = LocalSigner.from_key(key).address
    monkeypatch.setenv("ZG_PASSWORD", "a password")
    monkeypatch.setenv("PRIVATE_KEY", key)
    assert await zg("wallet", "import", "mine", "--json") == 0
    monkeypatch.delenv("PRIVATE_KEY")
    monkeypatch.delenv("ZG_PASSWORD")  # an address needs no password
    assert await zg("profile", "set", "here", f"rpc={devnet.rpc_url}/", "wallet=mine") == 0
    monkeypatch.setenv("LEDGER_CA", devnet.info["ledger"])
    capsys.readouterr()
    assert await zg("whoami", "--network", "local", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["address"], found["balance"]) == (address, str(100 * NEURON_PER_0G))
    assert (found["network"], found["chain_id"]) == ("local", 31337)
    config = home / "config" / "config.json"
    assert found["settings"] == {
        "profile": {"value": "here", "source": f"config file {config}"},
        "network": {"value": "local", "source": "--network"},
        "rpc": {"value": devnet.rpc_url, "source": "profile here"},
        "ledger_ca": {"value": devnet.info["ledger"], "source": "environment LEDGER_CA"},
        "state_dir": {"value": str(home / "state"), "source": "environment ZG_STATE_DIR"},
        "wallet": {"value": "keystore mine", "source": "profile here"},
    }
    assert await zg("whoami") == 0
    shown = capsys.readouterr().out
    assert all(text in shown for text in (address, "100 0G", "local", "the endpoint (profile here)", "keystore mine"))
    assert await zg("wallet", "list", "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)["wallets"]
    assert row == {"name": "mine", "address": address, "balance": str(100 * NEURON_PER_0G)}


@pytest.mark.goal("SEC-01", part="external signer")
async def test_a_wallet_in_an_external_signer_pays_on_the_chain(devnet, key, home, capsys):
    address = LocalSigner.from_key(key).address
    async with serving(SigningServer(bytes.fromhex(key[2:]))) as url:
        where = Where(network="local", rpc=devnet.rpc_url, signer_url=url)
        async with open_broker(where) as broker:
            await broker.ledger.add_ledger("3")
            assert (await broker.ledger.get_ledger()).total_balance == 3 * NEURON_PER_0G
            assert (broker.address, broker.can_decrypt) == (address, False)
        assert await zg("whoami", "--network", "local", "--rpc", devnet.rpc_url, "--signer-url", f"{url}/path") == 0
    shown = capsys.readouterr().out
    assert address in shown
    assert f"signer {url}/…" in shown


async def test_an_endpoint_of_no_known_chain_is_an_error(devnet, home, capsys, monkeypatch):
    monkeypatch.setattr(config, "_LOOPBACK", ())  # as if it were an endpoint of somebody
    assert await zg("whoami", "--rpc", devnet.rpc_url) == 0  # asked: chain 31337
    assert "the endpoint's chain id" in capsys.readouterr().out
    known = dataclasses.replace(NETWORKS["local"], chain_id=1)
    monkeypatch.setattr(config, "NETWORKS", {"local": known})
    assert await zg("whoami", "--rpc", devnet.rpc_url) == 8
    assert "chain 31337" in capsys.readouterr().err


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.goal("SEC-10", part="asked on a terminal, refused without one")
async def test_on_mainnet_the_first_spending_is_asked_about_once(devnet, key, home, monkeypatch):
    monkeypatch.setattr(opening, "MAINNET", 31337)
    monkeypatch.setenv("ZG_PRIVATE_KEY", key)
    where = Where(network="local", rpc=devnet.rpc_url)
    async with open_broker(where) as broker:
        monkeypatch.setattr("sys.stdin", io.StringIO())
        with pytest.raises(UsageError, match="--yes"):
            await broker.ledger.add_ledger("3")
        asked = Terminal()
        monkeypatch.setattr("sys.stderr", asked)
        monkeypatch.setattr("sys.stdin", Terminal("n\n"))
        with pytest.raises(UsageError, match="nothing was done"):
            await broker.ledger.add_ledger("3")
        assert await broker.chain.transaction_count(broker.address) == 0
        assert "spends up to 3.0" in asked.getvalue()
        monkeypatch.setattr("sys.stdin", Terminal("y\n"))
        await broker.ledger.add_ledger("3")
        await broker.ledger.deposit_fund("1")
        assert asked.getvalue().count("first time") == 2
    async with open_broker(where) as broker:
        await broker.ledger.deposit_fund("1")
        assert asked.getvalue().count("first time") == 2


@pytest.mark.goal("SEC-10", part="asked on a terminal, refused without one")
async def test_the_flag_agrees_beforehand(devnet, key, home, monkeypatch):
    monkeypatch.setattr(opening, "MAINNET", 31337)
    monkeypatch.setenv("ZG_PRIVATE_KEY", key)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    async with open_broker(Where(network="local", rpc=devnet.rpc_url, yes=True)) as broker:
        await broker.ledger.add_ledger("3")
