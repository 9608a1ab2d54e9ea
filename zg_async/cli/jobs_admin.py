"""`zg jobs` and `zg doctor`: look at jobs and pairs, and act on them."""

import contextlib
import dataclasses
import json
import os
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import cyclopts
from cyclopts import Parameter

from zg_async.cli.job_view import JobView, JsonLines
from zg_async.cli.render import short
from zg_async.errors import ConfigError, JournalError
from zg_async.text import printable
from zg_async.units import format_amount

if TYPE_CHECKING:
    from zg_async.broker import Broker
    from zg_async.jobs.sqlite import SqliteStore
    from zg_async.jobs.state import JobState

app = cyclopts.App(name="jobs", help="Look at jobs, follow them, resume, cancel and forget them.")


@Parameter(name="*")
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """Which network and wallet; the private key comes from the environment."""

    network: str | None = None
    """Name of the network; else the variable NETWORK."""
    rpc: str | None = None
    """RPC endpoint instead of the network's; else the variable ZG_RPC_ENDPOINT."""
    state_dir: Path | None = None
    """Where outbox and journal lie, instead of the user's state folder."""


_HERE = Where()
_Json = Annotated[bool, Parameter(name="--json", negative="")]


@app.command(name="list")
async def list_(
    *, status: str | None = None, label: tuple[str, ...] = (), as_json: _Json = False, where: Where = _HERE
) -> None:
    """List the jobs of the journal, oldest first.

    Args:
        status: Only these: queued, running, succeeded, failed or cancelled.
        label: Only jobs with this label, as NAME=VALUE; several: all of them.
        as_json: One JSON object per line.
        where: Network and wallet.
    """
    wanted = dict(text.partition("=")[::2] for text in label)
    async with _journal(where) as (store, _):
        for state in await _states(store):
            labels = dict(state.spec.labels) if state.spec else {}
            if status in (None, state.status.value) and wanted.items() <= labels.items():
                print(json.dumps(_row(state), ensure_ascii=False) if as_json else _line(state))


@app.command
async def show(job_id: str, *, as_json: _Json = False, where: Where = _HERE) -> None:
    """Show a job and all its events.

    Args:
        job_id: Which job.
        as_json: One JSON object per event.
        where: Network and wallet.
    """
    from zg_async.jobs.events import event_to_json
    from zg_async.jobs.state import fold
    from zg_async.wire.records import JobId

    async with _journal(where) as (store, _):
        events = await store.read(JobId(job_id))
        if not events:
            raise JournalError(f"the journal has no job {job_id[:80]!r}", hint="`zg jobs list` shows all it has")
        if not as_json:
            print(_line(fold(events)))
        for event in events:
            value = event_to_json(event)
            head = {name: value.pop(name) for name in ("at", "kind")}
            print(
                json.dumps(head | value, ensure_ascii=False)
                if as_json
                else printable(f"  {event.seq:>4} {head['at']} {head['kind']} {_brief(value)}", limit=400)
            )


@app.command
async def attach(job_id: str, *, as_json: _Json = False, where: Where = _HERE) -> int:
    """Follow a job until it has ended; drives it, and the others of the journal, if no other process does.

    Args:
        job_id: Which job.
        as_json: One JSON object per event.
        where: Network and wallet.
    """
    return await _follow(job_id, where, as_json=as_json, resume=False, accept_changes=False)


@app.command
async def resume(job_id: str, *, accept_changes: bool = False, as_json: _Json = False, where: Where = _HERE) -> int:
    """Go on with a failed job where it failed, and follow it.

    Args:
        job_id: Which job.
        accept_changes: Accept the provider's present URL, price and signer.
        as_json: One JSON object per event.
        where: Network and wallet.
    """
    return await _follow(job_id, where, as_json=as_json, resume=True, accept_changes=accept_changes)


@app.command
async def cancel(job_id: str, *, where: Where = _HERE) -> int:
    """Stop a job while that is possible: until its task trains.

    Args:
        job_id: Which job.
        where: Network and wallet.
    """
    from zg_async.jobs.runner import JobRunner

    async with _broker(where) as broker, JobRunner(broker) as runner:
        done = await (await runner.attach(job_id)).cancel()
    print("cancelled" if done else "too late: the job goes on, or had ended")
    return 0 if done else 1


@app.command
async def prune(*, yes: bool = False, where: Where = _HERE) -> None:
    """Forget ended jobs for good; their adapters stay.

    Args:
        yes: Do it; without it, only say what would go.
        where: Network and wallet.
    """
    async with _journal(where) as (store, _):
        ended = [state.job_id for state in await _states(store) if state.status.is_terminal]
        for job_id in ended:
            print(job_id)
        if yes and ended:
            print(f"{await store.prune(*ended)} rows removed")
        info = await store.info()
        print(
            f"{info.path}: {info.jobs} jobs, {info.size} bytes" + ("" if yes else "; nothing was removed, give --yes")
        )


async def doctor(provider: str, *, fix: bool = False, as_json: _Json = False, where: Where = _HERE) -> int:
    """Name the state of the wallet at a provider, and the exact steps out of it.

    Args:
        provider: The provider's address.
        fix: Take the steps, as far as they go now.
        as_json: One JSON object.
        where: Network and wallet.
    """
    async with _broker(where) as broker:
        found = await broker.fine_tuning.diagnose(provider)
        done = await broker.fine_tuning.recover(provider, dry_run=False) if fix else None
    wait = done.wait_until.isoformat() if done and done.wait_until else None
    sent = [receipt.tx_hash for receipt in done.receipts] if done else []
    if as_json:
        print(json.dumps({**dataclasses.asdict(found), "transactions": sent, "wait_until": wait}))
    else:
        print(printable(f"{', '.join(found.states)}: {found.explanation}", limit=1000))
        for number, step in enumerate(found.steps, 1):
            print(printable(f"  {number}. {step.text}  [{step.action} {' '.join(step.arguments)}]", limit=1000))
        for tx_hash in sent:
            print(f"  sent {tx_hash}")
        if wait:
            print(f"  again after {wait}")
    return 0 if found.state == "healthy" or (done is not None and wait is None) else 1


# --- what they share --------------------------------------------------------------------------------------------------


async def _follow(job_id: str, where: Where, *, as_json: bool, resume: bool, accept_changes: bool) -> int:
    from zg_async.jobs.runner import JobRunner
    from zg_async.jobs.state import JobStatus

    async with _broker(where) as broker, JobRunner(broker) as runner:
        with JsonLines() if as_json else JobView() as screen:
            handle = await (runner.resume(job_id, accept_changes=accept_changes) if resume else runner.attach(job_id))
            async with handle.events() as events:
                async for event in events:
                    await screen.event(event, broker)
                return 0 if events.state.status is JobStatus.SUCCEEDED else 1


@contextlib.asynccontextmanager
async def _broker(where: Where) -> "AsyncGenerator[Broker, None]":
    from zg_async.broker import create_broker

    key = os.environ.get("ZG_PRIVATE_KEY")
    if not key:
        raise ConfigError("the private key is missing", hint="Set ZG_PRIVATE_KEY")
    rpc = where.rpc or os.environ.get("ZG_RPC_ENDPOINT")
    network = where.network or os.environ.get("NETWORK")
    async with create_broker(key, network, rpc_url=rpc, state_dir=where.state_dir) as broker:
        yield broker


@contextlib.asynccontextmanager
async def _journal(where: Where) -> "AsyncGenerator[tuple[SqliteStore, Broker], None]":
    """Open the journal without driving anything."""
    from zg_async.jobs.sqlite import SqliteStore
    from zg_async.jobs.store import Owner

    async with _broker(where) as broker:
        store = SqliteStore(folder=broker.state_dir / "jobs")
        chain = broker.chain
        await store.open(Owner(chain_id=chain.chain_id, genesis=chain.genesis_hash, wallets=broker.wallets))
        try:
            yield store, broker
        finally:
            await store.aclose()


async def _states(store: "SqliteStore") -> "list[JobState]":
    from zg_async.jobs.state import fold

    return [fold(await store.read(job_id)) for job_id in await store.list_jobs()]


def _row(state: "JobState") -> dict[str, Any]:
    spec = state.spec
    return {
        "job_id": state.job_id,
        "status": state.status.value,
        "name": spec.name if spec else None,
        "labels": dict(spec.labels) if spec else {},
        "model": spec.model if spec else None,
        "provider": state.provider,
        "task_id": state.task_id,
        "progress": state.progress.value if state.progress else None,
        "fee": str(state.fee),
        "adapter_path": state.decrypted.path if state.decrypted else None,
        "failure": state.failure.message if state.failure else None,
    }


def _line(state: "JobState") -> str:
    row = _row(state)
    where = short(row["provider"]) if row["provider"] else "-"
    what = row["failure"] or row["adapter_path"] or row["progress"] or ""
    fee = format_amount(state.fee) if state.fee else ""
    return printable(f"{state.job_id}  {row['status']:<9}  {where:<13}  {row['name'] or ''}  {fee}  {what}", limit=300)


def _brief(value: dict[str, Any]) -> str:
    value = {name: item for name, item in value.items() if name not in ("seq", "job_id", "spec") and item is not None}
    return json.dumps(value, ensure_ascii=False) if value else ""
