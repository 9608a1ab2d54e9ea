"""Keccak-256 and the spellings of addresses and hex."""

import functools
import re
from typing import Final

from Crypto.Hash import keccak

from zg_async.errors import ConfigError
from zg_async.text import printable
from zg_async.wire.records import Address

_ADDRESS: Final = re.compile(r"(?:0[xX])?([0-9a-fA-F]{40})")


class Keccak256:
    """Keccak-256 (Ethereum's variant) fed in pieces."""

    def __init__(self) -> None:
        self._state = keccak.new(digest_bits=256, update_after_digest=True)

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Feed more bytes."""
        self._state.update(data)

    def digest(self) -> bytes:
        """Return the 32 bytes of what was fed so far; feeding may go on."""
        return self._state.digest()


def keccak256(data: bytes | bytearray | memoryview) -> bytes:
    """Hash `data` to 32 bytes."""
    return keccak.new(digest_bits=256, data=data).digest()


def hex0x(data: bytes) -> str:
    """Write bytes as `0x` and lower-case hex."""
    return "0x" + data.hex()


def checksum_address(address: str | bytes) -> Address:
    """Write an address in its EIP-55 form.

    Args:
        address: 20 bytes, or 40 hex digits of any case with or without `0x`.

    Raises:
        ValueError: It is no address. The case of letters isn't checked here.
    """
    if isinstance(address, str):
        match = _ADDRESS.fullmatch(address)
        if match is None:
            raise ValueError(f"not an address: {printable(address, limit=60)}")
        return _checksum(match[1].lower())
    if len(address) != 20:
        raise ValueError(f"an address has 20 bytes, not {len(address)}")
    return _checksum(address.hex())


@functools.lru_cache(maxsize=4096)
def _checksum(digits: str) -> Address:
    raised = keccak256(digits.encode()).hex()
    return Address("0x" + "".join(c.upper() if r >= "8" else c for c, r in zip(digits, raised, strict=False)))


def parse_address(text: str, *, what: str = "address") -> Address:
    """Read an address a user wrote.

    Args:
        text: 40 hex digits with or without `0x`; all of one case, or a valid EIP-55 mix.
        what: What it is, for the message.

    Raises:
        ConfigError: No address, or a mixed-case one whose checksum is wrong (a typo).
    """
    text = str(text).strip()
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"the {what} is not an address: {printable(text, limit=60)}", hint="Write 0x and 40 hex digits."
        )
    digits = match[1]
    address = _checksum(digits.lower())
    if digits not in (digits.lower(), digits.upper()) and digits != address[2:]:
        raise ConfigError(
            f"the {what} {text} has a wrong checksum",
            hint="Look for a typo, or write it all in lower case to skip this check.",
        )
    return address
