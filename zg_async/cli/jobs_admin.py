"""`zg jobs` and `zg doctor`: look at jobs and pairs, and act on them."""

import contextlib
import dataclasses
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cyclopts

from zg_async.cli.job_view import JobView, JsonLines, show_job
from zg_async.cli.opening import HERE, PAYING, Paying, Where, open_broker
from zg_async.cli.output import emit, leaving, print_json
from zg_async.cli.render import short
from zg_async.errors import JournalError
from zg_async.text import printable
from zg_async.units import format_amount

if TYPE_CHECKING:
    from zg_async.broker import Broker
    from zg_async.jobs.handle import JobHandle
    from zg_async.jobs.runner import JobRunner
    from zg_async.jobs.sqlite import SqliteStore
    from zg_async.jobs.state import JobState

app = cyclopts.App(name="jobs", help="Look at jobs, follow them, resume, cancel and forget them.")


@app.command(name="list")
async def list_(*, status: str | None = None, label: tuple[str, ...] = (), where: Where = HERE) -> None:
    """List the jobs of the journal, oldest first.

    Args:
        status: Only these: queued, running, succeeded, failed or cancelled.
        label: Only jobs with this label, as NAME=VALUE; several: all of them.
        where: Network and wallet.
    """
    wanted = {name: value for name, _, value in (text.partition("=") for text in label)}
    async with _journal(where) as (store, _):
        for state in await _states(store):
            labels = dict(state.spec.labels) if state.spec else {}
            if status in (None, state.status.value) and wanted.items() <= labels.items():
                emit(where, "job", _row(state), lambda state=state: _line(state))  # type: ignore[misc]


@app.command
async def show(job_id: str, *, where: Where = HERE) -> None:
    """Show a job and all its events.

    Args:
        job_id: Which job.
        where: Network and wallet.
    """
    from zg_async.jobs.events import event_to_json
    from zg_async.jobs.state import fold
    from zg_async.wire.records import JobId

    async with _journal(where) as (store, _):
        events = await store.read(JobId(job_id))
        if not events:
            raise JournalError(f"the journal has no job {job_id[:80]!r}", hint="`zg jobs list` shows all it has")
        if not where.as_json:
            print(_line(fold(events)))
        for event in events:
            value = event_to_json(event)
            if where.as_json:
                print_json(value.pop("kind"), value)
                continue
            head = {name: value.pop(name) for name in ("at", "kind")}
            print(printable(f"  {event.seq:>4} {head['at']} {head['kind']} {_brief(value)}", limit=400))


@app.command
async def attach(job_id: str, *, where: Paying = PAYING) -> int:
    """Follow a job until it has ended; drives it, and the others of the journal, if no other process does.

    Args:
        job_id: Which job.
        where: Network and wallet.
    """
    return await _follow(where, lambda runner: runner.attach(job_id))


@app.command
async def resume(job_id: str, *, accept_changes: bool = False, where: Paying = PAYING) -> int:
    """Go on with a failed job where it failed, and follow it.

    Args:
        job_id: Which job.
        accept_changes: Accept the provider's present URL, price and signer.
        where: Network and wallet.
    """
    return await _follow(where, lambda runner: runner.resume(job_id, accept_changes=accept_changes))


@app.command
async def export(job_id: str, file: Path, *, where: Paying = PAYING) -> None:
    """Write a job that hasn't ended to a file, to go on with it at another machine; here it is left alone.

    Args:
        job_id: Which job.
        file: A new file; it holds no key.
        where: Network and wallet.
    """
    from zg_async.jobs.runner import JobRunner

    async with open_broker(where) as broker, JobRunner(broker, guard=False) as runner:
        await runner.export_job(job_id, file)
    said = f"exported to {file}; go on with it there: zg jobs import {file}"
    emit(where, "exported_job", {"job_id": job_id, "path": str(file)}, lambda: said)


@app.command(name="import")
async def import_(file: Path, *, dataset: Path | None = None, out: Path | None = None, where: Paying = PAYING) -> int:
    """Go on with a job that was exported at another machine, and follow it.

    Args:
        file: The job's file.
        dataset: Where its dataset is here; needed until the provider has it.
        out: Where its output goes here.
        where: Network and wallet.
    """
    return await _follow(where, lambda runner: runner.import_job(file, dataset=dataset, output_dir=out))


@app.command
async def cancel(job_id: str, *, where: Paying = PAYING) -> int:
    """Stop a job while that is possible: until its task trains.

    Args:
        job_id: Which job.
        where: Network and wallet.
    """
    from zg_async.jobs.runner import JobRunner

    async with open_broker(where) as broker, JobRunner(broker) as runner:
        done = await (await runner.attach(job_id)).cancel()
    said = "cancelled" if done else "too late: the job goes on, or had ended"
    emit(where, "job_cancellation", {"job_id": job_id, "cancelled": done}, lambda: said)
    return 0 if done else 1


@app.command
async def prune(*, where: Where = HERE) -> None:
    """Forget ended jobs for good, with their partial downloads; adapters stay. Without --yes it only says which.

    Args:
        where: Network and wallet.
    """
    from zg_async.jobs.upkeep import prune_jobs

    async with _journal(where) as (store, _):
        pruned = await prune_jobs(store, dry_run=not where.yes)
        info = await store.info()
    ended, removed = list(pruned.jobs), pruned.rows if where.yes else 0
    value = {
        "ended": ended,
        "rows_removed": removed,
        "leftovers": pruned.leftovers,
        "pruned": where.yes,
        "path": str(info.path),
        "jobs": info.jobs,
        "size": info.size,
    }
    last = f"{removed} rows and {pruned.leftovers} bytes of partial downloads "
    last += "removed" if where.yes else "would go; nothing was removed, give --yes"
    emit(where, "pruned_jobs", value, lambda: [*ended, f"{info.path}: {info.jobs} jobs, {info.size} bytes; {last}"])


async def doctor(provider: str, *, fix: bool = False, where: Paying = PAYING) -> int:
    """Name the state of the wallet at a provider, and the exact steps out of it.

    Args:
        provider: The provider's address.
        fix: Take the steps, as far as they go now.
        where: Network and wallet.
    """
    async with open_broker(where) as broker:
        found = await broker.fine_tuning.diagnose(provider)
        done = await broker.fine_tuning.recover(provider, dry_run=False) if fix else None
    wait = done.wait_until.isoformat() if done and done.wait_until else None
    sent = [receipt.tx_hash for receipt in done.receipts] if done else []
    if where.as_json:
        print_json("diagnosis", {**dataclasses.asdict(found), "transactions": sent, "wait_until": wait})
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


async def _follow(where: Where, find: "Callable[[JobRunner], Awaitable[JobHandle]]") -> int:
    from zg_async.jobs.runner import JobRunner
    from zg_async.jobs.state import JobStatus

    async with open_broker(where) as broker, JobRunner(broker) as runner:
        with JsonLines() if where.as_json else JobView() as screen:
            handle = await find(runner)
            again = leaving("the job can go on, its task at the provider does", f"zg jobs attach {handle.id}")
            with again:
                state = await show_job(handle, broker, screen)
            return 0 if state.status is JobStatus.SUCCEEDED else 1


@contextlib.asynccontextmanager
async def _journal(where: Where) -> "AsyncGenerator[tuple[SqliteStore, Broker], None]":
    """Open the journal without driving anything."""
    from zg_async.jobs.sqlite import SqliteStore
    from zg_async.jobs.store import Owner

    async with open_broker(where) as broker:
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
