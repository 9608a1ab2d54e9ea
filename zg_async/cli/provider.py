"""Commands for people who run an inference provider: their own service and its log files."""

from pathlib import Path
from typing import Annotated, Literal

import anyio
from cyclopts import Parameter

from zg_async.cli.ledger import receipt_fields
from zg_async.cli.opening import HERE, PAYING, Paying, Where, open_broker
from zg_async.cli.output import UsageError, confirm, emit, table, tick
from zg_async.cli.params import Address, Price
from zg_async.text import printable
from zg_async.units import format_amount

Component = Annotated[Literal["broker", "event"], Parameter(name="--component")]
AnyComponent = Annotated[Literal["broker", "event", "both"], Parameter(name="--component")]
FileName = Annotated[str, Parameter(name="--filename")]


async def add_service(
    *,
    url: str,
    model: str,
    input_price: Price,
    output_price: Price,
    stake: Price,
    service_type: str = "chatbot",
    tee_signer: Address | None = None,
    where: Paying = PAYING,
) -> None:
    """Register the wallet as an inference provider; the stake comes back when the service is removed.

    Args:
        url: Where it serves.
        model: What it serves.
        input_price: 0G per input token.
        output_price: 0G per output token.
        stake: 0G to stake; the contract says how much at least.
        service_type: What it serves.
        tee_signer: Who signs its answers.
        where: Network, wallet and output.
    """
    confirm(where, f"This stakes {format_amount(stake or 0)}. Go on?")
    async with open_broker(where) as broker:
        receipt = await broker.inference.add_service(
            url=url,
            model=model,
            input_price=input_price or 0,
            output_price=output_price or 0,
            stake=stake or 0,
            service_type=service_type,
            **({} if tee_signer is None else {"tee_signer": tee_signer}),
        )
    emit(where, "service_added", {"transaction": receipt_fields(receipt)}, lambda: "Service added")


async def update_service(
    *,
    url: str | None = None,
    model: str | None = None,
    input_price: Price = None,
    output_price: Price = None,
    where: Paying = PAYING,
) -> None:
    """Change the wallet's own inference service; what isn't given stays as it is.

    Args:
        url: Where it serves.
        model: What it serves; takes the owner's approval of the TEE signer away.
        input_price: 0G per input token.
        output_price: 0G per output token.
        where: Network, wallet and output.
    """
    if url is None and model is None and input_price is None and output_price is None:
        raise UsageError("nothing to change: give --url, --model, --input-price or --output-price")
    async with open_broker(where) as broker:
        receipt = await broker.inference.update_service(
            url=url, model=model, input_price=input_price, output_price=output_price
        )
        service = await broker.inference.get_service(broker.address)
    fields = {"transaction": receipt_fields(receipt), "service": service}
    emit(where, "service_updated", fields, lambda: "Service updated")


async def remove_service(*, where: Paying = PAYING) -> None:
    """Withdraw the wallet's own inference service; its stake comes back.

    Args:
        where: Network, wallet and output.
    """
    async with open_broker(where) as broker:
        receipt = await broker.inference.remove_service()
    emit(where, "service_removed", {"transaction": receipt_fields(receipt)}, lambda: "Service removed")


async def list_logs(*, component: AnyComponent = "both", where: Where = HERE) -> None:
    """List the log files of the wallet's own provider.

    Args:
        component: broker, event or both.
        where: Network, wallet and output.
    """
    async with open_broker(where) as broker:
        files = await broker.inference.list_logs(component)
    rows = [(f.component, f.name, f.size, f.modified_at, tick(f.is_current)) for f in files]
    head = ("Component", "Filename", "Size", "Modified Time", "Current")
    emit(where, "provider_logs", {"items": files}, lambda: table(rows, head))


async def download_log(
    *,
    component: Component,
    filename: FileName,
    output: Annotated[Path | None, Parameter(name="--output")] = None,
    where: Where = HERE,
) -> None:
    """Save a log file of the wallet's own provider.

    Args:
        component: broker or event.
        filename: As list-logs has it.
        output: The file it goes to. Default: its own name, here.
        where: Network, wallet and output.
    """
    path = output or Path(Path(filename).name)
    async with open_broker(where) as broker:
        text = await broker.inference.get_provider_log(component, filename)
    await anyio.Path(path).write_text(text, encoding="utf-8")
    emit(where, "provider_log_saved", {"path": path, "size": len(text.encode())}, lambda: f"saved to {path}")


async def view_log(
    *,
    component: Component,
    filename: FileName,
    lines: str = "all",
    tail: bool = False,
    where: Where = HERE,
) -> None:
    """Print a log file of the wallet's own provider.

    Args:
        component: broker or event.
        filename: As list-logs has it.
        lines: How many lines, or all.
        tail: The last ones instead of the first.
        where: Network, wallet and output.
    """
    if lines != "all" and not lines.isdecimal():
        raise UsageError(f"--lines is a number or all, not {printable(lines, limit=40)}")
    async with open_broker(where) as broker:
        text = await broker.inference.get_provider_log(component, filename)
    shown = text.splitlines()
    if lines != "all":
        count = int(lines)
        shown = (shown[-count:] if count else []) if tail else shown[:count]
    fields = {"component": component, "filename": filename, "lines": shown}
    emit(where, "provider_log", fields, lambda: [printable(line, limit=4000) for line in shown])
