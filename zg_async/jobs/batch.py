"""Many jobs from one matrix: models x datasets x parameters, each with an id that follows from what it is."""

import csv
import dataclasses
import hashlib
import io
import json
import os
import unicodedata
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.to_thread

from zg_async.errors import ConfigError, JournalError, ZgError
from zg_async.jobs.spec import JobSpec, read_object
from zg_async.jobs.state import JobState, JobStatus
from zg_async.managers.training_params import read_training_params
from zg_async.showing import records_html
from zg_async.text import printable
from zg_async.units import Amount, format_amount
from zg_async.wire.task_log import parse_log

if TYPE_CHECKING:
    from zg_async.jobs.handle import JobHandle
    from zg_async.jobs.runner import JobRunner

AT_ONCE: Final = 100
_CELL: Final = 1000
_FORMULA: Final = ("=", "+", "-", "@", "|")
_LISTS: Final = ("models", "datasets", "params")
_OWN: Final = frozenset(
    {"model", "dataset", "training_params", "output_dir", "key", "wallet", "wallets", "batch", "batch_max_spend"}
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A matrix of jobs."""

    name: str
    """Part of each job's key: the same jobs under another name run again."""
    models: Sequence[str]
    datasets: Sequence[str | os.PathLike[str]]
    params: Sequence[str | os.PathLike[str] | Mapping[str, object]]
    """As `JobSpec.training_params`."""
    output_dir: str | os.PathLike[str]
    """Each job gets a folder in it."""
    wallets: Sequence[str] = ()
    """The broker's wallets that share the jobs; empty: its first. The one with the fewest unfinished jobs takes one."""
    max_spend: Amount | None = None
    """Most that may be gone for all jobs together: fees and gas."""
    job: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """More fields of `JobSpec`, the same for all jobs."""

    def __len__(self) -> int:
        return len(self.models) * len(self.datasets) * len(self.params)


def read_batch(path: str | os.PathLike[str]) -> Batch:
    """Read a matrix from a JSON file; relative paths in it are relative to it. Blocks.

    Args:
        path: An object with the fields of `Batch`.

    Returns:
        The matrix.

    Raises:
        ConfigError: It isn't one; the message names the field.
    """
    value = read_object(path, "batch")
    names = {field.name for field in dataclasses.fields(Batch)}
    if not {"name", "output_dir", *_LISTS} <= set(value) <= names:
        raise ConfigError(
            f"{path} is no batch",
            hint=f"It needs name, output_dir, {', '.join(_LISTS)}, and may have wallets, job, max_spend",
        )
    folder = Path(path).absolute().parent
    value["datasets"] = [d if str(d).startswith("0x") else str(folder / d) for d in _list(value, "datasets")]
    value["params"] = [p if isinstance(p, dict) else str(folder / p) for p in _list(value, "params")]
    value["models"] = _list(value, "models")
    value["output_dir"] = str(folder / str(value["output_dir"]))
    return Batch(**value)


def _list(value: Mapping[str, Any], name: str) -> list[Any]:
    if not isinstance(value[name], list) or not value[name]:
        raise ConfigError(f"{name} of the batch has to be a list with something in it")
    return list(value[name])


def expand(batch: Batch) -> Iterator[JobSpec]:
    """Make a matrix's jobs, one at a time, in order: models, then datasets, then parameters. Reads parameter files.

    Args:
        batch: The matrix.

    Yields:
        Specifications whose keys follow from name, model, dataset and parameters alone, so that a larger matrix of the
        same name runs only what is new.

    Raises:
        ConfigError: A field isn't a job's, or one that the matrix sets itself.
    """
    known = {field.name for field in dataclasses.fields(JobSpec)}
    if wrong := [name for name in batch.job if name not in known or name in _OWN]:
        raise ConfigError(f"a batch can't set {', '.join(map(str, wrong))} for all jobs")
    params = [read_training_params(one) for one in batch.params]
    for model in batch.models:
        for dataset in batch.datasets:
            for text in params:
                yield _job(batch, model, os.fspath(dataset), text)


def _job(batch: Batch, model: str, dataset: str, params: str) -> JobSpec:
    source = dataset if dataset.startswith("0x") else str(Path(dataset).expanduser().absolute())
    what = json.dumps([batch.name, model, source, json.loads(params)], sort_keys=True)
    digest = hashlib.sha256(what.encode()).hexdigest()
    folder = f"{_plain(model)}-{_plain(Path(dataset).stem)}-{digest[:10]}"
    fields: dict[str, Any] = {"name": folder} | dict(batch.job)
    return JobSpec(
        model=model,
        dataset=source,
        training_params=params,
        output_dir=Path(batch.output_dir) / folder,
        wallets=tuple(batch.wallets),
        key=f"batch/{digest}",
        batch=batch.name,
        batch_max_spend=batch.max_spend,
        **fields,
    )


def _plain(text: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in text)[:40].strip(".-") or "x"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BatchRow:
    """How one job of a batch ended."""

    name: str
    model: str
    dataset: str
    status: str
    """succeeded, failed or cancelled; `refused` when it couldn't be submitted."""
    job_id: str = ""
    provider: str = ""
    final_loss: float | None = None
    """Of the last training step that was logged, else the mean that the trainer printed at the end; None: neither."""
    cost: int = 0
    """Neuron that are gone: fee and gas."""
    seconds: float | None = None
    """From submission to the end."""
    artifact: str = ""
    """The adapter's folder."""
    error: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class BatchResult:
    """How a batch ended, one row per job, in the matrix's order."""

    rows: tuple[BatchRow, ...]

    def _repr_html_(self) -> str:
        return records_html(self.rows)

    @property
    def cost(self) -> int:
        """Neuron that are gone for all jobs."""
        return sum(row.cost for row in self.rows)

    @property
    def is_whole(self) -> bool:
        """Whether every job succeeded."""
        return all(row.status == JobStatus.SUCCEEDED for row in self.rows)

    def to_json(self) -> list[dict[str, Any]]:
        """Return the rows as JSON objects; costs are decimal strings of neuron."""
        return [dataclasses.asdict(row) | {"cost": str(row.cost)} for row in self.rows]

    def to_csv(self) -> str:
        """Return the rows as CSV with a head line; costs are neuron. No cell is a formula to a spreadsheet."""
        text = io.StringIO()
        writer = csv.DictWriter(text, [field.name for field in dataclasses.fields(BatchRow)], lineterminator="\n")
        writer.writeheader()
        for row in self.rows:
            writer.writerow({name: _plain_cell(value) for name, value in dataclasses.asdict(row).items()})
        return text.getvalue()

    def table(self) -> str:
        """Return the rows as text in columns, for people."""
        head = ("job", "status", "loss", "cost", "seconds", "artifact or error")
        lines = [head, *(_cells(row) for row in self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(head) - 1)]
        return "\n".join(
            "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[-1]])
            for line in lines
        )


def _plain_cell(value: Any) -> Any:
    """Make text from outside harmless to whatever opens the file; numbers stay as they are."""
    if not isinstance(value, str):
        return value
    text = printable(value, limit=_CELL)
    read = unicodedata.normalize("NFKC", text[:100]).lstrip()  # as a spreadsheet reads wide letters
    return f"'{text}" if read.startswith(_FORMULA) else text


def _cells(row: BatchRow) -> tuple[str, ...]:
    loss = "" if row.final_loss is None else f"{row.final_loss:.4g}"
    seconds = "" if row.seconds is None else f"{row.seconds:.1f}"
    cells = (row.name, row.status, loss, format_amount(row.cost, decimals=6), seconds, row.artifact or row.error)
    return tuple(printable(cell, limit=_CELL) for cell in cells)


async def run_batch(runner: "JobRunner", batch: Batch, *, at_once: int = AT_ONCE) -> BatchResult:
    """Run a matrix; see `JobRunner.run_batch`."""
    rows: dict[int, BatchRow] = {}

    async def work(number: int, spec: JobSpec) -> None:
        rows[number] = await run_one(runner, spec)

    await each_spec(batch, at_once, work)
    return BatchResult(tuple(rows[number] for number in sorted(rows)))


async def each_spec(batch: Batch, at_once: int, work: Callable[[int, JobSpec], Awaitable[None]]) -> None:
    """Do something for each job of a matrix, some at a time; the specifications are made one by one."""
    specs, turn = enumerate(expand(batch)), anyio.Lock()

    async def next_ones() -> None:
        while True:
            async with turn:
                number, spec = await anyio.to_thread.run_sync(next, specs, (-1, None))
            if spec is None:
                return
            await work(number, spec)

    async with anyio.create_task_group() as group:
        for _ in range(max(min(at_once, len(batch)), 1)):
            group.start_soon(next_ones)


async def run_one(
    runner: "JobRunner", spec: JobSpec, *, find: "Callable[[], Awaitable[JobHandle]] | None" = None
) -> BatchRow:
    """Submit a job, or `find` it, follow it to its end, and return its row."""
    about: dict[str, Any] = {"name": spec.name or "", "model": spec.model, "dataset": os.path.basename(spec.dataset)}
    try:
        job = await (runner.submit(spec) if find is None else find())
        seconds, first = None, None
        async with job.events() as events:
            async for event in events:
                first = first or event.at
                if event.at is not None and first is not None:
                    seconds = (event.at - first).total_seconds()
            state = events.state
    except JournalError:
        raise  # nothing can be recorded, so no job can run
    except ZgError as error:
        return BatchRow(**about, status="refused", error=str(error))
    result = state.result
    return BatchRow(
        **about,
        status=state.status.value,
        job_id=state.job_id,
        provider=state.provider or "",
        final_loss=await _final_loss(runner, state),
        cost=state_cost(state),
        seconds=seconds,
        artifact=result.adapter_path if result is not None and state.status is JobStatus.SUCCEEDED else "",
        error=state.failure.message if state.failure is not None else "",
    )


def state_cost(state: JobState) -> int:
    """Return what is gone for a job: its gas, and the fee once the model is paid for."""
    fee = state.decrypted.fee if state.decrypted is not None else 0
    return fee + sum(paid.gas for paid in state.paid)


async def _final_loss(runner: "JobRunner", state: JobState) -> float | None:
    """Read the last loss from the task's log, if the provider still shows it."""
    if state.task_id is None or state.provider is None or state.wallet is None:
        return None
    try:
        log = await runner.broker.using(state.wallet).fine_tuning.get_log(state.provider, state.task_id)
    except ZgError:
        return None
    entries = parse_log(log)
    losses = [entry.metric.loss for entry in entries if entry.metric is not None]
    losses = losses or [entry.summary.loss for entry in entries if entry.summary is not None]
    return losses[-1] if losses else None
