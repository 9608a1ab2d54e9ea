"""Messages and signatures against the vectors of both SDKs."""

import pytest
from eth_keys.constants import SECPK1_N

from tests.golden import ids, private_key, unhex, vectors
from zg_async.errors import SignatureMismatchError
from zg_async.wire import signing
from zg_async.wire.hashing import hex0x, keccak256

FT = vectors("fine-tuning")
INFERENCE = vectors("inference")


def _hash_of(section: str, row: dict) -> bytes:
    match section:
        case "task_create_signature":
            return signing.task_create_hash(row["user_address"], int(row["nonce"]), row["dataset_hash"])
        case "task_cancel_signature":
            return signing.task_cancel_hash(row["task_id"])
        case "tee_download_signature":
            return signing.model_download_hash(row["task_id"], row["timestamp"])
        case _:
            return signing.dataset_upload_hash(row["path_user_address"], row["timestamp"])


SIGNED = [
    (section, row)
    for section in (
        "task_create_signature",
        "task_cancel_signature",
        "tee_download_signature",
        "dataset_upload_signature",
    )
    for row in FT[section]
]


@pytest.mark.goal("DOC-07", part="signatures")
@pytest.mark.parametrize(("section", "row"), SIGNED, ids=[r["id"] for _, r in SIGNED])
def test_what_a_wallet_signs_is_what_the_peers_sign(section, row):
    inner = _hash_of(section, row)
    assert hex0x(inner) == row["inner_hash"]
    signature = signing.sign_digest(private_key(row["signer"]), signing.eip191_hash(inner))
    assert signing.signature_hex(signature) == row["signature"]
    assert signing.recover_address(signing.eip191_hash(inner), signature) == FT["keys"][row["signer"]]["address"]


def test_a_hash_with_a_leading_zero_keeps_its_32_bytes():
    rows = [r for _, r in SIGNED if r["inner_hash"].startswith("0x00")]
    assert rows
    with pytest.raises(ValueError, match="32 bytes, not 31"):
        signing.eip191_hash(unhex(rows[0]["inner_hash"])[1:])


def test_upload_message_is_case_sensitive_in_the_path():
    address = FT["keys"]["alice"]["address"]
    assert signing.dataset_upload_hash(address, 1) != signing.dataset_upload_hash(address.lower(), 1)


def test_task_hash_covers_the_dataset_hash_as_text():
    user = FT["keys"]["alice"]["address"]
    assert signing.task_create_hash(user, 1, "0xAB") != signing.task_create_hash(user, 1, "0xab")
    assert signing.task_create_hash(user, 1, "0xAB") == signing.task_create_hash(user.lower(), 1, "0xAB")


@pytest.mark.parametrize("bad", ["", "nonsense", "de594986-253d-43d5-8ae4-6349207282d"])
def test_a_task_id_that_is_no_uuid_is_not_signed(bad):
    with pytest.raises(ValueError, match="UUID"):
        signing.task_cancel_hash(bad)


@pytest.mark.parametrize("row", FT["settlement_eip712"], ids=ids(FT["settlement_eip712"]))
def test_fine_tuning_settlement_digest(row):
    domain = signing.domain_separator(b"0G Fine-Tuning Serving", row["chain_id"], row["verifying_contract"])
    assert hex0x(domain) == row["domain_separator"]
    digest = signing.settlement_digest(
        chain_id=row["chain_id"],
        contract=row["verifying_contract"],
        id=row["task_id"],
        encrypted_secret=unhex(row["encrypted_secret"]),
        model_root_hash=unhex(row["model_root_hash"]),
        nonce=int(row["nonce"]),
        task_fee=int(row["task_fee"]),
        user=row["user"],
    )
    assert hex0x(digest) == row["digest"]
    key = private_key("tee_signer")
    assert signing.signature_hex(signing.sign_digest(key, digest)) == row["signature"]


CONTRACT_ROWS = [
    (bytes([4, *range(128)]), "90435451db679b70b85b5e4a88b8dbd4fe412a6c5e14c28964ad2e7ce8e862c3"),
    (b"", "824a197845eaf38cf6ac3b6bc70c952a149f665d01087755836a66203507cbc1"),
]


@pytest.mark.parametrize(("secret", "digest"), CONTRACT_ROWS)
def test_fine_tuning_settlement_digest_is_the_one_the_contract_accepted(secret, digest):
    made = signing.settlement_digest(
        chain_id=31337,
        contract="0xA51c1fc2f0D1a1b8494Ed1FE312d7C3a78Ed91C0",
        id="6b607314-88b0-4fef-91e7-43227a54de57",
        encrypted_secret=secret,
        model_root_hash=bytes(range(32)),
        nonce=17000000000000040,
        task_fee=179668154,
        user="0x70997970C51812dc3A010C7d01b50e0d17dc79C8",
    )
    assert made.hex() == digest


def test_inference_settlement_digest_is_the_one_the_contract_accepted():
    digest = signing.tee_settlement_digest(
        chain_id=31337,
        contract="0x0165878A594ca255338adfa4d48449f69242Eb8F",
        requests_hash=b"\x11" * 32,
        nonce=7,
        provider="0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC",
        user="0x70997970C51812dc3A010C7d01b50e0d17dc79C8",
        total_fee=10**18,
    )
    assert digest.hex() == "a0c65c5871cc4136bc3156d3f1db11178d10ec2630e36bdeb2d7f0734a19960d"


def test_inference_settlement_digest():
    row = INFERENCE["settlement_eip712"]
    message, domain = row["typed_data"]["message"], row["typed_data"]["domain"]
    digest = signing.tee_settlement_digest(
        chain_id=domain["chainId"],
        contract=domain["verifyingContract"],
        requests_hash=unhex(message["requestsHash"]),
        nonce=message["nonce"],
        provider=message["provider"],
        user=message["user"],
        total_fee=message["totalFee"],
    )
    assert hex0x(digest) == row["digest"]


@pytest.mark.parametrize("row", INFERENCE["session_tokens"], ids=ids(INFERENCE["session_tokens"]))
def test_session_token_bytes(row):
    expect = row["expect"]
    fields, raw, signature = signing.decode_session_token(expect["api_key"])
    assert raw == expect["raw_message"]
    assert (fields.token_id, fields.generation, fields.expires_at_ms) == (
        expect["token_id"],
        expect["generation"],
        expect["expires_at"],
    )
    made = signing.session_token_json(
        address=fields.address,
        provider=fields.provider,
        timestamp_ms=row["timestamp_ms"],
        expires_at_ms=expect["expires_at"],
        nonce=row["nonce"],
        generation=expect["generation"],
        token_id=expect["token_id"],
    )
    assert made == expect["raw_message"]
    inner = signing.session_token_hash(made)
    assert hex0x(inner) == expect["message_keccak256"]
    assert hex0x(signing.eip191_hash(inner)) == expect["eip191_digest"]
    own = signing.sign_digest(unhex(row["private_key"]), signing.eip191_hash(inner))
    assert own == signature
    assert signing.encode_session_token(made, own) == expect["api_key"]


@pytest.mark.parametrize("bad", ["", "app-sk-", "app-sk-***", "app-sk-e30=", "sk-e30=", "app-sk-" + "A" * 9000])
def test_a_malformed_token_is_refused_without_being_repeated(bad):
    with pytest.raises(ValueError, match=r"invalid|missing") as caught:
        signing.decode_session_token(bad)
    assert bad not in str(caught.value) or not bad


def test_a_token_nonce_cannot_hold_the_separator():
    with pytest.raises(ValueError, match=r"\|"):
        signing.session_token_json(
            address="", provider="", timestamp_ms=0, expires_at_ms=0, nonce="a|b", generation=0, token_id=0
        )


@pytest.mark.goal("TX-06", part="signatures")
def test_signatures_are_65_bytes_with_0x_once_and_v_27_or_28():
    key = private_key("alice")
    for n in range(8):
        signature = signing.sign_digest(key, keccak256(bytes([n])))
        text = signing.signature_hex(signature)
        assert len(signature) == 65
        assert signature[64] in (27, 28)
        assert text.startswith("0x")
        assert text.count("0x") == 1
        assert len(text) == 132
        assert int.from_bytes(signature[32:64], "big") <= SECPK1_N // 2


def test_raw_recovery_bytes_are_written_as_27_and_28():
    assert signing.signature_hex(bytes(64) + b"\0")[-2:] == "1b"
    assert signing.signature_hex(bytes(64) + b"\x01")[-2:] == "1c"
    assert signing.signature_hex(bytes(64) + b"\x1c")[-2:] == "1c"


@pytest.mark.parametrize("bad", [b"", bytes(64), bytes(66), bytes(64) + b"\x02", bytes(64) + b"\x1d"])
def test_what_is_no_signature_is_not_written(bad):
    with pytest.raises(ValueError, match="65 bytes"):
        signing.signature_hex(bad)


def test_recovery_takes_both_forms_of_v():
    digest = keccak256(b"x")
    signature = signing.sign_digest(private_key("bob"), digest)
    raw = signature[:64] + bytes([signature[64] - 27])
    assert signing.recover_address(digest, signature) == signing.recover_address(digest, raw)
    public = signing.recover_public_key(digest, raw)
    assert hex0x(public) == FT["keys"]["bob"]["public_key_uncompressed"]


@pytest.mark.goal("HRD-20", part="high s")
def test_signatures_nobody_can_have_made_are_refused():
    digest = keccak256(b"x")
    good = signing.sign_digest(private_key("bob"), digest)
    s = int.from_bytes(good[32:64], "big")
    high_s = good[:32] + (SECPK1_N - s).to_bytes(32, "big") + bytes([55 - good[64]])
    no_point = (5).to_bytes(32, "big") + good[32:]
    for bad in (
        b"",
        good[:64],
        good + b"\0",
        bytes(65),
        good[:64] + b"\x05",
        high_s,
        b"\xff" * 32 + good[32:],
        no_point,
    ):
        with pytest.raises(SignatureMismatchError):
            signing.recover_address(digest, bad)


@pytest.mark.parametrize("bad", [b"", bytes(32), b"\xff" * 32, b"\1" * 31])
def test_a_bad_private_key_is_refused_without_being_shown(bad):
    with pytest.raises(ValueError, match=r"^not a private key$"):
        signing.sign_digest(bad, bytes(32))


def test_a_digest_has_32_bytes():
    with pytest.raises(ValueError, match="32 bytes"):
        signing.sign_digest(private_key("bob"), b"short")


def test_personal_text_hash_is_that_of_the_peers():
    row = INFERENCE["signature_verification"][0]
    assert signing.recover_address(signing.personal_text_hash(row["text"]), unhex(row["signature"])) == row["address"]


def test_request_nonce_has_the_peers_magnitude_and_always_grows():
    assert signing.next_request_nonce(1_767_225_600.123, 0) == 17672256001230040
    assert signing.next_request_nonce(1_767_225_600.123, 10**18) == 10**18 + 1
