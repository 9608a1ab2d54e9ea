"""A signer in another program: what it is asked in web3signer's dialect, and what is believed of its answers."""

import contextlib
import json

import pytest
from aiohttp import web
from eth_account import Account
from eth_account.messages import encode_defunct

from tests.http_server import serving
from tests.unit.test_signer import GUARD, transaction
from zg_async.devnet.accounts import dev_account
from zg_async.errors import (
    ChainUnavailableError,
    ConfigError,
    RefusedToSignError,
    RpcError,
    SignatureMismatchError,
    ZgError,
)
from zg_async.networks import NETWORKS
from zg_async.transport.fees import FeePolicy
from zg_async.transport.guard import network_guard
from zg_async.transport.remote_signer import RemoteSigner
from zg_async.transport.signer import DecryptionKey, Guarded, LocalSigner, Signer, decryption_key

OWN, OTHER = dev_account(1), dev_account(2)


class SigningServer:
    """Signs with eth_account, as web3signer does; `lie` changes what it signs or says."""

    def __init__(self, *keys: bytes) -> None:
        self.accounts = {Account.from_key(key).address: Account.from_key(key) for key in keys}
        self.asked: list[tuple[str, list]] = []
        self.lie = lambda method, params: params
        self.answer = lambda method, result: result
        self.wrapped = False

    async def __call__(self, request: web.Request) -> web.Response:
        body = await request.json()
        method, params = body["method"], body["params"]
        self.asked.append((method, json.loads(json.dumps(params))))
        result = self.answer(method, self._result(method, self.lie(method, params)))
        part = result if isinstance(result, dict) and "error" in result else {"result": result}
        return web.json_response({"jsonrpc": "2.0", "id": body["id"], **part})

    def _result(self, method, params):
        match method:
            case "eth_accounts":
                return [address.lower() for address in self.accounts]
            case "eth_sign":
                account = self.accounts[params[0]]
                return account.sign_message(encode_defunct(hexstr=params[1])).signature.to_0x_hex()
            case "eth_signTransaction":
                fields = dict(params[0])
                account = self.accounts[fields.pop("from")]
                raw = account.sign_transaction({"type": 2, **fields}).raw_transaction.to_0x_hex()
                return {"raw": raw, "tx": {}} if self.wrapped else raw
        return {"error": {"code": -32601, "message": "Method not found"}}


@contextlib.asynccontextmanager
async def connected(server: SigningServer, address: str | None = None):
    async with serving(server) as url, await RemoteSigner.connect(f"{url}/secret-path", address) as signer:
        signer.arm(GUARD)
        yield signer


@pytest.mark.goal("SEC-01", part="external signer")
@pytest.mark.parametrize("wrapped", [False, True])
async def test_it_signs_the_same_bytes_as_a_local_key(wrapped):
    local = LocalSigner.from_key(OWN.private_key, guard=GUARD)
    server = SigningServer(OWN.private_key)
    server.wrapped = wrapped
    async with connected(server) as remote:
        assert isinstance(remote, Signer)
        assert isinstance(remote, Guarded)
        assert remote.address == OWN.address
        for changes in ({}, {"account_nonce": 0, "value": 0, "max_priority_fee_per_gas": 0}):
            wanted = transaction(**changes)
            assert await remote.sign_transaction(wanted) == await local.sign_transaction(wanted)
        for message in (bytes(32), b"", b"a text of any length"):
            assert await remote.sign_personal(message) == await local.sign_personal(message)
    assert [method for method, _ in server.asked] == ["eth_accounts"] + ["eth_signTransaction"] * 2 + ["eth_sign"] * 3
    assert server.asked[1][1] == [
        {
            "from": OWN.address,
            "to": wanted.to,
            "gas": hex(wanted.gas),
            "maxFeePerGas": hex(wanted.max_fee_per_gas),
            "maxPriorityFeePerGas": "0x3b9aca00",
            "value": hex(10**18),
            "data": "0x" + wanted.data.hex(),
            "nonce": "0x3",
            "chainId": "0x7a69",
        }
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"nonce": "0x4"},
        {"to": OTHER.address},
        {"value": "0x1"},
        {"data": "0x"},
        {"gas": "0x30d40"},
        {"maxFeePerGas": "0xffffffffff"},
        {"chainId": "0x1"},
        {"accessList": [{"address": OTHER.address, "storageKeys": []}]},
        {"from": OTHER.address},
    ],
)
@pytest.mark.goal("SEC-01", part="external signer is not believed")
async def test_another_transaction_than_was_asked_for_is_refused(change):
    server = SigningServer(OWN.private_key, OTHER.private_key)
    server.lie = lambda method, params: [params[0] | change] if method == "eth_signTransaction" else params
    async with connected(server, OWN.address) as signer:
        with pytest.raises(RefusedToSignError, match="Nothing was sent"):
            await signer.sign_transaction(transaction())


@pytest.mark.parametrize("answer", ["0x", "0x02", "0x02c0", "0x02" + "ff" * 200, "ab", None, 7, {"raw": 5}, ["0x02"]])
async def test_an_answer_that_is_no_transaction_is_refused(answer):
    server = SigningServer(OWN.private_key)
    server.answer = lambda method, result: answer if method == "eth_signTransaction" else result
    async with connected(server) as signer:
        with pytest.raises((RefusedToSignError, RpcError)):
            await signer.sign_transaction(transaction())


@pytest.mark.goal("SEC-01", part="external signer is not believed")
async def test_a_signature_of_another_wallet_or_message_is_refused():
    server = SigningServer(OWN.private_key, OTHER.private_key)
    async with connected(server, OWN.address) as signer:
        for params in ([OTHER.address, "0x" + "00" * 32], [OWN.address, "0x" + "01" * 32]):
            server.lie = lambda method, asked, params=params: params
            with pytest.raises(SignatureMismatchError):
                await signer.sign_personal(bytes(32))
        for text in ("0x", "0x" + "00" * 65, "0x" + "ff" * 65):
            server.answer = lambda method, result, text=text: text
            with pytest.raises(SignatureMismatchError):
                await signer.sign_personal(bytes(32))


@pytest.mark.goal("SEC-09", part="guard")
async def test_what_the_guard_refuses_is_not_even_asked():
    server = SigningServer(OWN.private_key)
    async with serving(server) as url, await RemoteSigner.connect(url) as signer:
        with pytest.raises(RefusedToSignError, match="no guard"):
            await signer.sign_transaction(transaction())
        signer.arm(GUARD)
        with pytest.raises(RefusedToSignError, match="chain 1"):
            await signer.sign_transaction(transaction(chain_id=1))
        with pytest.raises(ConfigError, match="another network"):
            signer.arm(network_guard(NETWORKS["local"], FeePolicy(max_gas=1)))
    assert [method for method, _ in server.asked] == ["eth_accounts"]


async def test_which_account_is_taken():
    async with serving(SigningServer(OWN.private_key, OTHER.private_key)) as url:
        with pytest.raises(ConfigError, match="has 2 accounts"):
            await RemoteSigner.connect(url)
        async with await RemoteSigner.connect(url, OTHER.address.lower()) as signer:
            assert signer.address == OTHER.address
        with pytest.raises(ConfigError, match="has no account"):
            await RemoteSigner.connect(url, dev_account(3).address)
    async with serving(SigningServer()) as url:
        with pytest.raises(ConfigError, match="has 0 accounts"):
            await RemoteSigner.connect(url)


async def test_a_signer_that_refuses_is_away_or_is_none_is_told_without_its_path():
    server = SigningServer(OWN.private_key)
    async with serving(server) as url:
        async with await RemoteSigner.connect(f"{url}/secret-path") as signer:
            assert "secret-path" not in repr(signer)
            signer.arm(GUARD)
            server.answer = lambda method, result: {"error": {"code": -32000, "message": "not allowed"}}
            with pytest.raises(RpcError, match="not allowed") as caught:
                await signer.sign_transaction(transaction())
            assert "secret-path" not in str(caught.value)
        with pytest.raises(ZgError, match="not allowed"):
            await RemoteSigner.connect(url)
        server.answer = lambda method, result: "0x7a69"
        with pytest.raises(RpcError, match="doesn't answer with accounts"):
            await RemoteSigner.connect(url)
    with pytest.raises(ChainUnavailableError):
        await RemoteSigner.connect(url)


@pytest.mark.goal("SEC-02", part="early refusal")
async def test_it_can_open_no_model_and_says_so():
    async with connected(SigningServer(OWN.private_key)) as signer:
        assert not isinstance(signer, DecryptionKey)
        with pytest.raises(ConfigError, match="private key is at hand"):
            decryption_key(signer)
