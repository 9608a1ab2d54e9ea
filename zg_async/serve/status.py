"""The status page: a wallet's jobs, their loss curves, deadlines, spending and adapters, live in a browser.

It only reads: the journal another process writes, and providers' public logs. The page itself tells nothing and needs
no token; what it shows comes from routes that do. The token travels in the URL's fragment, which browsers keep to
themselves, and from there in a header.
"""

import importlib.resources
import json
from collections.abc import Mapping
from typing import Any, Final

import anyio
from aiohttp import web

from zg_async.broker import Broker
from zg_async.errors import JournalError, ZgError
from zg_async.jobs.sqlite import SqliteStore
from zg_async.jobs.state import JobState, fold
from zg_async.jobs.store import Owner
from zg_async.serve.gate import Gate, error_reply, new_token
from zg_async.text import printable
from zg_async.units import format_amount
from zg_async.wire.records import JobId
from zg_async.wire.task_log import parse_log

_FILES: Final = {
    "/": ("index.html", "text/html"),
    "/status.js": ("status.js", "text/javascript"),
    "/status.css": ("status.css", "text/css"),
}
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_LOOK_SECONDS: Final = 0.5
"""How often the journal is looked at while somebody watches."""
_SHOWN: Final = 300
"""Rows of a page; sums count all jobs."""
_POINTS: Final = 400
"""Points of a loss curve."""


class StatusPage:
    """Serves the page of one wallet's journal."""

    def __init__(self, broker: Broker, *, token: str | None = None, host: str = "127.0.0.1") -> None:
        """Prepare it; nothing is read before somebody looks.

        Args:
            broker: An open broker with the wallet whose jobs are shown.
            token: What the page has to present; None: a new one.
            host: The name under which it is addressed besides loopback.
        """
        self.token = token or new_token()
        self._broker = broker
        self._store = SqliteStore(folder=broker.state_dir / "jobs", clock=broker.clock, read_only=True)
        self._host = host
        self._is_open = False
        self._height = 0
        self._round = 0
        self._jobs: dict[JobId, JobState] = {}
        self._looking = anyio.Lock()

    def app(self) -> web.Application:
        """Return the application; the journal is closed with it."""
        gate = Gate(self.token, hosts=(self._host,), public=tuple(_FILES))
        app = web.Application(middlewares=[gate.middleware])
        app.add_routes(
            [
                *(web.get(path, self._file) for path in _FILES),
                web.get("/api/stream", self._stream),
                web.get("/api/jobs/{job_id}/loss", self._loss),
            ]
        )
        app.on_cleanup.append(self._close)
        return app

    async def _close(self, _: web.Application) -> None:
        await self._store.aclose()

    async def _file(self, request: web.Request) -> web.Response:
        name, kind = _FILES[request.path]
        body = importlib.resources.files("zg_async.serve").joinpath("page", name).read_bytes()
        return web.Response(body=body, content_type=kind, charset="utf-8", headers=_HEADERS)

    # ---- jobs, as they change

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        """Send all jobs, and then those that changed, as server-sent events."""
        response = web.StreamResponse(headers={**_HEADERS, "Content-Type": "text/event-stream"})
        await response.prepare(request)
        sent: dict[JobId, int] = {}
        round_ = -1
        try:
            while True:
                await self._look()
                if round_ != self._round:
                    sent, round_ = {}, self._round
                    await _send(response, "begin", {"wallet": self._broker.address, "network": self._network()})
                newest = list(self._jobs.values())[-_SHOWN:]
                changed = [state for state in newest if sent.get(state.job_id) != state.seq]
                if changed or not sent:
                    sent.update({state.job_id: state.seq for state in changed})
                    await _send(response, "jobs", {"jobs": [_row(s) for s in changed], "sums": self._sums()})
                else:
                    await response.write(b": still here\n\n")  # tells a client that left
                await self._broker.clock.sleep(_LOOK_SECONDS)
        except ConnectionResetError:
            return response

    async def _look(self) -> None:
        """Fold in what the journal has got since."""
        async with self._looking:
            if not await self._opened():
                return
            top, changed = await self._store.changed_since(self._height)
            if top < self._height:  # rows were pruned: begin anew
                self._jobs, self._round = {}, self._round + 1
                top, changed = await self._store.changed_since(0)
            for job_id in changed:
                known = self._jobs.get(job_id)
                events = await self._store.read(job_id, after=known.seq if known else 0)
                self._jobs[job_id] = fold(events, known)
            self._height = top

    async def _opened(self) -> bool:
        if not self._is_open:
            chain = self._broker.chain
            owner = Owner(chain_id=chain.chain_id, genesis=chain.genesis_hash, wallets=self._broker.wallets)
            try:
                await self._store.open(owner)
            except JournalError:
                return False  # no job was ever submitted
            self._is_open = True
        return True

    def _network(self) -> str:
        return f"{self._broker.network.name} · chain {self._broker.chain.chain_id}"

    def _sums(self) -> dict[str, Any]:
        states = self._jobs.values()
        counts: dict[str, int] = {}
        for state in states:
            counts[state.status.value] = counts.get(state.status.value, 0) + 1
        fee, gas = sum(s.fee for s in states), sum(paid.gas for s in states for paid in s.paid)
        adapters = sum(s.deployed is not None for s in states)
        return {
            "counts": counts,
            "fee": format_amount(fee),
            "gas": format_amount(gas, decimals=6),
            "adapters": adapters,
            "hidden": max(len(self._jobs) - _SHOWN, 0),
        }

    # ---- loss curves

    async def _loss(self, request: web.Request) -> web.Response:
        """Send a job's losses from its provider's log, thinned out evenly."""
        await self._look()
        state = self._jobs.get(JobId(request.match_info["job_id"]))
        if state is None or state.provider is None or state.task_id is None or state.wallet is None:
            return error_reply(404, "no such job, or it has no task yet", code="not_found")
        try:
            log = await self._broker.using(state.wallet).fine_tuning.get_log(state.provider, state.task_id)
        except ZgError as error:
            return error_reply(502, printable(str(error)), code=error.code)
        losses = [e.metric.loss for e in parse_log(log) if e.metric is not None and e.metric.loss is not None]
        step = max(1, -(-len(losses) // _POINTS))
        return web.json_response({"loss": losses[::step], "steps": len(losses)}, headers=_HEADERS)


def _row(state: JobState) -> dict[str, Any]:
    spec, delivered = state.spec, state.delivered
    waits = delivered is not None and not state.deliverable_acknowledged and not state.status.is_terminal
    row = {
        "job_id": state.job_id,
        "name": (spec.name if spec else None) or state.job_id,
        "status": state.status.value,
        "model": spec.model if spec else None,
        "progress": state.progress.value if state.progress else None,
        "provider": state.provider,
        "task_id": state.task_id,
        "submitted_at": state.submitted_at.isoformat() if state.submitted_at else None,
        "deadline": delivered.ack_deadline.isoformat() if delivered and delivered.ack_deadline and waits else None,
        "fee": format_amount(state.fee) if state.fee else None,
        "gas": format_amount(sum(paid.gas for paid in state.paid), decimals=6) if state.paid else None,
        "adapter": state.deployed.adapter_name if state.deployed else None,
        "path": state.decrypted.path if state.decrypted else None,
        "note": _note(state),
    }
    return {name: printable(value, limit=300) if isinstance(value, str) else value for name, value in row.items()}


def _note(state: JobState) -> str | None:
    """Return what a person should know of it."""
    if state.failure is not None:
        return f"{state.failure.stage}: {state.failure.message}" + (
            f". {state.failure.hint}" if state.failure.hint else ""
        )
    if state.retry is not None:
        return f"{state.retry.stage}: {state.retry.message}; trying again"
    return list(state.warned.values())[-1] if state.warned else None


async def _send(response: web.StreamResponse, name: str, value: Mapping[str, Any]) -> None:
    data = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    await response.write(f"event: {name}\ndata: {data}\n\n".encode())
