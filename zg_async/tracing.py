"""OpenTelemetry spans, where the program uses OpenTelemetry; else nothing, and nothing is imported.

A program that traces has imported `opentelemetry.trace`, and what it set up there is used; the extra `tracing` names
the versions that this is tested with. Spans carry what they belong to as `zg.job_id` and so on, and no secret: of URLs
only the path.
"""

import contextlib
import functools
import inspect
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final, Protocol, TypeVar

from zg_async.correlation import correlated, correlation, forget

C = TypeVar("C", bound=type)
_API: Final = "opentelemetry.trace"
_BOUND: Final = {"provider": "provider", "provider_address": "provider", "task_id": "task_id"}


class Span(Protocol):
    """What we need of a span."""

    def set_attribute(self, key: str, value: Any) -> None:
        """Note a fact."""
        ...


class _NoSpan:
    def set_attribute(self, key: str, value: Any) -> None:
        """Do nothing."""


_NONE: Final = _NoSpan()


@contextlib.contextmanager
def span(name: str, **attributes: str | int) -> Iterator[Span]:
    """Trace a `with` block in a coroutine or a plain function; an error that leaves it is noted.

    Args:
        name: What it does, e.g. `zg.stage`.
        attributes: Facts, noted as `zg.<name>`.

    Yields:
        The span, for facts that come later.
    """
    api = sys.modules.get(_API)
    if api is None:
        yield _NONE
        return
    with api.get_tracer("zg_async").start_as_current_span(name, attributes=_attributes(attributes)) as current:
        yield current


@contextlib.contextmanager
def detached_span(name: str, **attributes: str | int) -> Iterator[Span]:
    """Trace a block that may be left in another context than it was entered in, so no other span becomes its child."""
    api = sys.modules.get(_API)
    if api is None:
        yield _NONE
        return
    current = api.get_tracer("zg_async").start_span(name, attributes=_attributes(attributes))
    try:
        yield current
    except Exception as error:
        current.record_exception(error)
        current.set_status(api.StatusCode.ERROR, type(error).__name__)
        raise
    finally:
        current.end()


def unbound() -> None:
    """Forget, in this context, what it belongs to and which span is current."""
    forget()
    if (api := sys.modules.get(_API)) is not None:
        sys.modules["opentelemetry.context"].attach(api.set_span_in_context(api.INVALID_SPAN))


def _attributes(own: dict[str, str | int]) -> dict[str, str | int]:
    return {f"zg.{name}": value for name, value in {**correlation(), **own}.items()}


def observed(group: str) -> Callable[[C], C]:
    """Decorate a manager: its public coroutine methods bind the provider and task they are given, and are spans.

    Args:
        group: Stands in the spans' names: `zg.<group>.<method>`.
    """

    def decorate(cls: C) -> C:
        for name, method in list(vars(cls).items()):
            if not name.startswith("_") and inspect.iscoroutinefunction(method):
                setattr(cls, name, _observed(f"zg.{group}.{name}", method))
        return cls

    return decorate


def _observed(name: str, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    places = {
        place: _BOUND[parameter]
        for place, parameter in enumerate(inspect.signature(method).parameters)
        if parameter in _BOUND
    }

    @functools.wraps(method)
    async def call(*arguments: Any, **options: Any) -> Any:
        told = {field: arguments[place] for place, field in places.items() if place < len(arguments)}
        told |= {_BOUND[option]: value for option, value in options.items() if option in _BOUND}
        with correlated(**told), span(name):
            return await method(*arguments, **options)

    return call
