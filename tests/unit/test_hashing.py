import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.golden import stream, unhex, vectors
from zg_async.errors import ConfigError
from zg_async.wire.hashing import Keccak256, checksum_address, hex0x, keccak256, parse_address

ALICE = "0x670856BDb03d9cCf66AB545F8f52037bE1e4de47"


def test_keccak_of_nothing_is_the_known_value():
    assert keccak256(b"").hex() == "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"


def test_streamed_keccak_is_keccak():
    row = next(r for r in vectors("fine-tuning")["dataset_hash"] if "content_rule" in r)
    data = stream(row["content_rule"]["stream_seed"], row["length"])
    state = Keccak256()
    for at in range(0, len(data), 65_521):
        state.update(memoryview(data)[at : at + 65_521])
    assert hex0x(state.digest()) == row["dataset_hash"]


def test_digest_may_be_read_while_feeding_goes_on():
    state = Keccak256()
    state.update(b"a")
    assert state.digest() == keccak256(b"a")
    state.update(b"b")
    assert state.digest() == keccak256(b"ab")


@pytest.mark.parametrize("spelling", [ALICE, ALICE.lower(), ALICE[2:], ALICE.upper(), "0X" + ALICE[2:]])
def test_every_hex_spelling_becomes_the_checksummed_one(spelling):
    assert checksum_address(spelling) == ALICE
    assert checksum_address(unhex(ALICE)) == ALICE


@pytest.mark.parametrize("bad", ["", "0x", ALICE[:-1], ALICE + "0", "0x" + "g" * 40, ALICE + "\n", b"\0" * 19])
def test_what_is_no_address_is_a_value_error(bad):
    with pytest.raises(ValueError, match="address"):
        checksum_address(bad)


@pytest.mark.goal("TX-06", part="addresses")
def test_user_address_is_checksummed():
    assert parse_address(f" {ALICE.lower()} ") == ALICE
    assert parse_address(ALICE.upper().replace("0X", "0x")) == ALICE


def test_user_address_with_a_wrong_checksum_is_refused():
    with pytest.raises(ConfigError, match=r"the provider .* wrong checksum"):
        parse_address(ALICE.replace("BDb", "bDb"), what="provider")


@pytest.mark.parametrize("bad", ["", "alice", "0x12", None, 7, ALICE + "‮"])
def test_user_text_that_is_no_address_is_a_config_error(bad):
    with pytest.raises(ConfigError, match="40 hex digits") as caught:
        parse_address(bad)
    assert "‮" not in str(caught.value)


@given(st.binary(min_size=20, max_size=20))
def test_checksum_agrees_with_eth_utils(raw):
    from eth_utils.address import to_checksum_address

    assert checksum_address(raw) == to_checksum_address(raw)
