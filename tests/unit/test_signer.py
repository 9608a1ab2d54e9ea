import copy
import json
import pathlib
import pickle
import random
import subprocess
import sys

import pytest
from eth_account import Account
from eth_keyfile import create_keyfile_json

from zg_async.devnet.accounts import dev_account
from zg_async.errors import ClosedError, ConfigError, RefusedToSignError
from zg_async.networks import NETWORKS
from zg_async.transport.fees import FeePolicy
from zg_async.transport.guard import network_guard
from zg_async.transport.signer import DecryptionKey, LocalSigner, Signer, decryption_key
from zg_async.transport.transaction import Transaction, join_signature, signing_hash, split_signature
from zg_async.wire.contracts import LedgerContract
from zg_async.wire.hashing import keccak256
from zg_async.wire.signing import eip191_hash, recover_address, sign_digest

ACCOUNT = dev_account(1)
KEY = ACCOUNT.private_key
LOCAL = NETWORKS["local"]
GUARD = network_guard(LOCAL, FeePolicy())
CALL = LedgerContract(LOCAL.ledger).deposit_fund(value=10**18)


def transaction(**changes):
    fields = {
        "chain_id": 31337,
        "account_nonce": 3,
        "to": CALL.to,
        "data": CALL.data,
        "value": CALL.value,
        "gas": 100_000,
        "max_fee_per_gas": 2 * 10**9,
        "max_priority_fee_per_gas": 10**9,
    }
    return Transaction(**(fields | changes))


def keystore(path, *, password=b"secret", key=KEY, mode=0o600, change=lambda value: None, **options):
    value = create_keyfile_json(key, password, **({"kdf": "pbkdf2", "iterations": 10_000} | options))
    change(value)
    path.write_text(json.dumps(value))
    path.chmod(mode)
    return path


@pytest.mark.parametrize("key", [KEY, KEY.hex(), "0x" + KEY.hex(), " 0X" + KEY.hex().upper() + "\n", bytearray(KEY)])
def test_a_key_is_taken_in_any_usual_spelling(key):
    signer = LocalSigner.from_key(key)
    assert signer.address == ACCOUNT.address
    assert isinstance(signer, Signer)


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("", "empty"),
        ("0x", "empty"),
        ("ab" * 20, "looks like an address"),
        ("ab" * 64, "looks like a public key"),
        ("test test test test test test test test test test test junk", "mnemonic"),
        ("zz" * 32, "64 hex digits"),
        ("ab" * 31, "this has 62"),
        (b"\1" * 31, "31"),
        ("00" * 32, "out of range"),
        (b"\xff" * 32, "out of range"),
        (7, "int"),
        (None, "NoneType"),
    ],
)
def test_a_wrong_key_is_refused_with_advice_and_never_repeated(key, hint):
    with pytest.raises(ConfigError, match=hint) as caught:
        LocalSigner.from_key(key)
    text = key.hex() if isinstance(key, bytes) else str(key)
    assert len(text) < 5 or text not in str(caught.value) + repr(caught.value)


@pytest.mark.goal("SEC-01", part="local key")
async def test_a_transaction_is_type_2_and_what_eth_account_would_sign():
    signer = LocalSigner.from_key(KEY, guard=GUARD)
    signed = await signer.sign_transaction(transaction())
    expected = Account.sign_transaction(
        {
            "type": 2,
            "chainId": 31337,
            "nonce": 3,
            "to": CALL.to,
            "data": CALL.data,
            "value": CALL.value,
            "gas": 100_000,
            "maxFeePerGas": 2 * 10**9,
            "maxPriorityFeePerGas": 10**9,
        },
        KEY,
    )
    assert signed.raw == bytes(expected.raw_transaction)
    assert signed.raw[0] == 2
    assert signed.tx_hash == "0x" + keccak256(signed.raw).hex()


@pytest.mark.parametrize(
    "changes",
    [
        {"account_nonce": 0, "value": 0},
        {"account_nonce": 127},
        {"account_nonce": 128, "value": 2**255},
        {"data": CALL.data + bytes(60), "max_priority_fee_per_gas": 0},
        {"data": CALL.data + bytes(range(256)) * 300},
    ],
)
async def test_the_bytes_are_eth_accounts_for_every_size_of_field(changes):
    wanted = transaction(**changes)
    digest = signing_hash(wanted)
    signed = join_signature(wanted, sign_digest(KEY, digest))
    fields = {
        "type": 2,
        "chainId": wanted.chain_id,
        "nonce": wanted.account_nonce,
        "to": wanted.to,
        "value": wanted.value,
        "data": wanted.data,
        "gas": wanted.gas,
        "maxFeePerGas": wanted.max_fee_per_gas,
        "maxPriorityFeePerGas": wanted.max_priority_fee_per_gas,
    }
    assert signed.raw == bytes(Account.sign_transaction(fields, KEY).raw_transaction)
    assert split_signature(wanted, signed.raw) == sign_digest(KEY, digest)


@pytest.mark.goal("TX-06", part="signatures")
async def test_a_signature_has_65_bytes_and_v_27_or_28():
    signer = LocalSigner.from_key(KEY)
    for number in range(8):
        inner = keccak256(bytes([number]))
        signature = await signer.sign_personal(inner)
        assert len(signature) == 65
        assert signature[64] in (27, 28)
        assert recover_address(eip191_hash(inner), signature) == ACCOUNT.address


@pytest.mark.goal("SEC-09", part="guard")
async def test_a_transaction_for_another_chain_is_not_signed():
    signer = LocalSigner.from_key(KEY, guard=GUARD)
    with pytest.raises(RefusedToSignError, match="chain 1"):
        await signer.sign_transaction(transaction(chain_id=1))


async def test_without_a_guard_no_transaction_is_signed_and_there_is_one_guard_for_ever():
    signer = LocalSigner.from_key(KEY)
    with pytest.raises(RefusedToSignError, match="no guard"):
        await signer.sign_transaction(transaction())
    signer.arm(GUARD)
    signer.arm(GUARD)
    await signer.sign_transaction(transaction())
    with pytest.raises(ConfigError, match="another network"):
        signer.arm(network_guard(LOCAL, FeePolicy(max_gas=1)))


async def test_bad_fields_are_refused_without_the_key_in_any_traceback():
    signer = LocalSigner.from_key(KEY, guard=GUARD)
    with pytest.raises(RefusedToSignError) as caught:
        await signer.sign_transaction(transaction(account_nonce="seven"))
    trace = caught.value.__traceback__
    while trace is not None:
        assert KEY not in trace.tb_frame.f_locals.values()
        trace = trace.tb_next


@pytest.mark.goal("SEC-03", part="the signer")
@pytest.mark.goal("HRD-02", part="no attribute, pickle, copy or compare")
def test_the_key_is_in_no_repr_attribute_copy_or_pickle():
    signer = LocalSigner.from_key(KEY)
    assert repr(signer) == f"<LocalSigner {ACCOUNT.address}>"
    assert not hasattr(signer, "__dict__")
    shown = " ".join(repr(getattr(signer, name)) for name in dir(signer) if not name.startswith("__"))
    for spelling in (KEY.hex(), repr(KEY), repr(bytearray(KEY)), str(int.from_bytes(KEY, "big"))):
        assert spelling not in shown
    for act in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="can't be copied"):
            act(signer)
    assert signer != LocalSigner.from_key(KEY)


@pytest.mark.goal("HRD-02", part="documents state the limit")
def test_the_documents_say_who_can_read_the_key_all_the_same():
    text = " ".join((pathlib.Path(__file__).parents[2] / "README.md").read_text().split())
    assert "Other code in the same process, and root, can read the key." in text


@pytest.mark.goal("HRD-02", part="own buffer overwritten on close")
async def test_closing_overwrites_the_key_and_ends_signing():
    buffer = bytearray(KEY)
    signer = LocalSigner(buffer)
    signer.close()
    signer.close()
    assert buffer == bytes(32)
    with pytest.raises(ClosedError):
        await signer.sign_personal(bytes(32))


@pytest.mark.slow
def test_making_a_signer_imports_nothing_heavy_and_leaves_the_recursion_limit_alone():
    code = (
        "import sys; before = sys.getrecursionlimit(); from zg_async.transport.signer import LocalSigner;"
        "LocalSigner.from_key('11' * 32); assert 'eth_account' not in sys.modules;"
        "assert sys.getrecursionlimit() == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.goal("SEC-02", part="early refusal")
def test_a_signer_without_decryption_is_refused_with_advice():
    class Remote:
        address = ACCOUNT.address

        async def sign_personal(self, message):
            return b""

        async def sign_transaction(self, transaction):
            return None

    local = LocalSigner.from_key(KEY)
    assert isinstance(local, DecryptionKey)
    assert decryption_key(local) is local
    assert isinstance(Remote(), Signer)
    with pytest.raises(ConfigError, match="private key is at hand"):
        decryption_key(Remote())


# --- key files -------------------------------------------------------------------------------------------------------


@pytest.mark.goal("HRD-03", part="eth_keyfile and geth, both ways")
@pytest.mark.goal("SEC-01", part="keystore v3")
@pytest.mark.parametrize("options", [{}, {"kdf": "scrypt", "iterations": 4096}])
def test_a_key_file_opens_with_its_password(tmp_path, options):
    signer = LocalSigner.from_keystore(keystore(tmp_path / "k.json", **options), b"secret")
    assert signer.address == ACCOUNT.address


PUBLISHED = {
    "scrypt": {
        "cipher": "aes-128-ctr",
        "cipherparams": {"iv": "83dbcc02d8ccb40e466191a123791e0e"},
        "ciphertext": "d172bf743a674da9cdad04534d56926ef8358534d458fffccd4e6ad2fbde479c",
        "kdf": "scrypt",
        "kdfparams": {
            "dklen": 32,
            "n": 262144,
            "p": 8,
            "r": 1,
            "salt": "ab0c7876052600dd703518d6fc3fe8984592145b591fc8fb5c6d43190334ba19",
        },
        "mac": "2103ac29920d71da29f15d75b4a16dbe95cfd7ff8faea1056c33131d846e3097",
    },
    "pbkdf2": {
        "cipher": "aes-128-ctr",
        "cipherparams": {"iv": "6087dab2f9fdbbfaddc31a909735c1e6"},
        "ciphertext": "5318b4d5bcd28de64ee5559e671353e16f075ecae9f99c7a79a38af5f869aa46",
        "kdf": "pbkdf2",
        "kdfparams": {
            "c": 262144,
            "dklen": 32,
            "prf": "hmac-sha256",
            "salt": "ae3cd4e7013836a3df6bd7241b12db061dbe2c6785853cce422d148a624ce0bd",
        },
        "mac": "517ead924a9d0dc3124507e3393d175ce3ff7c1e96529c6c555ce9e51205e9b2",
    },
}
"""Web3 Secret Storage Definition, test vectors; geth's own tests have them."""


@pytest.mark.slow
@pytest.mark.goal("HRD-03", part="eth_keyfile and geth, both ways")
@pytest.mark.parametrize("kdf", sorted(PUBLISHED))
def test_the_published_examples_open(tmp_path, kdf):
    path = tmp_path / "k.json"
    path.write_text(json.dumps({"crypto": PUBLISHED[kdf], "id": "3198bc9c-6672-5ab3-d995-4942343ae5b6", "version": 3}))
    path.chmod(0o600)
    signer = LocalSigner.from_keystore(path, b"testpassword")
    assert signer.address == "0x008AeEda4D805471dF9b2A5B0f38A0C3bCBA786b"


def test_a_wrong_password_is_told_without_repeating_it(tmp_path):
    path = keystore(tmp_path / "k.json", password="pässword".encode())
    assert LocalSigner.from_keystore(path, "pässword".encode()).address == ACCOUNT.address
    with pytest.raises(ConfigError, match="wrong password") as caught:
        LocalSigner.from_keystore(path, b"hunter2")
    assert "hunter2" not in str(caught.value)


@pytest.mark.goal("HRD-03", part="no password normalisation")
def test_a_password_is_not_normalised(tmp_path):
    path = keystore(tmp_path / "k.json", password="é".encode())
    with pytest.raises(ConfigError, match="wrong password"):
        LocalSigner.from_keystore(path, "e\u0301".encode())
    with pytest.raises(ConfigError, match="bytes"):
        LocalSigner.from_keystore(path, "é")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620])
def test_a_file_that_others_can_read_is_refused_with_the_fix(tmp_path, mode):
    path = keystore(tmp_path / "k.json", mode=mode)
    with pytest.raises(ConfigError, match=f"chmod 600 {path}"):
        LocalSigner.from_keystore(path, b"secret")


@pytest.mark.goal("HRD-03", part="stated address")
def test_a_file_that_states_another_address_is_refused(tmp_path):
    path = keystore(tmp_path / "k.json", change=lambda v: v.update(address="ab" * 20))
    with pytest.raises(ConfigError, match="states another address"):
        LocalSigner.from_keystore(path, b"secret")


@pytest.mark.goal("HRD-03", part="KDF cost bounded")
@pytest.mark.parametrize(
    "params",
    [{"c": 1}, {"c": 10**9}, {"c": True}, {"c": "10000"}, {"dklen": 16}, {"prf": "hmac-md5"}],
)
def test_a_pbkdf2_cost_out_of_bounds_is_refused_before_it_is_paid(tmp_path, params):
    path = keystore(tmp_path / "k.json", change=lambda v: v["crypto"]["kdfparams"].update(params))
    with pytest.raises(ConfigError, match=r"costs too little or too much|no version 3"):
        LocalSigner.from_keystore(path, b"secret")


@pytest.mark.goal("HRD-03", part="KDF cost bounded")
@pytest.mark.parametrize(
    "params", [{"n": 2**21}, {"n": 1024}, {"r": 10**6}, {"p": 10**6}, {"n": 2**20, "r": 9}, {"r": 0}, {"n": 5000}]
)
def test_a_scrypt_cost_out_of_bounds_is_refused_before_it_is_paid(tmp_path, params):
    path = keystore(
        tmp_path / "k.json", kdf="scrypt", iterations=4096, change=lambda v: v["crypto"]["kdfparams"].update(params)
    )
    with pytest.raises(ConfigError, match=r"costs too little or too much|no version 3"):
        LocalSigner.from_keystore(path, b"secret")


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", '{"version": 3}', '{"version": 1, "crypto": {}}', "[" * 100_000, '{"crypto": 5}', "x" * 10**6],
)
def test_a_file_that_is_no_key_file_is_refused(tmp_path, text):
    path = tmp_path / "k.json"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=r"no version 3 keystore|larger than"):
        LocalSigner.from_keystore(path, b"secret")


@pytest.mark.slow
@pytest.mark.goal("HRD-03", part="500 damaged files")
def test_no_damage_of_a_file_gives_another_key_or_another_error(tmp_path):
    chance = random.Random(7)
    path = keystore(tmp_path / "k.json", kdf="scrypt", iterations=4096)
    whole = path.read_bytes()
    opened = 0
    for _ in range(500):
        data, at = bytearray(whole), chance.randrange(len(whole))
        match chance.randrange(4):
            case 0:
                data[at] ^= 1 << chance.randrange(8)
            case 1:
                del data[at : at + chance.randrange(1, 40)]
            case 2:
                data[at:at] = chance.randbytes(3)
            case _:
                data[at:] = b""
        path.write_bytes(data)
        try:
            signer = LocalSigner.from_keystore(path, b"secret")
        except ConfigError:
            continue
        opened += 1  # the damage was in the id, the salt's spelling or the like
        assert signer.address == ACCOUNT.address
    assert opened < 100


def test_a_missing_file_and_a_folder_are_told(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        LocalSigner.from_keystore(tmp_path / "none.json", b"")
    with pytest.raises(ConfigError, match=r"directory|regular"):
        LocalSigner.from_keystore(tmp_path, b"")
