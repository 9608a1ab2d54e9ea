"""Tasks at providers: create, list, look, cancel, read the log. Watching them is in `task_view`."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from zg_async.cli.opening import HERE, PAYING, Paying, Where, open_broker
from zg_async.cli.output import UsageError, emit, moment, note, table, to_plain
from zg_async.cli.params import AnyProvider, AnyTask, Model, Provider, Task
from zg_async.errors import ZgError
from zg_async.text import printable

if TYPE_CHECKING:
    from zg_async.broker import Broker
    from zg_async.wire.records import Address
    from zg_async.wire.records import Task as TaskRecord


async def create_task(
    *,
    provider: Provider,
    model: Model,
    config_path: Annotated[Path, Parameter(name=("--config-path", "--config"))],
    dataset: Annotated[str | None, Parameter(name="--dataset")] = None,
    dataset_path: Annotated[Path | None, Parameter(name="--dataset-path")] = None,
    data_size: Annotated[int | None, Parameter(name="--data-size", show=False)] = None,
    fund: Annotated[str | None, Parameter(name="--fund")] = None,
    policy: Literal["queue", "fail", "wait_for_free"] = "queue",
    where: Paying = PAYING,
) -> None:
    """Create a training task, after everything was checked that would make the provider refuse it.

    Args:
        provider: The provider's address.
        model: The base model's name or hash.
        config_path: The five training parameters as a JSON file.
        dataset: The dataset's root hash, as an upload printed it.
        dataset_path: A JSONL file instead; it is sent into the provider's TEE.
        data_size: Not needed any more.
        fund: First make sure that this much, in 0G, is ready at the provider.
        policy: When others are ahead: wait in the provider's queue, fail, or wait here until it is free.
        where: Network, wallet and output.
    """
    if (dataset is None) == (dataset_path is None):
        raise UsageError("give either --dataset, a root hash, or --dataset-path, a file")
    if data_size is not None:
        note(where, "--data-size isn't needed any more")
    async with open_broker(where) as broker:
        if fund is not None:
            await broker.ledger.ensure_funded(provider, "fine-tuning", fund)
        said = print if not where.as_json else lambda _: None
        said("Verify provider...")
        await broker.fine_tuning.acknowledge_provider_signer(provider)
        said("Provider verified")
        if dataset_path is not None:
            dataset = (await broker.fine_tuning.upload_dataset_to_tee(provider, dataset_path, reuse=True)).dataset_hash
            said(f"Dataset uploaded: {dataset}")
        said("Creating task...")
        task_id = await broker.fine_tuning.create_task(provider, model, dataset or "", config_path, policy=policy)
    fields = {"task_id": task_id, "provider": provider, "model": model, "dataset_hash": dataset}
    emit(where, "task_created", fields, lambda: f"Created Task ID: {task_id}")
    note(where, f"follow it with: zg task watch --provider {provider} --task {task_id}")


async def cancel_task(*, task: Task, provider: Provider, where: Where = HERE) -> int:
    """Cancel a task; possible until its training starts.

    Args:
        task: The task's id.
        provider: The provider's address.
        where: Network, wallet and output.
    """
    async with open_broker(where) as broker:
        outcome = await broker.fine_tuning.cancel_task(provider, task)
    state = f" (it is {printable(outcome.task.progress_text)})" if outcome.task else ""
    text = f"{outcome.result.value.replace('_', ' ')}{state}: {printable(outcome.message)}"
    emit(where, "task_cancellation", {"task_id": task, **to_plain(outcome)}, lambda: text)
    return 0 if outcome.result.value == "cancelled" else 7


async def list_tasks(*, provider: AnyProvider = None, where: Where = HERE) -> None:
    """List the wallet's tasks, newest first.

    Args:
        provider: The provider's address. Default: all providers are asked.
        where: Network, wallet and output.
    """
    async with open_broker(where) as broker:
        found: dict[Address, Any] = dict(await broker.fine_tuning.list_all_tasks()) if provider is None else {}
        if provider is not None:
            tasks = await broker.fine_tuning.list_task(provider)
            found = {task.provider: tasks for task in tasks[:1]}
    for address, error in found.items():
        if isinstance(error, ZgError):
            note(where, f"{address} can't be asked: {printable(error.message)}")
    good = [task for tasks in found.values() if not isinstance(tasks, ZgError) for task in tasks]
    failed = {address: error for address, error in found.items() if isinstance(error, ZgError)}
    emit(
        where, "tasks", {"items": [task_fields(t) for t in good], "unreachable": failed}, lambda: _list(good, provider)
    )


async def get_task(*, provider: Provider, task: AnyTask = None, where: Where = HERE) -> None:
    """Show a task.

    Args:
        provider: The provider's address.
        task: The task's id. Default: the newest.
        where: Network, wallet and output.
    """
    async with open_broker(where) as broker:
        found = await broker.fine_tuning.get_task(provider, task)
        now = (await broker.chain.block()).timestamp
    emit(where, "task", task_fields(found), lambda: task_table(found))
    if found.ack_deadline is not None and found.progress.value == "Delivered":
        from zg_async.cli.render import duration_text

        left = duration_text(max((found.ack_deadline - now).total_seconds(), 0))
        note(where, f"acknowledge it within {left}: zg acknowledge-model --provider {provider} --task-id {found.id}")


# --- what they share --------------------------------------------------------------------------------------------------


async def task_id_of(broker: "Broker", provider: str, task: str | None) -> str:
    """Return the task that is meant: the wallet's newest there, if none is named."""
    return task or (await broker.fine_tuning.get_task(provider)).id


def task_fields(task: "TaskRecord") -> dict[str, Any]:
    """Return a task as plain values."""
    return {**to_plain(task), "is_terminal": task.is_terminal, "is_cancellable": task.is_cancellable}


def task_table(task: "TaskRecord") -> str:
    """Draw a task."""
    rows = [
        ("ID", task.id),
        ("Created At", moment(task.created_at)),
        ("Pre-trained Model Hash", task.model_hash),
        ("Dataset Hash", task.dataset_hash),
        ("Training Params", task.training_params),
        ("Fee (neuron)", task.fee),
        ("Progress", task.progress_text),
    ]
    return table(rows, ("Field", "Value"))


def _list(tasks: "Iterable[TaskRecord]", provider: str | None) -> str:
    rows = [(t.id, moment(t.created_at), t.progress_text, *(() if provider else (t.provider,))) for t in tasks]
    head = ("ID", "Created At", "Status", *(() if provider else ("Provider",)))
    return table(rows, head)
