"""One job as its user sees it: its state, its result, and its events as they come."""

import dataclasses
from collections import deque
from collections.abc import Generator
from types import TracebackType
from typing import TYPE_CHECKING, Any

from zg_async.correlation import correlated
from zg_async.errors import JobCancelledError, JobFailedError, JournalError
from zg_async.jobs.events import Event
from zg_async.jobs.live import follow, notebook_display, state_html
from zg_async.jobs.state import JobResult, JobState, JobStatus, apply, fold
from zg_async.managers.costs import Cost, fees_of
from zg_async.wire.records import JobId

if TYPE_CHECKING:
    from zg_async.jobs.runner import JobRunner


class JobHandle:
    """One job, as its user sees it."""

    def __init__(self, runner: "JobRunner", job_id: JobId) -> None:
        """Wrap a job of a runner's journal."""
        self._runner = runner
        self._seen: JobState | None = None
        self.id = job_id

    def __repr__(self) -> str:
        return f"<JobHandle {self.id}>"

    def __await__(self) -> Generator[Any, None, JobResult]:
        """Wait for the result, as `result` does; in a notebook with a table and a loss curve meanwhile."""
        place = notebook_display()
        return (self.result() if place is None else follow(self, place())).__await__()

    def _repr_html_(self) -> str:
        return state_html(JobState(job_id=self.id) if self._seen is None else self._seen)

    def events(self, after: int = 0) -> "JobEvents":
        """Read the job's events, those to come included, until it has ended.

        Args:
            after: Begin behind the event with this `seq`; 0: at the beginning.

        Returns:
            An iterator for `async for`; also a context manager whose value is itself.
        """
        return JobEvents(self._runner, self.id, after)

    async def state(self) -> JobState:
        """Return all that is known of the job now."""
        self._runner._require_open()
        self._seen = fold(await self._runner._store.read(self.id))
        return self._seen

    async def cost_report(self) -> Cost:
        """Add up what the job has paid so far, whatever became of it: by the chain's events and its receipts."""
        state = await self.state()
        if state.wallet is None:
            return Cost()
        report = await self._runner._broker.using(state.wallet).cost_report()
        tasks = (t for t in report.tasks if (t.provider, t.task_id) == (state.provider, state.task_id))
        sent, fees = report.jobs.get(self.id, Cost()), fees_of(tasks)
        return dataclasses.replace(fees, gas=sent.gas, storage=sent.storage)

    async def status(self) -> JobStatus:
        """Return where the job stands."""
        return (await self.state()).status

    async def result(self) -> JobResult:
        """Wait until the job has ended and return its result; the same one in any process.

        Raises:
            JobFailedError: A stage failed; its cause is the stage's error if this process ran it.
            JobCancelledError: It was cancelled.
            JournalError: It can't be driven here.
        """
        async with self.events() as events:
            async for _ in events:
                pass
            self._seen = state = events.state
        if state.status is JobStatus.SUCCEEDED and state.result is not None:
            return state.result
        with correlated(job_id=self.id, task_id=state.task_id, provider=state.provider):
            if state.failure is not None:
                failure = state.failure
                raise JobFailedError(
                    f"job {self.id} failed in {failure.stage}: {failure.message}",
                    job_id=self.id,
                    stage=failure.stage,
                    error_code=failure.code,
                    hint=failure.hint,
                ) from self._runner._failures.get(self.id)
            why = f": {state.cancel_reason}" if state.cancel_reason else ""
            raise JobCancelledError(f"job {self.id} was cancelled{why}")

    async def cancel(self) -> bool:
        """Stop the job: at once before its task exists, else if the provider agrees: until training starts.

        Returns:
            True if it is cancelled, False if it goes on or had ended before.

        Raises:
            JournalError: Another process drives it.
        """
        self._runner._require_writer()
        state = await self.state()
        driver = self._runner._drivers.get(self.id)
        if state.status.is_terminal:
            return state.status is JobStatus.CANCELLED
        if driver is None:
            raise self._runner._stopped.get(self.id) or JournalError(f"job {self.id} is not driven here")
        async with self.events(after=await driver.cancel()) as events:
            async for _ in events:
                if not events.state.cancel_requested:
                    break
            return events.state.status is JobStatus.CANCELLED


class JobEvents:
    """A cursor over a job's journal. Leaving it at any point leaves nothing behind."""

    def __init__(self, runner: "JobRunner", job_id: JobId, after: int) -> None:
        """Begin behind the event numbered `after`."""
        self._runner = runner
        self._job_id = job_id
        self._after = after
        self._waiting: deque[Event] = deque()
        self._read = 0
        self._version: int | None = None
        """Of the store, when it was last read; None: it may have changed since."""
        self._head = JobState()
        self.state = JobState()
        """The job as of the last event that was handed out."""

    async def __aenter__(self) -> "JobEvents":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def __aiter__(self) -> "JobEvents":
        return self

    async def __anext__(self) -> Event:
        """Return the next event; wait for it if the job is under way."""
        store = self._runner._store
        while True:
            while self._waiting:
                event = self._waiting.popleft()
                self.state = apply(self.state, event)
                if event.seq > self._after:
                    return event
            if self._head.status.is_terminal:
                raise StopAsyncIteration
            self._runner._require_open()
            version = store.version(self._job_id)
            if version != self._version:
                new = await store.read(self._job_id, self._read)
                self._version = version
                self._read = new[-1].seq if new else self._read
                self._head = fold(new, self._head)
                self._waiting.extend(new)
            elif (stopped := self._runner._stopped.get(self._job_id)) is not None:
                raise stopped
            else:
                await store.wait_change(self._job_id, version)
                self._version = None
