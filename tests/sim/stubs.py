"""What would make a schedule slow or different each time: signatures, key pairs, random bytes, the training itself.

Signatures are looked up instead of computed: a signer's stub is remembered with its digest, and recovering finds it.
Anything not made here goes to the real curve.
"""

import contextlib
import email.utils
import functools
import hashlib
import json
import os
import random
import secrets
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final
from unittest import mock

import eth_keys.backends
from eth_keys.backends.native import main as native

from zg_async.devnet import provider_routes, provider_workers
from zg_async.devnet.quote import build_quote
from zg_async.devnet.trainer import TrainingOutcome
from zg_async.wire import contract_abi, envelope

_sign: Final = native.ecdsa_raw_sign
_recover: Final = native.ecdsa_raw_recover
_public: Final = functools.lru_cache(maxsize=4096)(native.private_key_to_public_key)
_made: dict[tuple[Any, ...], tuple[bytes, bytes]] = {}
_MOST: Final = 100_000
_EPHEMERAL: Final = tuple(hashlib.sha256(f"ephemeral {number}".encode()).digest() for number in range(8))


def _sign_stub(digest: bytes, private_key: bytes) -> tuple[int, int, int]:
    r, s = (
        int.from_bytes(hashlib.sha256(mark + private_key + digest).digest(), "big") >> 2 | 1 for mark in (b"r", b"s")
    )
    _made[0, r, s] = digest, _public(private_key)
    return 0, r, s


def _recover_stub(digest: bytes, vrs: tuple[int, int, int]) -> bytes:
    made = _made.get(vrs)
    return made[1] if made is not None and made[0] == digest else _recover(digest, vrs)


def _multiply_stub(point: tuple[int, int], scalar: int) -> tuple[int, int]:
    """A secret that both ends get: from the two public keys, whichever of them is one's own."""
    own = _public(scalar.to_bytes(32, "big"))
    other = point[0].to_bytes(32, "big") + point[1].to_bytes(32, "big")
    both = b"".join(sorted((own, other)))
    return tuple(int.from_bytes(hashlib.sha256(mark + both).digest(), "big") for mark in (b"x", b"y"))  # type: ignore[return-value]


def _train_stub(rows: Any, params: Any, out_dir: Path, *, base_model: str, **_: Any) -> TrainingOutcome:
    out_dir.mkdir(parents=True, exist_ok=True)
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 32, "base_model_name_or_path": base_model}
    config |= {"target_modules": ["head"], "task_type": "CAUSAL_LM"}
    (out_dir / "adapter_config.json").write_text(json.dumps(config))
    (out_dir / "adapter_model.safetensors").write_bytes(adapter_weights())
    return TrainingOutcome(log_text="trained\n", steps=1, final_loss=1.0)


@functools.cache
def adapter_weights() -> bytes:
    names = [f"base_model.model.head.lora_{kind}.weight" for kind in "AB"]
    size = 8 * 4 * 4
    table = {
        name: {
            "dtype": "F32",
            "shape": [8, 4] if kind == 0 else [4, 8],
            "data_offsets": [kind * size, kind * size + size],
        }
        for kind, name in enumerate(names)
    }
    header = json.dumps(table).encode()
    return len(header).to_bytes(8, "little") + header + random.Random(7).randbytes(2 * size)


def _remembered(work: Callable[..., Any]) -> Callable[..., Any]:
    """Remember what a function of ABI types and bytes has given; it gives nothing that can be changed."""
    known: dict[Any, Any] = {}

    def again(params: Any, value: Any, **options: Any) -> Any:
        try:
            key = (*map(id, params), value if type(value) is bytes else tuple(value), *options.values())
            found = known.get(key)
        except TypeError:  # an argument that is a list
            return work(params, value, **options)
        if found is None:
            if len(known) > _MOST:
                known.clear()
            found = known[key] = work(params, value, **options), tuple(params)  # kept, or an id would be another's
        return found[0]

    return again


_encode: Final = _remembered(contract_abi.encode)
_decode: Final = _remembered(contract_abi.decode)
_parse_date: Final = functools.lru_cache(maxsize=1000)(email.utils.parsedate_to_datetime)
_backend: Final = native.NativeECCBackend()
_build_quote: Final = functools.lru_cache(maxsize=64)(build_quote.__wrapped__)
"""Quotes signed by stubs, which nobody outside a schedule may get."""


def _native() -> native.NativeECCBackend:
    """The backend in use, without looking for a better one each time."""
    return _backend


def _no_sync(_: int) -> None:
    """The folder is in memory, and its machine never dies."""


@contextlib.contextmanager
def seeded(rng: random.Random) -> Iterator[None]:
    """Take all randomness from one seed."""
    before = random.getstate()
    random.seed(rng.random())
    if len(_made) > _MOST:
        _made.clear()
        _build_quote.cache_clear()
    ephemeral = random.Random(rng.random())

    def new_id() -> uuid.UUID:
        return uuid.UUID(bytes=rng.randbytes(16), version=4)

    def token(size: int = 32) -> bytes:
        return rng.randbytes(size)

    def ephemeral_key() -> bytes:
        return ephemeral.choice(_EPHEMERAL)

    with (
        mock.patch.object(os, "urandom", rng.randbytes),
        mock.patch.object(random, "_urandom", rng.randbytes),
        mock.patch.object(uuid, "uuid4", new_id),
        mock.patch.object(secrets, "token_bytes", token),
        mock.patch.object(native, "ecdsa_raw_sign", _sign_stub),
        mock.patch.object(native, "ecdsa_raw_recover", _recover_stub),
        mock.patch.object(native, "private_key_to_public_key", _public),
        mock.patch.object(envelope, "fast_multiply", _multiply_stub),
        mock.patch.object(envelope, "_random_key", ephemeral_key),
        mock.patch.object(provider_workers, "train", _train_stub),
        mock.patch.object(provider_routes, "build_quote", _build_quote),
        mock.patch.object(os, "fsync", _no_sync),
        mock.patch.object(eth_keys.backends, "get_backend", _native),
        mock.patch.object(contract_abi, "encode", _encode),
        mock.patch.object(contract_abi, "decode", _decode),
        mock.patch.object(email.utils, "parsedate_to_datetime", _parse_date),
    ):
        try:
            yield
        finally:
            random.setstate(before)
