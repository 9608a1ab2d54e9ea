"""Key wrapping and model files against the vectors of both peers, and everything that must fail closed."""

import base64
import hashlib
import os
import tracemalloc
from collections.abc import Iterator

import pytest

from tests.golden import ids, private_key, stream, unhex, vectors
from zg_async.errors import EnvelopeError, SignatureMismatchError, VerificationError
from zg_async.wire import envelope
from zg_async.wire.envelope import (
    MODEL_CHUNK,
    ModelDecryptor,
    ModelEncryptor,
    decrypt_model,
    ecies_decrypt,
    ecies_encrypt,
    encrypt_model,
    encrypted_size,
    plain_size,
    public_key,
    unwrap_key,
)
from zg_async.wire.hashing import keccak256
from zg_async.wire.signing import recover_address, sign_digest

FT = vectors("fine-tuning")
INLINE = [r for r in FT["model_files"] if "encrypted_base64" in r]
LARGE = [r for r in FT["model_files"] if "encrypted_base64" not in r]
SIGNER = FT["keys"]["tee_signer"]["address"]


def sign_tags(digest: bytes) -> bytes:
    return sign_digest(private_key("tee_signer"), digest)


@pytest.fixture(params=["cryptography", "pycryptodome"])
def backend(request, monkeypatch):
    monkeypatch.setattr(envelope, "_has_cryptography", lambda: request.param == "cryptography")


@pytest.fixture(params=["coincurve", "python"])
def curve(request, monkeypatch):
    if request.param == "coincurve":
        if folder := os.environ.get("ZG_COINCURVE"):
            monkeypatch.syspath_prepend(folder)
        pytest.importorskip("coincurve")
    monkeypatch.setattr(envelope, "_has_coincurve", lambda: request.param == "coincurve")


# --- key wrapping ----------------------------------------------------------------------------------------------------


@pytest.mark.goal("DOC-07", part="ECIES")
@pytest.mark.parametrize("row", FT["ecies"], ids=ids(FT["ecies"]))
def test_keys_wrapped_by_every_peer_open(row, backend, curve):
    key = private_key(row["recipient"])
    for field in ("encrypted", "encrypted_by_eciesjs", "encrypted_by_eciespy"):
        blob = unhex(row[field])
        assert ecies_decrypt(key, blob) == unhex(row["plaintext"])
        if row["valid_model_key"]:
            assert unwrap_key(key, blob) == unhex(row["plaintext"])
        else:
            with pytest.raises(EnvelopeError):
                unwrap_key(key, blob)


@pytest.mark.goal("DOC-07", part="ECIES")
@pytest.mark.parametrize("row", FT["ecies"], ids=ids(FT["ecies"]))
def test_wrapping_gives_the_vectors_bytes(row, backend, curve):
    made = ecies_encrypt(
        public_key(private_key(row["recipient"])),
        unhex(row["plaintext"]),
        ephemeral_key=unhex(row["ephemeral_private_key"]),
        nonce=unhex(row["nonce"]),
    )
    assert made == unhex(row["encrypted"])
    assert len(made) == row["encrypted_length"]


@pytest.mark.parametrize("row", FT["ecies_negative"], ids=ids(FT["ecies_negative"]))
def test_bad_wrapped_keys_fail_alike(row, backend, curve):
    key = private_key(row["recipient"])
    with pytest.raises(EnvelopeError) as one:
        unwrap_key(key, unhex(row["encrypted"]))
    with pytest.raises(EnvelopeError) as two:
        ecies_decrypt(key, unhex(row["encrypted"]))
    assert str(one.value) == str(two.value) == envelope._BAD_KEY


@pytest.mark.goal("HRD-20", part="points off the curve and at infinity")
def test_points_off_the_curve_and_at_infinity_are_refused(curve):
    key = private_key("alice")
    good = ecies_encrypt(public_key(key), b"\1" * 32)
    x, y = good[1:33], good[33:65]
    off = (int.from_bytes(y, "big") ^ 1).to_bytes(32, "big")
    large = (envelope.SECPK1_P + 1).to_bytes(32, "big")
    for point in (bytes(65), b"\4" + bytes(64), b"\4" + x + off, b"\2" + x + y, b"\4" + large + y, b"\4" + x + large):
        with pytest.raises(EnvelopeError):
            unwrap_key(key, point + good[65:])
    with pytest.raises(EnvelopeError):
        ecies_encrypt(bytes(65), b"x")


def test_wrapping_takes_fresh_randomness():
    to = public_key(private_key("bob"))
    assert ecies_encrypt(to, b"k" * 32)[:81] != ecies_encrypt(to, b"k" * 32)[:81]


@pytest.mark.parametrize("bad", [b"", bytes(32), b"\xff" * 32, bytes(31)])
def test_a_bad_private_key_is_refused_without_being_shown(bad, curve):
    for call in (lambda: public_key(bad), lambda: ecies_decrypt(bad, bytes(129)), lambda: unwrap_key(bad, bytes(129))):
        with pytest.raises(ValueError, match=r"^not a private key$"):
            call()


# --- model files -----------------------------------------------------------------------------------------------------


@pytest.mark.goal("DEL-06", part="vectors")
@pytest.mark.goal("DOC-07", part="model files")
@pytest.mark.parametrize("row", INLINE, ids=ids(INLINE))
def test_model_files_of_the_peers_open(row, backend):
    data = base64.b64decode(row["encrypted_base64"])
    assert hashlib.sha256(data).hexdigest() == row["encrypted_sha256"]
    assert "0x" + keccak256(data).hex() == row["encrypted_keccak256"]
    chunk = row["chunk_plaintext_length"]
    plaintext = decrypt_model(unhex(row["aes_key"]), [data], expected_signer=row["tag_signer"], chunk=chunk)
    assert plaintext == stream(row["plaintext_seed"], row["plaintext_length"])
    assert hashlib.sha256(plaintext).hexdigest() == row["plaintext_sha256"]
    assert plain_size(len(data), chunk=chunk) == len(plaintext)
    assert encrypted_size(len(plaintext), chunk=chunk) == len(data)


@pytest.mark.parametrize("row", INLINE, ids=ids(INLINE))
def test_encrypting_gives_the_vectors_bytes(row, backend):
    plaintext = stream(row["plaintext_seed"], row["plaintext_length"])
    made = encrypt_model(
        unhex(row["aes_key"]), unhex(row["first_nonce"]), plaintext, sign_tags, chunk=row["chunk_plaintext_length"]
    )
    data = base64.b64decode(row["encrypted_base64"])
    assert made[65:] == data[65:]
    assert made[:64] == data[:64]
    assert made[64] == data[64] % 27  # providers write 0 or 1


@pytest.mark.slow
@pytest.mark.goal("DEL-06", part="64 MiB chunks")
@pytest.mark.goal("DEL-06", part="constant memory")
@pytest.mark.parametrize("row", LARGE, ids=ids(LARGE))
def test_64_mib_chunks_by_the_generation_rule(row):
    whole, plain = hashlib.sha256(), hashlib.sha256()
    encryptor = ModelEncryptor(unhex(row["aes_key"]), unhex(row["first_nonce"]), sign_tags)
    decryptor = ModelDecryptor(unhex(row["aes_key"]), expected_signer=row["tag_signer"])
    body: list[bytes] = []
    for piece in stream_pieces(row["plaintext_seed"], row["plaintext_length"]):
        body += encryptor.update(piece)
    body += encryptor.finish()
    body[0] = encryptor.signature + body[0][65:]
    assert sum(map(len, body)) == row["encrypted_length"] == encrypted_size(row["plaintext_length"])
    assert encryptor.signature == unhex(row["tag_signature"])
    tracemalloc.start()
    for piece in body:
        whole.update(piece)
        for part in decryptor.update(piece):
            plain.update(part)
    decryptor.finish()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert whole.hexdigest() == row["encrypted_sha256"]
    assert plain.hexdigest() == row["plaintext_sha256"]
    assert peak < 8 * 1024 * 1024


def stream_pieces(seed: str, length: int) -> Iterator[bytes]:
    size = 1024 * 1024
    prefix = seed.encode()
    for start in range(0, length, size):
        part = min(size, length - start)
        blocks = range(start // 32, (start + part + 31) // 32)
        yield b"".join(hashlib.sha256(prefix + i.to_bytes(8, "big")).digest() for i in blocks)[:part]


@pytest.mark.goal("DEL-06", part="fails closed")
@pytest.mark.parametrize("row", FT["model_files_negative"], ids=ids(FT["model_files_negative"]))
def test_bad_model_files_fail_closed(row, backend):
    expected = SignatureMismatchError if row["expect"] == "signer-mismatch" else EnvelopeError
    with pytest.raises(expected):
        decrypt_model(
            unhex(row["aes_key"]), [base64.b64decode(row["encrypted_base64"])], expected_signer=row["expected_signer"]
        )


def small_file() -> bytes:
    return encrypt_model(b"k" * 32, b"n" * 12, bytes(range(256)) * 3, sign_tags, chunk=256)


@pytest.mark.goal("DEL-06", part="fails closed")
def test_no_prefix_of_a_file_is_accepted():
    data = small_file()
    for end in range(len(data)):
        with pytest.raises(VerificationError):
            decrypt_model(b"k" * 32, [data[:end]], expected_signer=SIGNER, chunk=256)


@pytest.mark.goal("DEL-06", part="fails closed")
@pytest.mark.parametrize("extra", [1, 15, 16, 17, 272, 300])
def test_extra_bytes_are_refused(extra):
    with pytest.raises(VerificationError):
        decrypt_model(b"k" * 32, [small_file() + bytes(extra)], expected_signer=SIGNER, chunk=256)


@pytest.mark.goal("DEL-06", part="fails closed")
def test_chunks_cannot_be_repeated_dropped_or_swapped():
    data = small_file()
    head, one, two, three = data[:77], data[77:349], data[349:621], data[621:]
    for body in (one + two, one + one + two + three, two + one + three, one + three, three):
        with pytest.raises(VerificationError):
            decrypt_model(b"k" * 32, [head + body], expected_signer=SIGNER, chunk=256)


@pytest.mark.goal("DEL-06", part="fails closed")
def test_any_changed_byte_is_refused():
    data = small_file()
    for at in range(0, len(data), 7):
        bad = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        with pytest.raises(VerificationError):
            decrypt_model(b"k" * 32, [bad], expected_signer=SIGNER, chunk=256)


def test_nothing_is_proven_before_finish():
    data = small_file()
    decryptor = ModelDecryptor(b"k" * 32, expected_signer=FT["keys"]["bob"]["address"], chunk=256)
    assert b"".join(decryptor.update(data)) == bytes(range(256)) * 3
    with pytest.raises(SignatureMismatchError, match="expected was"):
        decryptor.finish()


def test_the_signer_is_compared_without_regard_to_case():
    assert decrypt_model(b"k" * 32, [small_file()], expected_signer=SIGNER.lower(), chunk=256)


def test_a_key_of_another_length_is_refused():
    with pytest.raises(EnvelopeError):
        ModelDecryptor(b"k" * 16, expected_signer=SIGNER)


def test_an_empty_model_is_not_encrypted():
    with pytest.raises(ValueError, match="empty"):
        encrypt_model(b"k" * 32, b"n" * 12, b"", sign_tags)


def test_the_signature_covers_the_tags_without_a_prefix():
    encryptor = ModelEncryptor(b"k" * 32, b"n" * 12, sign_tags, chunk=256)
    body = b"".join((*encryptor.update(bytes(300)), *encryptor.finish()))
    assert body[:65] == bytes(65)
    tags = body[77 + 256 : 77 + 272] + body[-16:]
    assert recover_address(keccak256(tags), encryptor.signature) == SIGNER


@pytest.mark.parametrize("size", [1, 2, MODEL_CHUNK - 1, MODEL_CHUNK, MODEL_CHUNK + 1, 3 * MODEL_CHUNK, 10**11])
def test_sizes_are_inverse(size):
    assert plain_size(encrypted_size(size)) == size


@pytest.mark.parametrize("size", [0, 76, 77, 93, 77 + MODEL_CHUNK + 16 + 1, 77 + MODEL_CHUNK + 16 + 16])
def test_impossible_sizes_are_refused(size):
    with pytest.raises(EnvelopeError):
        plain_size(size)
