"""HTTP to providers: one pooled session, the address policy, time-outs, caps, and errors of our own.

Redirects are never followed for a request that carries a body, a signature or a token: aiohttp would repeat the body,
a dataset included, to whatever host a 307 names.
"""

import contextlib
import dataclasses
import ssl
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final

import aiohttp
import anyio
from yarl import URL

from zg_async import __version__
from zg_async.clock import Clock, SystemClock
from zg_async.correlation import correlated
from zg_async.errors import (
    ClosedError,
    ConfigError,
    ProviderError,
    ProviderRejectedError,
    ProviderUnavailableError,
)
from zg_async.logs import get_logger
from zg_async.metrics import Metrics
from zg_async.text import printable
from zg_async.tracing import detached_span
from zg_async.transport.answers import Answer as Answer
from zg_async.transport.answers import Reply as Reply
from zg_async.transport.answers import failure_text as failure_text
from zg_async.transport.answers import translated as translated
from zg_async.transport.egress import Egress, JudgingResolver
from zg_async.transport.limiter import Limiter, ProviderLimits, Slot
from zg_async.transport.raw import recording
from zg_async.transport.request_gate import RequestGate, RequestLimits
from zg_async.transport.retry import ONCE, RetryBudget, RetryPolicy, retry
from zg_async.transport.server_clock import ServerClocks
from zg_async.wire.provider_api import retry_after

KIB: Final = 1024
MIB: Final = 1024 * KIB
_MAX_REDIRECTS: Final = 3
_KEEP_ALIVE: Final = 45.0
"""Seconds an idle connection is kept: longer than the longest pause between two rounds of a watch."""
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_log = get_logger("zg_async.http")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HttpSettings:
    """How we talk HTTP. Times in seconds."""

    connect_timeout: float = 10.0
    idle_timeout: float = 60.0
    """Longest silence of the other side."""
    control_timeout: float = 60.0
    """Longest duration of a call that transfers no file; transfers have none."""
    min_rate: float = 1024.0
    """Bytes per second below which a transfer counts as stalled, averaged over a minute."""
    proxy: str | None = dataclasses.field(default=None, repr=False)
    """URL of an HTTP proxy for everything; may hold user and password."""
    ca_file: str | None = None
    """PEM file with certificate authorities to trust besides the system's."""
    allow_hosts: tuple[str, ...] = ()
    """Hosts, or `host:port`, that may have private addresses and plain http."""
    max_connections: int = 100
    """Open at once; transfers take at most three quarters, so that control calls get through."""
    limits: ProviderLimits = dataclasses.field(default_factory=ProviderLimits)
    requests: RequestLimits = dataclasses.field(default_factory=RequestLimits)
    retry: RetryPolicy = dataclasses.field(default_factory=RetryPolicy)


class Http:
    """The one HTTP client of a broker. An async context manager; a session given to it stays open."""

    def __init__(
        self,
        *,
        session: aiohttp.ClientSession | None = None,
        settings: HttpSettings | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Prepare a client; nothing is opened before `open`.

        Args:
            session: A session of the caller's. Its own connector resolves names then, so that resolved addresses
                can't be judged, only names and literal addresses.
            settings: Time-outs, proxy and the like.
            clock: The source of time.

        Raises:
            ConfigError: `allow_hosts`, `proxy` or `ca_file` can't be used.
        """
        self.settings = settings or HttpSettings()
        self.clock: Clock = clock or SystemClock()
        proxy = self.settings.proxy
        self.egress = Egress(self.settings.allow_hosts, by_name_only=proxy is not None)
        if proxy is not None:
            self.egress.allow(proxy)
        self._ssl = _ssl_context(self.settings.ca_file)
        self.limiter = Limiter(self.clock, self.settings.limits)
        self.metrics = Metrics()
        self.gate = RequestGate(self.clock, self.settings.requests)
        self.server_clocks = ServerClocks(self.clock)
        self.transfers = anyio.CapacityLimiter(max(1, self.settings.max_connections * 3 // 4))
        self._budgets: dict[str, RetryBudget] = {}
        self._session = session
        self._owned = session is None
        self._resolver: JudgingResolver | None = None
        self._closed = False

    async def open(self) -> None:
        """Open the session. Idempotent."""
        if self._closed:
            raise self._not_open()
        if self._session is not None:
            return
        if self.settings.proxy is not None:
            _log.warning("behind a proxy only the names of providers can be judged, not their addresses")
        self._resolver = JudgingResolver(self.egress)
        connector = aiohttp.TCPConnector(
            limit=self.settings.max_connections,
            keepalive_timeout=_KEEP_ALIVE,
            ssl=self._ssl if self._ssl is not None else True,
            resolver=self._resolver,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": f"zg-async/{__version__}"},
            proxy=self.settings.proxy,  # for JSON-RPC, which sends by itself
        )

    async def aclose(self) -> None:
        """Close the session if it is ours. Idempotent."""
        self._closed = True
        session, self._session = self._session, None
        if session is not None and self._owned:
            await session.close()
        resolver, self._resolver = self._resolver, None
        if resolver is not None:
            await resolver.close()

    async def __aenter__(self) -> "Http":
        await self.open()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    @property
    def session(self) -> aiohttp.ClientSession:
        """The session, for JSON-RPC; its users switch redirects off and translate errors with `translated`."""
        if self._session is None:
            raise self._not_open()
        return self._session

    def _not_open(self) -> ClosedError:
        if self._closed:
            return ClosedError("the broker is closed", hint="Make another one with create_broker")
        return ClosedError("the broker is not open yet", hint="Use it as `async with create_broker(...) as broker`")

    def allow(self, host_or_url: str) -> None:
        """Allow a host the user configured, such as the RPC endpoint's."""
        self.egress.allow(host_or_url)

    def budget(self, host: str) -> RetryBudget:
        """Return the retry budget of a host, shared by all calls to it."""
        return self._budgets.setdefault(host, RetryBudget(self.clock, metrics=self.metrics))

    @contextlib.asynccontextmanager
    async def exchange(
        self,
        method: str,
        url: str,
        *,
        json: object = None,
        data: Any = None,
        headers: Mapping[str, str] | None = None,
        provider: str | None = None,
        transfer: bool = False,
        read_timeout: float | None = None,
        plain_http: bool = False,
    ) -> AsyncGenerator[Answer, None]:
        """Send one request, once, and look at the answer while its body is still on the way.

        Args:
            method: The HTTP method.
            url: Where to; judged by the address policy.
            json: A body to encode.
            data: A body as it is.
            headers: Further headers.
            provider: Whose endpoint it is, for errors.
            transfer: A file goes or comes: no total time-out.
            read_timeout: Longest silence in seconds; None means the settings' `idle_timeout`.
            plain_http: Whether http will do at a public address: for bytes that are public and proven.

        Yields:
            The answer, of any status, redirects included.

        Raises:
            EndpointRefusedError: The policy forbids the address.
            ProviderUnavailableError: No answer.
        """
        target = self.egress.check_url(url, provider=provider, plain_http=plain_http)
        endpoint = f"{method} {target.path}"
        with detached_span("zg.http", endpoint=endpoint, host=target.raw_host or "") as traced:
            started, sent_at = self.clock.monotonic(), self.clock.now()
            self.metrics.count("http.requests")
            failure: ProviderError | None = None
            response: aiohttp.ClientResponse | None = None
            try:
                response = await self.session.request(
                    method,
                    target,
                    json=json,
                    data=data,
                    headers={"Accept-Encoding": "identity", **(headers or {})},
                    timeout=self._timeout(transfer, read_timeout),
                    allow_redirects=False,
                    proxy=self.settings.proxy,
                    raise_for_status=False,
                    auto_decompress=False,
                    read_bufsize=MIB if transfer else 64 * KIB,
                )
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                failure = translated(error, endpoint=endpoint, provider=provider, host=target.raw_host)
            if failure is not None or response is None:
                raise failure or ProviderUnavailableError(
                    f"{endpoint}: no answer", provider=provider, endpoint=endpoint
                )
            heard = recording()
            answer = Answer(response, endpoint=endpoint, provider=provider, metrics=self.metrics, recording=heard)
            self.metrics.observe("http.seconds", self.clock.monotonic() - started)
            traced.set_attribute("zg.status", answer.status)
            self.server_clocks.saw(f"{target.raw_host}:{target.port}", answer.headers.get("Date"), sent_at)
            with correlated(provider=provider, request_id=answer.request_id):
                waited = self.clock.monotonic() - started
                _log.debug("%s answered %d after %.3f s", endpoint, answer.status, waited)
            try:
                yield answer
            finally:
                if heard is not None:
                    heard.end(answer)
                response.release()  # keeps the connection only if the body was read to its end
                with anyio.CancelScope(shield=True):
                    await response.wait_for_close()  # an upload cut short has a writer to end

    def _timeout(self, transfer: bool, read_timeout: float | None) -> aiohttp.ClientTimeout:
        settings = self.settings
        return aiohttp.ClientTimeout(
            total=None if transfer else settings.control_timeout,
            sock_connect=settings.connect_timeout,
            sock_read=settings.idle_timeout if read_timeout is None else read_timeout,
        )

    async def request(
        self,
        method: str,
        url: str,
        *,
        json: object = None,
        headers: Mapping[str, str] | None = None,
        limit: int = 256 * KIB,
        provider: str | None = None,
        idempotent: bool | None = None,
        signed: bool = False,
        limited: bool = False,
        raw_status: bool = False,
        cut: bool = False,
        policy: RetryPolicy | None = None,
    ) -> Reply:
        """Make a control call: small body, small answer.

        Args:
            method: The HTTP method.
            url: Where to.
            json: A body to encode.
            headers: Further headers.
            limit: Largest answer in bytes.
            provider: Whose endpoint it is, for errors.
            idempotent: Whether it may be repeated when no answer came; None: GET only.
            signed: Whether URL or headers carry a signature or token; then no redirect is followed, nor with a body.
            limited: Whether it is one of the routes under the provider's rate limit.
            raw_status: Return answers of any status instead of raising.
            cut: Return the beginning of a body over the limit instead of raising.
            policy: Retry bounds; None means the settings'.

        Returns:
            The answer, 2xx unless `raw_status`.

        Raises:
            ProviderUnavailableError: No answer, 429 or 5xx, after the retries (retryable).
            ProviderError: A refusal, as `wire.provider_api.rejected` classifies it, or a forbidden address.
            ProviderReplyError: The answer is too large.
        """
        call = _Call(
            method=method,
            url=url,
            json=json,
            headers=headers,
            limit=limit,
            provider=provider,
            follow=method == "GET" and json is None and not headers and not signed,
            raw_status=raw_status,
            cut=cut,
        )
        host = self.host_of(url, provider=provider)

        async def in_turn() -> Reply:
            async with self.limiter.slot(host) as slot:
                return await self._once(call, slot)

        async def at_once() -> Reply:
            return await self._once(call, None)

        repeatable = method == "GET" if idempotent is None else idempotent
        chosen = (policy or self.settings.retry) if repeatable else ONCE
        with correlated(provider=provider):
            return await retry(
                in_turn if limited else at_once, clock=self.clock, policy=chosen, budget=self.budget(host)
            )

    async def _once(self, call: "_Call", slot: Slot | None) -> Reply:
        url = call.url
        for _ in range(_MAX_REDIRECTS + 1):
            host = self.host_of(url, provider=call.provider)
            async with (
                self.gate.turn(host) as turn,
                self.exchange(call.method, url, json=call.json, headers=call.headers, provider=call.provider) as answer,
            ):
                if answer.status == 429:
                    turn.refused(retry_after(answer.headers))
                else:
                    turn.answered()
                onward = _same_origin(url, answer) if call.follow else None
                if onward is None:
                    return await answer.reply(limit=call.limit, slot=slot, any_status=call.raw_status, cut=call.cut)
                url = onward
        raise ProviderRejectedError(
            f"{call.method} {URL(call.url).path}: more than {_MAX_REDIRECTS} redirects",
            status=302,
            provider=call.provider,
            endpoint=f"{call.method} {URL(call.url).path}",
        )

    def host_of(self, url: str, *, provider: str | None = None) -> str:
        """Return the `host:port` that limits and budgets belong to."""
        target = self.egress.check_url(url, provider=provider)
        return f"{target.raw_host}:{target.port}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """A control call; its parts stay out of `repr`, they may be secrets."""

    method: str
    url: str = dataclasses.field(repr=False)
    json: object = dataclasses.field(repr=False)
    headers: Mapping[str, str] | None = dataclasses.field(repr=False)
    limit: int
    provider: str | None
    follow: bool
    raw_status: bool
    cut: bool


def _same_origin(url: str, answer: Answer) -> str | None:
    """Where a redirect leads, if it stays with the same scheme, host and port."""
    if answer.status not in _REDIRECTS:
        return None
    here = URL(url)
    try:
        there = here.join(URL(answer.headers.get("Location", "")))
        return str(there) if there.origin() == here.origin() else None
    except ValueError:
        return None


def _ssl_context(ca_file: str | None) -> ssl.SSLContext | None:
    if ca_file is None:
        return None
    context = ssl.create_default_context()
    try:
        context.load_verify_locations(cafile=ca_file)
    except (OSError, ssl.SSLError):
        raise ConfigError(
            f"{printable(ca_file)!r} holds no certificate authorities", hint="ca_file takes a PEM file"
        ) from None
    return context
