"""Which API keys this user has issued: ids and dates, never the keys themselves.

The chain knows only which ids are revoked, not which are in use, so two keys made one after the other would share an
id, and revoking it would end both. A book entry is a claim: in the folder it is a file that only one process can
create.
"""

import contextlib
import dataclasses
import datetime as dt
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, Protocol

import anyio.to_thread

from zg_async.errors import ConfigError
from zg_async.paths import make_private_dir
from zg_async.wire.records import Address
from zg_async.wire.strict_json import BadJsonError, decode_json

_ENTRY: Final = re.compile(r"([0-9]{1,20})-([0-9]{1,3})\.json")
_LIMIT: Final = 4096


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class IssuedKey:
    """An API key that was made here. The key itself is kept nowhere."""

    provider: Address
    token_id: int
    generation: int
    created_at: dt.datetime
    expires_at: dt.datetime | None
    """None: never."""


class KeyBook(Protocol):
    """Remembers issued keys of one chain and wallet."""

    async def claim(self, wallet: Address, key: IssuedKey, *, again: bool = False) -> bool:
        """Write a key down.

        Args:
            wallet: Whose it is.
            key: What is to be made.
            again: The id may be in use; its entry is replaced.

        Returns:
            False if the id is in use already.
        """
        ...

    async def issued(self, wallet: Address, provider: Address) -> Sequence[IssuedKey]:
        """Return the keys made for a provider, of all generations, oldest first."""
        ...


class MemoryKeyBook:
    """Remembers while the process lives."""

    def __init__(self) -> None:
        """Begin with no keys."""
        self._keys: dict[tuple[Address, Address, int, int], IssuedKey] = {}

    async def claim(self, wallet: Address, key: IssuedKey, *, again: bool = False) -> bool:
        """Write a key down; see `KeyBook`."""
        place = (wallet, key.provider, key.generation, key.token_id)
        if place in self._keys and not again:
            return False
        self._keys[place] = key
        return True

    async def issued(self, wallet: Address, provider: Address) -> Sequence[IssuedKey]:
        """Return the keys made for a provider; see `KeyBook`."""
        return _sorted(k for (user, at, _, _), k in self._keys.items() if (user, at) == (wallet, provider))


class FileKeyBook:
    """One small file per key, shared by all programs of this user."""

    def __init__(self, folder: Path) -> None:
        """Use a folder; it is made when the first key is."""
        self._folder = folder

    async def claim(self, wallet: Address, key: IssuedKey, *, again: bool = False) -> bool:
        """Write a key down; see `KeyBook`.

        Raises:
            ConfigError: The folder can't be written.
        """
        return await anyio.to_thread.run_sync(self._claim, wallet, key, again)

    async def issued(self, wallet: Address, provider: Address) -> Sequence[IssuedKey]:
        """Return the keys made for a provider; see `KeyBook`. Files that can't be read count as keys without dates."""
        return await anyio.to_thread.run_sync(self._issued, wallet, provider)

    def _at(self, wallet: Address, provider: Address) -> Path:
        return self._folder / wallet / provider

    def _claim(self, wallet: Address, key: IssuedKey, again: bool) -> bool:
        expires = key.expires_at.isoformat() if key.expires_at else None
        text = json.dumps({"created_at": key.created_at.isoformat(), "expires_at": expires})
        flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if again else os.O_EXCL)
        try:
            path = make_private_dir(self._at(wallet, key.provider)) / f"{key.generation}-{key.token_id}.json"
            with open(os.open(path, flags, 0o600), "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except FileExistsError:
            return False
        except OSError as error:
            raise ConfigError(
                f"can't write down which API keys are in use: {error.strerror}",
                hint="Give a folder that can be written as state_dir",
            ) from error
        return True

    def _issued(self, wallet: Address, provider: Address) -> Sequence[IssuedKey]:
        names = [(path, _ENTRY.fullmatch(path.name)) for path in self._at(wallet, provider).glob("*.json")]
        return _sorted(_read(path, provider, int(match[1]), int(match[2])) for path, match in names if match)


def _read(path: Path, provider: Address, generation: int, token_id: int) -> IssuedKey:
    created, expires = dt.datetime.fromtimestamp(0, dt.UTC), None
    with contextlib.suppress(OSError, BadJsonError, ValueError, KeyError, TypeError):
        value = decode_json(path.read_bytes(), limit=_LIMIT)
        expires = dt.datetime.fromisoformat(value["expires_at"]) if value["expires_at"] else None
        created = dt.datetime.fromisoformat(value["created_at"])
    return IssuedKey(
        provider=provider, token_id=token_id, generation=generation, created_at=created, expires_at=expires
    )


def _sorted(keys: Iterable[IssuedKey]) -> Sequence[IssuedKey]:
    return tuple(sorted(keys, key=lambda k: (k.created_at, k.generation, k.token_id)))
