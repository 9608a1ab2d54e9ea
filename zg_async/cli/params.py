"""Flags that many commands have, with their other spellings. What can't be read is a usage error."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from zg_async.errors import ConfigError


def _amount(_type: Any, tokens: Sequence[Any]) -> int:
    from zg_async.units import parse_amount

    return parse_amount(tokens[0].value)


def _address(_type: Any, tokens: Sequence[Any]) -> str:
    from zg_async.wire.hashing import parse_address

    try:
        return parse_address(tokens[0].value)
    except ConfigError as error:
        raise ValueError(f"{error.message}. {error.hint}") from None


Amount = Annotated[int, Parameter(name=("--amount", "-a"), converter=_amount)]
Price = Annotated[int | None, Parameter(converter=_amount)]
Address = Annotated[str, Parameter(converter=_address)]
Provider = Annotated[str, Parameter(name="--provider", converter=_address)]
AnyProvider = Annotated[str | None, Parameter(name="--provider", converter=_address)]
ServiceType = Literal["fine-tuning", "inference"]
Service = Annotated[ServiceType | None, Parameter(name="--service")]
Infer = Annotated[bool, Parameter(name="--infer", show=False)]
Task = Annotated[str, Parameter(name=("--task", "--task-id"))]
AnyTask = Annotated[str | None, Parameter(name=("--task", "--task-id"))]
Model = Annotated[str, Parameter(name="--model")]
AnyModel = Annotated[str | None, Parameter(name="--model")]
Invalid = Annotated[bool, Parameter(name="--include-invalid")]
DataPath = Annotated[Path, Parameter(name="--data-path")]
OutputDir = Annotated[Path, Parameter(name="--output-dir")]


def service_of(service: ServiceType | None, *, infer: bool) -> ServiceType | None:
    """Return the service type that is meant; `--infer` is an earlier release's spelling."""
    return service or ("inference" if infer else None)
