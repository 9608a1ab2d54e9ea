"""`zg run`, `zg plan` and `zg batch`: one job, what it would do, and many."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import anyio
import anyio.to_thread
from cyclopts import Parameter

from zg_async.cli.opening import PAYING, Paying, open_broker
from zg_async.cli.output import emit, leaving, print_json
from zg_async.text import json_text, printable
from zg_async.units import format_amount

if TYPE_CHECKING:
    from zg_async.jobs.batch import BatchResult
    from zg_async.jobs.plan import JobPlan
    from zg_async.jobs.spec import JobSpec

Dataset = Annotated[str, Parameter(name="--dataset")]
Params = Annotated[Path, Parameter(name="--params")]
Model = Annotated[str, Parameter(name="--model")]
Out = Annotated[Path, Parameter(name="--out")]
Provider = Annotated[str | None, Parameter(name="--provider")]
Deploy = Annotated[bool, Parameter(name="--deploy", negative=())]
ReturnRest = Annotated[bool, Parameter(name="--return-rest", negative=())]
Amounts = Annotated[str | None, Parameter(name="--max-spend")]
Budget = Annotated[str | None, Parameter(name="--budget")]
Tokenizer = Annotated[Path | None, Parameter(name="--tokenizer")]


async def run(
    *,
    model: Model,
    dataset: Dataset,
    params: Params,
    out: Out = Path("out"),
    provider: Provider = None,
    deploy: Deploy = False,
    return_rest: ReturnRest = False,
    budget: Budget = None,
    max_spend: Amounts = None,
    tokenizer: Tokenizer = None,
    key: Annotated[str | None, Parameter(name="--key")] = None,
    where: Paying = PAYING,
) -> int:
    """Run a fine-tuning job from dataset to adapter. Stop it with Ctrl-C; the same --key again goes on.

    Args:
        model: The base model.
        dataset: A JSONL file, or the 0x root hash of a dataset that the provider has.
        params: The five training parameters as a JSON file.
        out: Where the adapter goes.
        provider: The provider's address; without it, the best free one.
        deploy: Deploy the adapter for chatting afterwards.
        return_rest: Ask what is left at the provider back at the end.
        budget: What to have ready at the provider, in 0G.
        max_spend: Most that may be gone, fee and gas, in 0G.
        tokenizer: The model's tokenizer.json, to know the fee before.
        key: Names the job: the same key again is the same job, never a second one.
        where: Network, wallet and output.
    """
    from zg_async.cli.job_view import JobView, JsonLines, Screen
    from zg_async.jobs.runner import JobRunner

    began = time.monotonic()
    spec = _spec(model, dataset, params, out, provider, deploy, return_rest, budget, max_spend, tokenizer, key)
    screen: Screen = JsonLines() if where.as_json else JobView()
    async with open_broker(where) as broker, JobRunner(broker) as runner:
        with screen:
            job = await runner.submit(spec)
            with leaving("the job can go on, its task at the provider does", f"zg jobs attach {job.id}"):
                async for event in job.events():
                    await screen.event(event, broker)
                result = await job.result()
            screen.end(result, elapsed=time.monotonic() - began, good=True)
    return 0


async def plan(
    *,
    model: Model,
    dataset: Dataset,
    params: Params,
    out: Out = Path("out"),
    provider: Provider = None,
    deploy: Deploy = False,
    return_rest: ReturnRest = False,
    budget: Budget = None,
    max_spend: Amounts = None,
    tokenizer: Tokenizer = None,
    where: Paying = PAYING,
) -> int:
    """Show every transaction, upload and cost of a job. Sends nothing.

    Args:
        model: The base model.
        dataset: A JSONL file, or the 0x root hash of a dataset that the provider has.
        params: The five training parameters as a JSON file.
        out: Where the adapter would go.
        provider: The provider's address; without it, the best free one.
        deploy: Whether the adapter would be deployed.
        return_rest: Whether what is left at the provider would be asked back.
        budget: What to have ready at the provider, in 0G.
        max_spend: Most that may be gone, fee and gas, in 0G.
        tokenizer: The model's tokenizer.json, to know the fee exactly.
        where: Network, wallet and output.
    """
    from zg_async.jobs.runner import JobRunner

    spec = _spec(model, dataset, params, out, provider, deploy, return_rest, budget, max_spend, tokenizer, None)
    async with open_broker(where) as broker, JobRunner(broker) as runner:
        planned = await runner.plan(spec)
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


def _spec(
    model: str,
    dataset: str,
    params: Path,
    out: Path,
    provider: str | None,
    deploy: bool,
    return_rest: bool,
    budget: str | None,
    max_spend: str | None,
    tokenizer: Path | None,
    key: str | None,
) -> "JobSpec":
    from zg_async.jobs.spec import JobSpec

    return JobSpec(
        model=model,
        dataset=dataset,
        training_params=params,
        output_dir=out,
        provider=provider,
        deploy=deploy,
        return_rest=return_rest,
        budget=budget,
        max_spend=max_spend,
        tokenizer=tokenizer,
        key=key,
    )
