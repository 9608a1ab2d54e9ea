"""Lists that a contract gives out in pages, read to their end, wherever a node says that is."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

from zg_async.errors import RpcError

T = TypeVar("T")
PAGE: Final = 50
"""What the contracts give at most."""
MOST_ACCOUNTS: Final = 1000
"""Sub-accounts of one wallet with one service type; the contracts allow 50."""


async def read_pages(
    ask: Callable[[int], Awaitable[tuple[Sequence[T], int]]], *, most: int, first: tuple[Sequence[T], int] | None = None
) -> list[T]:
    """Read all pages.

    Args:
        ask: Reads the page that begins at an offset; returns it with the total.
        most: Rows there can be; a node that goes on is lying.
        first: The first page, if it is known already.

    Raises:
        RpcError: The list is longer.
    """
    rows: list[T] = []
    page, total = first if first is not None else await ask(0)
    while page:
        rows.extend(page)
        if max(len(rows), total) > most:
            raise RpcError(f"a list of {max(len(rows), total)} rows, of which there are at most {most}")
        if len(rows) >= total:
            break
        page, total = await ask(len(rows))
    return rows
