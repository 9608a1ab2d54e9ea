"""A cap on what a local server's clients may spend. What is being spent counts as well as what was."""

import contextlib
import dataclasses
from collections.abc import Generator, Mapping
from typing import Any, Final

from zg_async.errors import LimitError
from zg_async.units import format_amount
from zg_async.wire import billing
from zg_async.wire.records import InferenceService, Usage

DEFAULT_TOKENS: Final = 4096
"""Put into a request that names no bound, where there is a cap."""
_TEMPLATE_TOKENS: Final = 1024
"""What a chat template may add to the request's own text."""
_BYTES_PER_SECOND: Final = 1000
"""Of the most compressed speech."""


@dataclasses.dataclass(slots=True)
class Reservation:
    """What one request may cost; set `spent` once it is known."""

    amount: int
    spent: int | None = None


class Budget:
    """Neuron that may be spent while the server runs; None: no cap."""

    def __init__(self, cap: int | None) -> None:
        """Begin with nothing spent."""
        self.cap = cap
        self.spent = 0
        self.reserved = 0

    @contextlib.contextmanager
    def reserve(self, amount: int) -> Generator[Reservation, None, None]:
        """Hold an amount while a request runs; of one whose cost stays unknown all of it counts as spent.

        Raises:
            LimitError: The cap would be broken; nothing was sent.
        """
        if self.cap is not None and self.spent + self.reserved + amount > self.cap:
            left = self.cap - self.spent - self.reserved
            raise LimitError(
                f"this request may cost {format_amount(amount)}; of the cap of {format_amount(self.cap)} "
                f"{format_amount(max(left, 0))} are left",
                hint="Ask for fewer tokens, or start the server with a higher cap",
            )
        self.reserved += amount
        held = Reservation(amount)
        try:
            yield held
        finally:
            self.reserved -= amount
            self.spent += amount if held.spent is None else held.spent


def chat_bound(service: InferenceService, body: Mapping[str, Any], size: int) -> int:
    """Return the most a chat can cost in neuron: a token is at least a byte."""
    count = body.get("n")
    answers = count if type(count) is int and count > 0 else 1
    most = next((body[k] for k in ("max_completion_tokens", "max_tokens") if type(body.get(k)) is int), DEFAULT_TOKENS)
    return billing.fee_of_usage(
        service, Usage(prompt_tokens=size + _TEMPLATE_TOKENS, completion_tokens=max(most, 0) * answers)
    )


def bounded(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return a chat request that names a bound on its tokens."""
    if any(type(body.get(k)) is int for k in ("max_completion_tokens", "max_tokens")):
        return dict(body)
    return {**body, "max_tokens": DEFAULT_TOKENS}


def image_bound(service: InferenceService, count: int) -> int:
    """Return the most that some images cost."""
    return count * service.output_price


def speech_bound(service: InferenceService, size: int) -> int:
    """Return the most that a recording of some bytes costs."""
    return (size // _BYTES_PER_SECOND + 1) * max(service.input_price, service.output_price)
