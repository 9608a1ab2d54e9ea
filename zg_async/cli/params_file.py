"""`zg params`: training parameters as a file."""

import json
from pathlib import Path
from typing import Annotated, Final

import anyio
import cyclopts
from cyclopts import Parameter

from zg_async.cli.opening import HERE, Where
from zg_async.cli.output import emit, note
from zg_async.errors import ConfigError
from zg_async.text import printable

app = cyclopts.App(name="params", help="Training parameters.")
START: Final = {
    "neftune_noise_alpha": 5,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 2,
    "learning_rate": "0.0002",
    "max_steps": -1,
}
"""Values to begin with, within every provider's bounds; decimals as text, so that no `e` gets in."""


@app.command
async def new(
    model: str,
    *,
    output: Annotated[Path | None, Parameter(name=("--output", "-o"))] = None,
    epochs: Annotated[int, Parameter(name="--epochs")] = 1,
    batch_size: Annotated[int, Parameter(name="--batch-size")] = 2,
    learning_rate: Annotated[str, Parameter(name="--learning-rate")] = "0.0002",
    max_steps: Annotated[int, Parameter(name="--max-steps")] = -1,
    where: Where = HERE,
) -> None:
    """Write a file with the five training parameters that providers take, and nothing else.

    Args:
        model: The base model they are for.
        output: The new file; nothing is overwritten. Default: standard output.
        epochs: 1 to 10.
        batch_size: 1 to 4.
        learning_rate: 0.00001 to 0.001, written without exponent.
        max_steps: Steps at most; -1: as many as the epochs have.
        where: Network, wallet and output.
    """
    from zg_async.managers.training_params import read_training_params
    from zg_async.wire.provider_api import predefined

    if predefined(model, "mainnet") is None:
        note(where, f"{printable(model, limit=80)} is no predefined model; a provider of its own may have other rules")
    chosen = {
        **START,
        "num_train_epochs": epochs,
        "per_device_train_batch_size": batch_size,
        "learning_rate": learning_rate,
        "max_steps": max_steps,
    }
    body = ",\n".join(f'  "{name}": {value}' for name, value in chosen.items())
    text = read_training_params("{\n" + body + "\n}\n")
    if output is not None:
        try:
            async with await anyio.open_file(output, "x", encoding="utf-8") as file:
                await file.write(text.rstrip("\n") + "\n")
        except FileExistsError:
            raise ConfigError(f"{output} exists", hint="Choose another name; nothing was overwritten") from None
    fields = {"model": model, "path": output, "parameters": json.loads(text), "text": text}
    emit(where, "training_params", fields, lambda: text.rstrip("\n") if output is None else f"{output} for {model}")
