"""Deliveries and what becomes of them: acknowledge, decrypt, deploy, ask."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from zg_async.cli.ledger import receipt_fields
from zg_async.cli.opening import HERE, PAYING, Paying, Where, open_broker
from zg_async.cli.output import UsageError, confirm, emit, note
from zg_async.cli.params import AnyModel, AnyProvider, AnyTask, DataPath, Model, Provider, Task
from zg_async.cli.render import size_text
from zg_async.cli.tasks import task_id_of
from zg_async.text import printable

if TYPE_CHECKING:
    from zg_async.managers.deliverables import Acknowledgement
    from zg_async.wire.records import DeployResponse

Method = Annotated[Literal["auto", "0g-storage", "tee"], Parameter(name="--download-method")]
AdapterName = Annotated[str | None, Parameter(name="--adapter-name")]
Timeout = Annotated[float, Parameter(name="--timeout")]


async def acknowledge_model(
    *,
    provider: Provider,
    data_path: DataPath,
    task: AnyTask = None,
    download_method: Method = "auto",
    deploy: bool = False,
    model: AnyModel = None,
    inference_provider: Annotated[AnyProvider, Parameter(name="--inference-provider")] = None,
    timeout_seconds: Timeout = 120.0,
    where: Paying = PAYING,
) -> None:
    """Download a delivered model, check it against the hash on chain, and acknowledge it. Nothing else is paid for.

    Args:
        provider: The provider's address.
        data_path: Where the encrypted model goes: a file, or a folder.
        task: The task's id. Default: the newest.
        download_method: 0g-storage, tee (the provider), or auto: 0G Storage first, then the provider.
        deploy: Deploy the adapter for chatting afterwards.
        model: The base model; needed for --deploy.
        inference_provider: Where it is deployed. Default: the same provider.
        timeout_seconds: How long to wait for the deployment.
        where: Network, wallet and output.
    """
    if deploy and model is None:
        raise UsageError("--deploy needs --model, the base model's name")
    deployed: DeployResponse | None = None
    async with open_broker(where) as broker:
        task_id = await task_id_of(broker, provider, task)
        note(where, f"downloading the model of task {task_id}")
        done = await broker.fine_tuning.acknowledge_model(provider, task_id, data_path, download_method)
        if deploy and model is not None:
            note(where, "acknowledged; waiting for the adapter")
            deployed = await broker.inference.lora.deploy_adapter(
                inference_provider or provider, model, task_id, True, timeout_seconds, _progress(where)
            )
    fields = {**_acknowledged(done), "deployment": deployed}
    emit(where, "acknowledgement", fields, lambda: _acknowledged_lines(done, deployed))


async def acknowledge_deliverable(*, provider: Provider, task: Task, where: Paying = PAYING) -> None:
    """Acknowledge a delivery without looking at it: the provider is paid in full for a model nobody has checked.

    Args:
        provider: The provider's address.
        task: The task's id.
        where: Network, wallet and output.
    """
    confirm(where, "This pays for a model that was neither downloaded nor checked. Go on?")
    async with open_broker(where) as broker:
        done = await broker.fine_tuning.acknowledge_deliverable(provider, task, unverified=True)
    fields = {**_acknowledged(done), "deployment": None}
    emit(where, "acknowledgement", fields, lambda: _acknowledged_lines(done, None))
    note(where, "nothing was verified")


async def decrypt_model(
    *,
    provider: Provider,
    encrypted_model: Annotated[Path, Parameter(name="--encrypted-model")],
    output: Annotated[Path, Parameter(name="--output")],
    task: AnyTask = None,
    wait: bool = False,
    unpack: Path | None = None,
    where: Where = HERE,
) -> None:
    """Decrypt a downloaded model with the key from the chain; the result appears only when every check passed.

    Args:
        provider: The provider's address.
        encrypted_model: The downloaded file.
        output: Where the decrypted zip goes.
        task: The task's id. Default: the newest.
        wait: Wait until the provider has settled and so released the key.
        unpack: Unpack the adapter into this new folder as well.
        where: Network, wallet and output.
    """
    files: tuple[str, ...] = ()
    async with open_broker(where) as broker:
        task_id = await task_id_of(broker, provider, task)
        if wait:
            note(where, "waiting for the provider to release the key")
            await broker.fine_tuning.wait_key(provider, task_id)
        path = await broker.fine_tuning.decrypt_model(provider, task_id, encrypted_model, output)
        if unpack is not None:
            files = await broker.fine_tuning.unpack_model(path, unpack)
    fields = {"task_id": task_id, "path": path, "unpacked": unpack, "files": files}
    emit(where, "decrypted_model", fields, lambda: [f"Decrypted model: {path}", *map(printable, files)])


async def get_adapter_name(*, model: Model, task: Task, provider: AnyProvider = None, where: Where = HERE) -> None:
    """Print the name by which a task's adapter is chatted with.

    Args:
        model: The base model.
        task: The task's id.
        provider: Ask this provider, whose list decides. Default: by the naming rule.
        where: Network, wallet and output.
    """
    from zg_async.wire.inference_api import adapter_name

    if provider is None:
        name = adapter_name(model, task)
    else:
        async with open_broker(where) as broker:
            name = await broker.inference.lora.resolve_adapter_name(provider, model, task)
    emit(where, "adapter_name", {"adapter_name": name, "asked": provider is not None}, lambda: name)


async def deploy_adapter(
    *,
    provider: Provider,
    adapter_name: AdapterName = None,
    model: AnyModel = None,
    task: AnyTask = None,
    wait: bool = False,
    timeout_seconds: Timeout = 120.0,
    where: Where = HERE,
) -> None:
    """Deploy an adapter for chatting; one that is active already stays as it is.

    Args:
        provider: The inference provider's address.
        adapter_name: The adapter's name, or
        model: its base model and
        task: the task that trained it.
        wait: Wait until it is active.
        timeout_seconds: How long, in seconds.
        where: Network, wallet and output.
    """
    _need_adapter(adapter_name, model, task)
    async with open_broker(where) as broker:
        lora, told = broker.inference.lora, _progress(where)
        if adapter_name is not None:
            done = await lora.deploy_adapter_by_name(provider, adapter_name, wait, timeout_seconds, told)
        else:
            done = await lora.deploy_adapter(provider, model or "", task or "", wait, timeout_seconds, told)
    emit(where, "deployment", done, lambda: f"{done.adapter_name} {done.state.value}: {printable(done.message)}")


async def list_adapters(*, provider: Provider, where: Where = HERE) -> None:
    """List the wallet's adapters at a provider.

    Args:
        provider: The inference provider's address.
        where: Network, wallet and output.
    """
    from zg_async.cli.output import table

    async with open_broker(where) as broker:
        found = await broker.inference.lora.list_adapters(provider)
    rows = [(a.adapter_name, a.state_text, a.task_id) for a in found]
    emit(where, "adapters", {"items": found}, lambda: table(rows, ("Name", "State", "Task")))


async def chat(
    *,
    provider: Provider,
    message: Annotated[str, Parameter(name="--message", allow_leading_hyphen=True)],
    model: AnyModel = None,
    task: AnyTask = None,
    adapter_name: AdapterName = None,
    system: str = "You are a helpful assistant.",
    stream: bool = False,
    where: Where = HERE,
) -> None:
    """Ask a fine-tuned model.

    Args:
        provider: The inference provider's address.
        message: What to say.
        model: The base model, with
        task: the task that trained the adapter; or
        adapter_name: the adapter's name.
        system: The system prompt.
        stream: Print the answer as it comes.
        where: Network, wallet and output.
    """
    from zg_async.cli.inference import show_answer

    _need_adapter(adapter_name, model, task)
    async with open_broker(where) as broker:
        name = adapter_name or await broker.inference.lora.resolve_adapter_name(provider, model or "", task or "")
        lora = broker.inference.lora
        if stream and not where.as_json:
            await show_answer(where, lora.chat_stream(provider, name, message, system))
        else:
            await show_answer(where, await lora.chat(provider, name, message, system))


# --- what they share --------------------------------------------------------------------------------------------------


def _need_adapter(name: str | None, model: str | None, task: str | None) -> None:
    if name is None and (model is None or task is None):
        raise UsageError("give --adapter-name, or --model and --task-id")


def _progress(where: Where) -> Any:
    return lambda state: note(where, f"adapter: {printable(state)}")


def _acknowledged(done: "Acknowledgement") -> dict[str, Any]:
    return {
        "task_id": done.deliverable.id,
        "verified": done.verified,
        "transaction": receipt_fields(done.receipt) if done.receipt else None,
        "download": done.download,
        "pending": done.pending,
    }


def _acknowledged_lines(done: "Acknowledgement", deployed: "DeployResponse | None") -> list[str]:
    lines = []
    if (download := done.download) is not None:
        equals = f"{download.matched} equals the hash on chain"
        lines.append(f"{download.path}: {size_text(download.size)} from {download.source}, {equals}")
        if download.fallback_reason:
            lines.append(f"not from the first source: {printable(download.fallback_reason, limit=500)}")
    lines.append("Acknowledged" if done.receipt else "Acknowledged already")
    if deployed is not None:
        lines.append(f"{deployed.adapter_name} {deployed.state.value}")
    return lines
