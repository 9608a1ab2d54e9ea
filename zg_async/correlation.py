"""What something belongs to: job, task, provider, request. Log records, errors and spans carry it.

It is kept in a context variable, so it follows calls down and not from one job to another; background tasks that
several jobs share begin without it. Bind it in coroutines and plain functions only, never around a generator's `yield`.
"""

from collections.abc import Mapping
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Final

from zg_async.text import printable

FIELDS: Final = ("job_id", "task_id", "provider", "request_id")
_LONGEST: Final = 100
_bound: ContextVar[Mapping[str, str]] = ContextVar("zg_async_correlation")


def correlation() -> Mapping[str, str]:
    """Return what is known here, by the names in `FIELDS`."""
    return _bound.get({})


class correlated:
    """Bind fields for a `with` block; an error of ours that leaves it learns those that it lacks."""

    def __init__(self, **fields: object) -> None:
        """Take fields of `FIELDS`; what isn't a text, or is empty, counts as unknown."""
        self._fields = fields
        self._token: Token[Mapping[str, str]] | None = None

    def __enter__(self) -> None:
        self._token = _bound.set({**correlation(), **_known(self._fields)})

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        learn = getattr(error, "learn", None)
        if learn is not None:
            learn(correlation())
        if self._token is not None:
            _bound.reset(self._token)


def bind(**fields: object) -> None:
    """Bind more fields within the innermost `correlated` block of this task, which unbinds them at its end."""
    _bound.set({**correlation(), **_known(fields)})


def forget() -> None:
    """Unbind everything, in this context."""
    _bound.set({})


def _known(fields: Mapping[str, object]) -> dict[str, str]:
    return {
        name: printable(value, limit=_LONGEST) for name, value in fields.items() if isinstance(value, str) and value
    }
