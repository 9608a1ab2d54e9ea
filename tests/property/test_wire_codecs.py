"""Codecs: round trips, and any split of a stream gives the same result."""

import dataclasses

import pytest
from eth_abi import decode as oracle_decode
from eth_abi import encode as oracle_encode
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.golden import private_key, vectors
from zg_async.wire import contract_abi, envelope
from zg_async.wire.contract_abi import AbiDataError, Param
from zg_async.wire.envelope import (
    ModelDecryptor,
    ModelEncryptor,
    decrypt_model,
    ecies_decrypt,
    ecies_encrypt,
    public_key,
)
from zg_async.wire.hashing import checksum_address
from zg_async.wire.provider_api import LogParser
from zg_async.wire.rows import DatasetChecker
from zg_async.wire.signing import (
    decode_session_token,
    encode_session_token,
    public_key_address,
    recover_address,
    session_token_json,
    sign_digest,
    signature_hex,
)

SIGNER = vectors("fine-tuning")["keys"]["tee_signer"]["address"]


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    ends = sorted({min(c, len(data)) for c in cuts} | {len(data)})
    return [data[a:b] for a, b in zip([0, *ends], ends, strict=False)]


CUTS = st.lists(st.integers(0, 4000), max_size=12)

# --- ABI -------------------------------------------------------------------------------------------------------------


@st.composite
def typed(draw, depth: int = 2):
    """A parameter and a strategy for its values."""
    plain = {
        "uint256": st.integers(0, 2**256 - 1),
        "uint8": st.integers(0, 255),
        "bool": st.booleans(),
        "address": st.binary(min_size=20, max_size=20).map(checksum_address),
        "bytes32": st.binary(min_size=32, max_size=32),
        "bytes": st.binary(max_size=70),
        "string": st.text(max_size=40),
    }
    choice = draw(st.sampled_from([*plain, "array", "struct"] if depth else list(plain)))
    if choice == "array":
        item, values = draw(typed(depth=depth - 1))
        return Param("", item.type + "[]", item.components), st.lists(values, max_size=3).map(tuple)
    if choice == "struct":
        fields = [draw(typed(depth=depth - 1)) for _ in range(draw(st.integers(1, 3)))]
        kind = f"({','.join(p.type for p, _ in fields)})"
        return Param("", kind, tuple(p for p, _ in fields)), st.tuples(*(v for _, v in fields))
    return Param("", choice), plain[choice]


@st.composite
def parameters(draw):
    pairs = [draw(typed()) for _ in range(draw(st.integers(1, 3)))]
    pairs = [p for p in pairs if not p[0].type.endswith("[][]")]
    return [p for p, _ in pairs], tuple(draw(v) for _, v in pairs)


def lower(value):
    if isinstance(value, list | tuple):
        return tuple(map(lower, value))
    return value.lower() if isinstance(value, str) and value.startswith("0x") and len(value) == 42 else value


@pytest.mark.slow
@given(parameters())
def test_abi_decoder_agrees_with_eth_abi(case):
    params, values = case
    kinds = [p.type for p in params]
    data = oracle_encode(kinds, values)
    assert contract_abi.encode(params, values) == data
    assert lower(contract_abi.decode(params, data)) == lower(oracle_decode(kinds, data)) == lower(values)


@pytest.mark.slow
@given(parameters(), st.binary(max_size=400))
def test_abi_decoder_raises_only_its_own_error(case, noise):
    params, _ = case
    try:
        contract_abi.decode(params, noise)
    except AbiDataError:
        return


# --- envelope --------------------------------------------------------------------------------------------------------


def sign_tags(digest: bytes) -> bytes:
    return sign_digest(private_key("tee_signer"), digest)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.binary(min_size=1, max_size=2000), CUTS, CUTS, st.sampled_from([64, 256, 1000, 4096]))
def test_any_split_of_a_model_gives_the_same_file_and_the_same_plaintext(plaintext, cuts, others, chunk):
    files, plains = set(), set()
    for backend in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(envelope, "_has_cryptography", lambda backend=backend: backend)
            encryptor = ModelEncryptor(b"k" * 32, b"\xff" * 12, sign_tags, chunk=chunk)
            body = b"".join(p for piece in pieces_of(plaintext, cuts) for p in encryptor.update(piece))
            body += b"".join(encryptor.finish())
            data = encryptor.signature + body[65:]
            files.add(data)
            plains.add(decrypt_model(b"k" * 32, pieces_of(data, others), expected_signer=SIGNER, chunk=chunk))
    assert len(files) == 1
    assert plains == {plaintext}


@given(st.binary(max_size=400), CUTS)
def test_noise_never_opens(data, cuts):
    decryptor = ModelDecryptor(b"k" * 32, expected_signer=SIGNER, chunk=64)
    try:
        for piece in pieces_of(data, cuts):
            decryptor.update(piece)
        decryptor.finish()
    except envelope.EnvelopeError:
        return
    pytest.fail("noise was accepted")


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(st.integers(1, 2**200), st.binary(max_size=100))
def test_wrapping_round_trip(number, plaintext):
    key = number.to_bytes(32, "big")
    blob = ecies_encrypt(public_key(key), plaintext)
    if plaintext:
        assert ecies_decrypt(key, blob) == plaintext
    assert len(blob) == len(plaintext) + 97


# --- signing ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(st.integers(1, 2**200), st.binary(min_size=32, max_size=32))
def test_signatures_recover_to_their_signer_and_are_canonical(number, digest):
    key = number.to_bytes(32, "big")
    signature = sign_digest(key, digest)
    assert recover_address(digest, signature) == public_key_address(public_key(key))
    assert bytes.fromhex(signature_hex(signature)[2:]) == signature


@given(st.text().filter(lambda t: "|" not in t and t.isprintable()), st.integers(0, 2**63 - 1), st.integers(0, 255))
def test_session_tokens_round_trip(nonce, number, token_id):
    raw = session_token_json(
        address="0xA",
        provider="0xB",
        timestamp_ms=number,
        expires_at_ms=number,
        nonce=nonce,
        generation=number,
        token_id=token_id,
    )
    signature = bytes(64) + b"\x1b"
    fields, found, got = decode_session_token(encode_session_token(raw, signature))
    assert (found, got) == (raw, signature)
    assert (fields.nonce, fields.generation, fields.token_id) == (nonce, number, token_id)


# --- streams of lines ------------------------------------------------------------------------------------------------

LINES = st.lists(
    st.sampled_from(
        [
            b'{"instruction":"a","output":"b"}',
            b'{"messages":[{"role":"user","content":"x"},{"role":"assistant","content":"y"}]}',
            b'{"text":"z"}',
            b"not json",
            b"\xff",
            b" \t\r",
            b"",
            b"[1]",
        ]
    ),
    max_size=8,
)


@pytest.mark.slow
@given(LINES, CUTS, st.booleans())
def test_any_split_of_a_dataset_gives_the_same_report(lines, cuts, end):
    data = b"\n".join(lines) + (b"\n" if end else b"")
    reports = []
    for pieces in ([data], pieces_of(data, cuts), [bytes([b]) for b in data]):
        checker = DatasetChecker()
        for piece in pieces:
            checker.feed(piece)
        reports.append(checker.finish())
    assert reports[0] == reports[1] == reports[2]


LOG = st.lists(
    st.sampled_from(
        [
            b"[2026-01-01T00:00:00Z] creating task....\n",
            b"{'loss': 2.5, 'grad_norm': 1.0, 'learning_rate': 1e-05, 'epoch': 0.5}\n",
            b"\x01\x00\x00\x00\x00\x00\x00\x0a",
            b"\x02\x00\x00\x00\x00\x00\x1f\xffStep: 7, Logs: {'loss': '1.25'}\n",
            "Training é\r\n".encode(),
            b"x" * 20_000,
            b"\n",
        ]
    ),
    max_size=8,
).map(b"".join)


@pytest.mark.slow
@given(LOG, st.lists(st.integers(0, 40_000), max_size=8))
def test_any_split_of_a_log_gives_the_same_entries(data, cuts):
    results = []
    for pieces in ([data], pieces_of(data, cuts)):
        parser = LogParser()
        entries = [e for piece in pieces for e in parser.feed(piece)]
        results.append([dataclasses.astuple(e) for e in (*entries, *parser.finish())])
    assert results[0] == results[1]


@given(st.binary(max_size=300) | st.text(max_size=300))
def test_no_log_makes_the_parser_raise(data):
    parser = LogParser()
    parser.feed(data)
    parser.finish()
