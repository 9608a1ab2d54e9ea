"""What jobs leave on disk beside their adapters: found again, and removed when nobody will use it any more."""

import dataclasses
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import anyio.to_thread

from zg_async.errors import JournalError
from zg_async.jobs.sqlite import SqliteStore
from zg_async.jobs.state import JobState, JobStatus, fold
from zg_async.wire.records import JobId


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """What `prune_jobs` removed."""

    jobs: tuple[JobId, ...]
    rows: int
    """Of the journal."""
    leftovers: int
    """Bytes of partial downloads and other intermediate files."""


def work_folder(state: JobState) -> Path | None:
    """Return where a job keeps its intermediate files; None: its beginning is lost."""
    return None if state.spec is None else Path(state.spec.output_dir) / f".zg-{state.job_id}"


async def prune_jobs(store: SqliteStore, jobs: Sequence[JobId] | None = None, *, dry_run: bool = False) -> Pruned:
    """Forget ended jobs for good, with their partial downloads. Adapters stay.

    Args:
        store: The journal, open for writing.
        jobs: Which; None: all that have ended.
        dry_run: Remove nothing, only say what would be.

    Returns:
        What was removed.

    Raises:
        JournalError: One of them hasn't ended, or the journal can't be written.
    """
    states = [fold(await store.read(job)) for job in (await store.list_jobs() if jobs is None else jobs)]
    if jobs is not None and (running := next((s for s in states if not s.status.is_terminal), None)):
        raise JournalError(f"job {running.job_id or jobs[0]} hasn't ended", hint="Cancel it, or wait for it")
    ended = [state for state in states if state.status.is_terminal]
    leftovers = await anyio.to_thread.run_sync(_size, ended)
    names = tuple(state.job_id for state in ended)
    if dry_run or not ended:
        return Pruned(jobs=names, rows=sum(state.seq for state in ended), leftovers=leftovers)
    rows = await store.prune(*names)
    await remove_leftovers(ended)
    return Pruned(jobs=names, rows=rows, leftovers=leftovers)


async def remove_leftovers(states: Iterable[JobState]) -> None:
    """Remove the intermediate files of jobs that nobody resumes any more."""
    folders = [folder for state in states if (folder := work_folder(state)) is not None]
    await anyio.to_thread.run_sync(_remove, folders)


def _remove(folders: Iterable[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def is_dead(state: JobState) -> bool:
    """Say whether a job has ended for good: a failed one may be resumed, and goes on with what it has fetched."""
    return state.status in (JobStatus.CANCELLED, JobStatus.SUCCEEDED)


def _size(states: Iterable[JobState]) -> int:
    folders = [folder for state in states if (folder := work_folder(state)) is not None]
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())
