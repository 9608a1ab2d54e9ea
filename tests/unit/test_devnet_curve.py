"""The devnet's curve gives what eth_keys gives: signatures, keys and whose signature it is."""

import os
import random

import pytest
from eth_keys.backends import get_backend
from eth_keys.backends.native import NativeECCBackend
from eth_keys.constants import SECPK1_N as N
from eth_keys.datatypes import PrivateKey, Signature
from eth_keys.exceptions import BadSignature

from zg_async.devnet import curve
from zg_async.devnet.curve import QuickBackend, both, times_generator

QUICK, PLAIN = QuickBackend(), NativeECCBackend()
DICE = random.Random(1)
SECRETS = [1, 2, 3, 15, 16, 17, 2**255, N // 2, N // 2 + 1, N - 2, N - 1, *(DICE.randrange(1, N) for _ in range(15))]


@pytest.mark.parametrize("secret", SECRETS)
def test_signatures_and_keys_are_the_same(secret):
    key = PrivateKey(secret.to_bytes(32, "big"), backend=PLAIN)
    public = PLAIN.private_key_to_public_key(key)
    assert QUICK.private_key_to_public_key(key) == public
    for digest in (bytes(32), b"\xff" * 32, DICE.randbytes(32)):
        signature = PLAIN.ecdsa_sign(digest, key)
        assert QUICK.ecdsa_sign(digest, key) == signature
        assert QUICK.ecdsa_recover(digest, signature) == public


def test_any_signature_is_recovered_or_refused_alike():
    ends = set()
    for number in range(60):
        r, s = (DICE.choice([0, 1, 2, N - 1, DICE.randrange(N)]) for _ in range(2))
        digest, signature = DICE.randbytes(32), Signature(vrs=(number % 2, r, s), backend=PLAIN)
        try:
            expected = PLAIN.ecdsa_recover(digest, signature)
        except BadSignature:
            expected = None
        try:
            found = QUICK.ecdsa_recover(digest, signature)
        except BadSignature:
            found = None
        assert found == expected
        ends.add(expected is None)
    assert ends == {True, False}


def test_what_comes_to_nothing_is_nothing():
    point = times_generator(5)
    assert both(N - 15, point, 3) is None
    assert both(0, point, 0) is None
    assert both(5, point, 0) == both(0, point, 1) == point
    assert both(5, point, 1) == times_generator(10)
    with pytest.raises(ValueError, match="no point"):
        times_generator(N)


@pytest.mark.parametrize(("better", "told"), [(False, None), (True, None), (False, "native")])
def test_it_is_used_where_nothing_better_is_and_nobody_said_otherwise(monkeypatch, better, told):
    native = "eth_keys.backends.NativeECCBackend"
    monkeypatch.setenv("ECC_BACKEND_CLASS", native)
    monkeypatch.setattr(curve, "is_coincurve_available", lambda: better)
    if told is None:
        del os.environ["ECC_BACKEND_CLASS"]
    curve.use()
    assert os.environ.get("ECC_BACKEND_CLASS") == (
        native if told else None if better else f"{curve.__name__}.QuickBackend"
    )
    if not better:
        assert isinstance(get_backend(), NativeECCBackend if told else QuickBackend)
