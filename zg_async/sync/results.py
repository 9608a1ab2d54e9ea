"""Records that also answer like the peers' dicts: `["datasetHash"]`, `.get("is_valid")`, `**result`."""

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

_ALIASES: Final[Mapping[str, str]] = {
    "is_valid": "verified",
    "success": "verified",
    "transactionHash": "tx_hash",
    "rootHash": "root_hash",
}
_HUMP: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


class Answering:
    """What is added to a record; a record that holds a raw JSON object answers with its keys first."""

    __slots__ = ()

    def __getitem__(self, key: str) -> Any:
        """Return a field by its name, in the peers' spelling too.

        Raises:
            KeyError: There is none.
        """
        raw = getattr(self, "raw", None)
        if isinstance(raw, Mapping) and key in raw:
            return raw[key]
        if not str(key).startswith("_"):
            for name in (_HUMP.sub("_", str(key)).lower(), _ALIASES.get(key, "")):
                if name and hasattr(self, name):
                    return getattr(self, name)
        raise KeyError(key)

    def get(self, key: str, default: Any = None) -> Any:
        """Return a field by its name, or a default."""
        try:
            return self[key]
        except KeyError:
            return default

    def keys(self) -> tuple[str, ...]:
        """Return the names of the fields, or of the raw JSON object."""
        raw = getattr(self, "raw", None)
        if isinstance(raw, Mapping):
            return tuple(raw)
        return tuple(f.name for f in dataclasses.fields(self))  # type: ignore[arg-type]  # it is mixed into records

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self.get(key, _MISSING) is not _MISSING

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())


_MISSING: Final = object()


def answering(value: Any) -> Any:
    """Return a record, or the records of a tuple or list, so that they answer; anything else as it is."""
    if isinstance(value, tuple | list):
        return [answering(one) for one in value]
    if not dataclasses.is_dataclass(value) or isinstance(value, type | Answering):
        return value
    made: Any = object.__new__(_with_answers(type(value)))
    for field in dataclasses.fields(value):
        object.__setattr__(made, field.name, getattr(value, field.name))
    return made


@functools.cache
def _with_answers(kind: type) -> type:
    body = {"__slots__": (), "__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    return type(kind.__name__, (Answering, kind), body)
