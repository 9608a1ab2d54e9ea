"""Whom a local server asks: providers and plain OpenAI endpoints, by priority, those that failed lately last."""

import dataclasses
from collections.abc import Sequence
from typing import Final

from zg_async.clock import Clock
from zg_async.errors import ConfigError
from zg_async.wire.hashing import parse_address

PROVIDER_PRIORITY: Final = 100
ENDPOINT_PRIORITY: Final = 50
ENDPOINT_MODEL: Final = "gpt-3.5-turbo"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProviderUpstream:
    """An inference provider of the network."""

    address: str
    priority: int = PROVIDER_PRIORITY
    """Lower is asked first."""
    model: str | None = None
    """None: the service's own."""

    @property
    def id(self) -> str:
        """Its name in answers and states."""
        return self.address


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EndpointUpstream:
    """A plain OpenAI-compatible endpoint; its answers are signed by nobody."""

    id: str
    url: str
    """Up to and with `/v1`."""
    api_key: str = dataclasses.field(repr=False)
    model: str = ENDPOINT_MODEL
    priority: int = ENDPOINT_PRIORITY


Upstream = ProviderUpstream | EndpointUpstream


def parse_provider(text: str, *, priority: int = PROVIDER_PRIORITY) -> ProviderUpstream:
    """Read `address` or `address,priority`; `priority` is that of one without.

    Raises:
        ConfigError: It is neither.
    """
    address, _, own = text.partition(",")
    return ProviderUpstream(address=parse_address(address.strip(), what="provider"), priority=_priority(own, priority))


def parse_endpoint(text: str, environment: dict[str, str], *, priority: int = ENDPOINT_PRIORITY) -> EndpointUpstream:
    """Read `id,url,env:NAME[,model[,priority]]`; the key comes from the environment, never from the command line.

    `priority` is that of one without.

    Raises:
        ConfigError: A part is missing, or the variable isn't set.
    """
    parts = [part.strip() for part in text.split(",")]
    if not 3 <= len(parts) <= 5 or not parts[0] or not parts[1]:
        raise ConfigError("an endpoint is id,url,env:NAME[,model[,priority]]", hint=f"not {text[:40]!r}")
    if not parts[2].startswith("env:"):
        raise ConfigError(
            f"the key of endpoint {parts[0][:40]!r} stands on the command line, where other users can read it",
            hint="Put it into an environment variable and write env:NAME",
        )
    key = environment.get(parts[2].removeprefix("env:"), "")
    if not key:
        raise ConfigError(f"the environment variable {parts[2].removeprefix('env:')[:60]!r} isn't set")
    return EndpointUpstream(
        id=parts[0],
        url=parts[1].rstrip("/"),
        api_key=key,
        model=parts[3] if len(parts) > 3 and parts[3] else ENDPOINT_MODEL,
        priority=_priority(parts[4] if len(parts) > 4 else "", priority),
    )


def _priority(text: str, default: int) -> int:
    if not text.strip():
        return default
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"a priority is a whole number, not {text[:20]!r}") from None


class Upstreams:
    """All of a server's upstreams, and which of them failed lately."""

    def __init__(self, upstreams: Sequence[Upstream], clock: Clock, *, pause: float = 60.0) -> None:
        """Begin with all of them healthy.

        Args:
            upstreams: At least one.
            clock: The source of time.
            pause: Seconds for which one that failed isn't asked while others are there.

        Raises:
            ConfigError: There is none, or two have the same name.
        """
        if not upstreams or len({u.id for u in upstreams}) != len(upstreams):
            raise ConfigError("give at least one provider or endpoint, and each once")
        self.all = tuple(sorted(upstreams, key=lambda u: u.priority))
        self._clock = clock
        self._pause = pause
        self._failed: dict[str, tuple[float, str]] = {}

    def candidates(self) -> tuple[Upstream, ...]:
        """Return whom to ask, in order; when all have failed lately, all of them anew."""
        healthy = tuple(u for u in self.all if self.failure(u) is None)
        if not healthy:
            self._failed.clear()
            return self.all
        return healthy

    def failure(self, upstream: Upstream) -> str | None:
        """Return why it isn't asked now; None: it is."""
        failed = self._failed.get(upstream.id)
        if failed is None or self._clock.monotonic() - failed[0] >= self._pause:
            return None
        return failed[1]

    def failed(self, upstream: Upstream, reason: str) -> None:
        """Say that it failed."""
        self._failed[upstream.id] = (self._clock.monotonic(), reason)
