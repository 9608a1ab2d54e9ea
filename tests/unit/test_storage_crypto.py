import pytest

from tests.golden import unhex, vectors
from zg_async.errors import EnvelopeError
from zg_async.wire.envelope import public_key
from zg_async.wire.merkle import MerkleHasher, fragments
from zg_async.wire.storage_crypto import StorageDecryptor, open_header, seal_for, seal_with_key

ROWS = vectors("storage")["encryption"]
KEY, NONCE, V2 = unhex(ROWS["key"]), unhex(ROWS["nonce"]), ROWS["v2"]
PRIVATE = unhex(V2["recipientPriv"])


def plain(size: int) -> bytes:
    return bytes((31 * i + 7) % 256 for i in range(size))


def root(data: bytes) -> bytes:
    hasher = MerkleHasher()
    hasher.update(data)
    return hasher.digest()


def decrypt(data: bytes, step: int, **keys) -> bytes:
    decryptor = StorageDecryptor(**keys)
    text = b"".join(decryptor.update(data[at : at + step]) for at in range(0, len(data), step))
    decryptor.finish()
    return text


@pytest.mark.parametrize("row", ROWS["v1"], ids=lambda r: str(r["plaintextSize"]))
def test_version_1_is_the_reference_one(row):
    text = plain(row["plaintextSize"])
    cipher = seal_with_key(KEY, nonce=NONCE)
    stored = cipher.stored(0, text)
    assert cipher.header == unhex(row["headerHex"])
    assert len(stored) == row["encryptedSize"]
    if "encryptedHex" in row:
        assert stored == unhex(row["encryptedHex"])
    assert root(stored) == unhex(row["root"])
    assert decrypt(stored, 7 if len(text) < 1000 else 65_521, key=KEY) == text


@pytest.mark.goal("STO-07")
def test_both_headers_are_read_and_written_as_the_peers_do():
    recipient, ephemeral = unhex(V2["recipientPub"]), unhex(V2["ephemeralPriv"])
    sealed = [(row, seal_with_key(KEY, nonce=NONCE)) for row in ROWS["v1"]]
    sealed.append((V2, seal_for(recipient, ephemeral_key=ephemeral, nonce=unhex(V2["nonce"]))))
    for row, cipher in sealed:
        text = plain(row["plaintextSize"])
        stored = cipher.stored(0, text)
        assert root(stored) == unhex(row["root"])
        assert stored == unhex(row.get("encryptedHex", "0x")) or "encryptedHex" not in row
        assert decrypt(stored, 65_521, key=KEY, private_key=PRIVATE) == text


@pytest.mark.parametrize("row", ROWS["cryptAt"], ids=lambda r: str(r["offset"]))
def test_the_key_stream_begins_anywhere(row):
    cipher = seal_with_key(KEY, nonce=unhex(row["nonce"]))
    assert cipher.apply(int(row["offset"]), plain(row["len"])) == unhex(row["result"])


def test_version_2_is_the_reference_one():
    cipher = seal_for(unhex(V2["recipientPub"]), ephemeral_key=unhex(V2["ephemeralPriv"]), nonce=unhex(V2["nonce"]))
    stored = cipher.stored(0, plain(V2["plaintextSize"]))
    assert cipher.header == unhex(V2["headerHex"])
    assert stored == unhex(V2["encryptedHex"])
    assert root(stored) == unhex(V2["root"])
    for step in (1, 49, 50, 51, 1000):
        assert decrypt(stored, step, private_key=PRIVATE) == plain(V2["plaintextSize"])


def test_an_uncompressed_public_key_serves_as_well():
    sealed = [
        seal_for(key, ephemeral_key=b"e" * 32, nonce=NONCE) for key in (unhex(V2["recipientPub"]), public_key(PRIVATE))
    ]
    assert sealed[0] == sealed[1]


def test_every_file_gets_another_key_stream():
    assert seal_with_key(KEY).header != seal_with_key(KEY).header
    pair = [seal_for(unhex(V2["recipientPub"])) for _ in range(2)]
    assert pair[0].header != pair[1].header
    assert open_header(pair[0].header, private_key=PRIVATE) == pair[0]


def test_fragments_share_one_header_and_one_key_stream():
    text = plain(1000)
    cipher = seal_with_key(KEY, nonce=NONCE)
    whole = cipher.stored(0, text)
    parts = [whole[at : at + size] for at, size in fragments(len(whole), 256)]
    assert len(parts) == 4
    assert cipher.apply(256 - 17, parts[1]) == text[256 - 17 : 512 - 17]
    assert decrypt(b"".join(parts), 256, key=KEY) == text


@pytest.mark.parametrize(
    ("data", "keys"),
    [
        (b"", {"key": KEY}),
        (b"\x00" * 50, {"key": KEY}),
        (b"\x03" * 50, {"key": KEY, "private_key": PRIVATE}),
        (b"\x01" * 16, {"key": KEY}),
        (b"\x01" * 17, {"private_key": PRIVATE}),
        (b"\x02" * 50, {"key": KEY}),
        (b"\x02\x02" + b"\xff" * 48, {"private_key": PRIVATE}),
        (b"\x02\x02" + (5).to_bytes(32, "big") + NONCE, {"private_key": PRIVATE}),
        (b"\x02\x04" + bytes(48), {"private_key": PRIVATE}),
        (unhex(V2["headerHex"])[:49], {"private_key": PRIVATE}),
        (b"\x01" * 17, {}),
    ],
)
def test_a_header_that_cannot_be_opened_is_an_envelope_error(data, keys):
    with pytest.raises(EnvelopeError):
        open_header(data, **keys)
    with pytest.raises(EnvelopeError):
        decrypt(data, 10, **keys)


@pytest.mark.parametrize(
    "point", [b"", b"\x02" + bytes(31), b"\x05" + bytes(32), b"\x02" + b"\xff" * 32, b"\x04" + bytes(64)]
)
def test_what_is_no_point_is_not_encrypted_for(point):
    with pytest.raises(EnvelopeError):
        seal_for(point)


@pytest.mark.parametrize("make", [lambda: seal_with_key(b"k"), lambda: seal_with_key(KEY, nonce=b"n" * 12)])
def test_a_wrong_length_is_a_value_error(make):
    with pytest.raises(ValueError, match="32 bytes"):
        make()


def test_a_private_key_out_of_range_is_a_value_error():
    with pytest.raises(ValueError, match="private key"):
        open_header(unhex(V2["headerHex"]), private_key=bytes(32))


def test_the_key_is_not_shown():
    assert KEY.hex() not in repr(seal_with_key(KEY))
    assert repr(KEY) not in repr(seal_with_key(KEY))
