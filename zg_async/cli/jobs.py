"""`zg run`, `zg plan` and `zg batch`: one job, what it would do, and many."""

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import anyio
import anyio.to_thread
from cyclopts import Parameter

from zg_async.cli.opening import PAYING, Paying, open_broker
from zg_async.cli.output import UsageError, emit, leaving, print_json
from zg_async.cli.params import AnyProvider
from zg_async.text import json_text, printable
from zg_async.units import format_amount

if TYPE_CHECKING:
    from zg_async.jobs.batch import BatchResult
    from zg_async.jobs.plan import JobPlan
    from zg_async.jobs.spec import JobSpec


@Parameter(name="*")
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What job is asked for: by flags, by a file, or by a file of which flags change something."""

    model: str | None = None
    """The base model."""
    dataset: str | None = None
    """A JSONL file, or the 0x root hash of a dataset that the provider has."""
    params: Path | None = None
    """The five training parameters as a JSON file."""
    out: Path | None = None
    """Where the adapter goes. Default: the folder out."""
    provider: AnyProvider = None
    """The provider's address; without it, the best free one."""
    deploy: bool = False
    """Deploy the adapter for chatting afterwards."""
    return_rest: bool = False
    """Ask what is left at the provider back at the end."""
    budget: str | None = None
    """What to have ready at the provider, in 0G."""
    max_spend: str | None = None
    """Most that may be gone, fee and gas, in 0G."""
    tokenizer: Path | None = None
    """The model's tokenizer.json, to know the fee before."""

    def spec(self, file: Path | None, key: str | None = None) -> "JobSpec":
        """Return the job's specification. Reads the file.

        Raises:
            UsageError: Neither flag nor file says something that is needed.
            ConfigError: The file is no job.
        """
        from zg_async.jobs.spec import JobSpec, read_spec

        names = {"params": "training_params", "out": "output_dir"}
        given = {names.get(f.name, f.name): getattr(self, f.name) for f in dataclasses.fields(self)} | {"key": key}
        fields: dict[str, Any] = {name: value for name, value in given.items() if value not in (None, False)}
        if file is not None:
            return read_spec(file, **fields)
        for flag in ("model", "dataset", "params"):
            if getattr(self, flag) is None:
                raise UsageError(f"--{flag} is missing; give it, or a job file")
        fields.setdefault("output_dir", Path("out"))
        return JobSpec(**fields)


ASKED: Final = Asked()


async def run(
    spec: Path | None = None,
    *,
    asked: Asked = ASKED,
    key: Annotated[str | None, Parameter(name="--key")] = None,
    where: Paying = PAYING,
) -> int:
    """Run a fine-tuning job from dataset to adapter. Stop it with Ctrl-C; the same --key again goes on.

    Args:
        spec: A JSON file with fields of JobSpec, instead of flags or below them; paths in it are relative to it.
        asked: The job.
        key: Names the job: the same key again is the same job, never a second one.
        where: Network, wallet and output.
    """
    from zg_async.cli.job_view import JobView, JsonLines, Screen, show_job
    from zg_async.jobs.runner import JobRunner

    began = time.monotonic()
    wanted = await anyio.to_thread.run_sync(asked.spec, spec, key)
    screen: Screen = JsonLines() if where.as_json else JobView()
    async with open_broker(where) as broker, JobRunner(broker) as runner:
        with screen:
            job = await runner.submit(wanted)
            with leaving("the job can go on, its task at the provider does", f"zg jobs attach {job.id}"):
                await show_job(job, broker, screen)
                result = await job.result()
            screen.end(result, elapsed=time.monotonic() - began, good=True)
    return 0


async def plan(spec: Path | None = None, *, asked: Asked = ASKED, where: Paying = PAYING) -> int:
    """Show every transaction, upload and cost of a job. Sends nothing.

    Args:
        spec: A JSON file with fields of JobSpec, instead of flags or below them; paths in it are relative to it.
        asked: The job.
        where: Network, wallet and output.
    """
    from zg_async.jobs.runner import JobRunner

    wanted = await anyio.to_thread.run_sync(asked.spec, spec)
    async with open_broker(where) as broker, JobRunner(broker) as runner:
        planned = await runner.plan(wanted)
    emit(where, "plan", planned.to_json(), lambda: _plan_text(planned))
    return 4 if planned.problems else 0


async def batch(
    matrix: Path,
    *,
    at_once: Annotated[int, Parameter(name="--at-once")] = 100,
    results: Annotated[Path | None, Parameter(name="--results")] = None,
    form: Annotated[Literal["table", "csv", "json"], Parameter(name="--format")] = "table",
    where: Paying = PAYING,
) -> int:
    """Run a matrix of jobs: models x datasets x parameters. The same file again runs nothing twice.

    Args:
        matrix: A JSON file with name, models, datasets, params and output_dir, and maybe max_spend, wallets and job.
        at_once: How many jobs may be under way.
        results: Write the results there instead of showing them.
        form: How the results are written.
        where: Network, wallet and output.
    """
    from zg_async.jobs.batch import read_batch
    from zg_async.jobs.runner import JobRunner

    jobs = await anyio.to_thread.run_sync(read_batch, matrix)
    async with open_broker(where) as broker, JobRunner(broker) as runner:
        done = await runner.run_batch(jobs, at_once=at_once)
    text = _results(done, form)
    if where.as_json:
        print_json("batch", done.to_json())
    if results is None:
        if not where.as_json:
            print(text)
    else:
        await anyio.Path(results).write_text(text + "\n", encoding="utf-8")
    return 0 if done.is_whole else 1


def _results(done: "BatchResult", form: str) -> str:
    if form == "json":
        return json_text(done.to_json(), indent=2)
    if form == "csv":
        return done.to_csv().rstrip("\n")
    return done.table()


def _plan_text(plan: "JobPlan") -> str:
    cost = plan.estimate
    lines = [
        f"wallet      {plan.wallet}",
        f"provider    {plan.provider}",
        f"model       {printable(plan.model)}",
        *(
            f"send        {t.name}  {format_amount(t.amount)}  gas up to {format_amount(t.gas_cost)}"
            for t in plan.transactions
        ),
        *(f"upload      {printable(u.path)}  {u.size} bytes" for u in plan.uploads),
        f"fee         {format_amount(cost.fee_low)} to {format_amount(cost.fee_high)}",
        f"likely      {format_amount(cost.fee_likely)}, by {cost.method}",
        f"deposit     {format_amount(plan.deposit)}; what isn't used can be retrieved",
        f"gone        at most {format_amount(plan.cost_high)}, fee and gas",
        *(f"problem     {printable(problem, limit=1000)}" for problem in plan.problems),
    ]
    return "\n".join(lines)
