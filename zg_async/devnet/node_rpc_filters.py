"""Filters that are polled, and subscriptions that are pushed."""

from collections.abc import Callable
from typing import Any

from zg_async.devnet.evm_records import SignedTx
from zg_async.devnet.node_chain import Change
from zg_async.devnet.node_rpc_format import Json, LogFilter, header_json, hex_data, invalid, log_json, read_log_filter

_MOST_FILTERS = 1_000
_MOST_HELD = 10_000


class Watch:
    """What one filter or subscription wants: `newHeads`, `newBlockHashes`, `logs` or `newPendingTransactions`."""

    def __init__(self, kind: str, options: Any = None) -> None:
        if kind not in ("newHeads", "newBlockHashes", "logs", "newPendingTransactions"):
            raise invalid(f"no subscription of the kind {kind!r}")
        self.kind = kind
        self.filter = read_log_filter(options or {}) if kind == "logs" else LogFilter(frozenset(), ())

    def of_change(self, change: Change) -> list[Any]:
        """List what a change means for it: removed logs newest first, then what was added."""
        match self.kind:
            case "newHeads":
                return [header_json(block) for block in change.added]
            case "newBlockHashes":
                return [hex_data(block.hash) for block in change.added]
            case "logs":
                return self._logs(change)
            case _:
                return []

    def _logs(self, change: Change) -> list[Json]:
        gone = [(block, log) for block in change.removed for log in block.logs if self.filter.matches(log)]
        new = [(block, log) for block in change.added for log in block.logs if self.filter.matches(log)]
        return [log_json(b, log, removed=True) for b, log in reversed(gone)] + [log_json(b, log) for b, log in new]

    def of_waiting(self, tx: SignedTx) -> list[Any]:
        """List what a transaction in the pool means for it."""
        return [hex_data(tx.hash)] if self.kind == "newPendingTransactions" else []


class Filters:
    """Filters by number; too many, or too much unread, and the oldest is gone."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[Watch, list[Any]]] = {}
        self._count = 0

    def add(self, watch: Watch) -> str:
        """Start holding for a filter; return its number."""
        self._count += 1
        if len(self._held) >= _MOST_FILTERS:
            self._held.pop(next(iter(self._held)))
        self._held[hex(self._count)] = (watch, [])
        return hex(self._count)

    def get(self, number: Any) -> Watch | None:
        """Return a filter."""
        found = self._held.get(number) if isinstance(number, str) else None
        return found[0] if found else None

    def take(self, number: Any) -> list[Any] | None:
        """Return what came since the last time, None for an unknown filter."""
        found = self._held.get(number) if isinstance(number, str) else None
        if found is None:
            return None
        held = list(found[1])
        found[1].clear()
        return held

    def remove(self, number: Any) -> bool:
        """Forget a filter; return whether it was there."""
        return isinstance(number, str) and self._held.pop(number, None) is not None

    def on_change(self, change: Change) -> None:
        """Hold what a change means."""
        self._hold(lambda watch: watch.of_change(change))

    def on_waiting(self, tx: SignedTx) -> None:
        """Hold what a waiting transaction means."""
        self._hold(lambda watch: watch.of_waiting(tx))

    def _hold(self, news: Callable[[Watch], list[Any]]) -> None:
        for number, (watch, held) in tuple(self._held.items()):
            held.extend(news(watch))
            if len(held) > _MOST_HELD:
                self._held.pop(number)
