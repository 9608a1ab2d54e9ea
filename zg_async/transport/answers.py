"""What comes back over HTTP: answers with caps, refusals and failures as errors of our own.

Foreign exceptions end here. They aren't chained: the `repr` of some holds request headers, of others proxy passwords,
and their tracebacks hold bodies with signatures. What is worth knowing goes into the message.
"""

import contextlib
import dataclasses
import os
import socket
import ssl
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final

import aiohttp

from zg_async.errors import (
    EndpointRefusedError,
    ProviderError,
    ProviderRejectedError,
    ProviderReplyError,
    ProviderUnavailableError,
)
from zg_async.metrics import Metrics
from zg_async.text import printable
from zg_async.transport.egress import AddressRefusedError
from zg_async.transport.limiter import Slot
from zg_async.transport.raw import Recording
from zg_async.wire.provider_api import rejected
from zg_async.wire.strict_json import BadJsonError, decode_json

_REQUEST_IDS: Final = ("X-Request-Id", "ZG-Res-Key")
ERROR_BODY_LIMIT: Final = 64 * 1024
"""Bytes of a refusal that are read."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A whole answer."""

    status: int
    headers: Mapping[str, str] = dataclasses.field(repr=False)
    """Case-insensitive."""
    body: bytes = dataclasses.field(repr=False)
    endpoint: str
    """`METHOD /path`."""
    provider: str | None = None

    @property
    def request_id(self) -> str | None:
        """The other side's name for the request, if it gave one."""
        return request_id_of(self.headers)

    @property
    def text(self) -> str:
        """The body as UTF-8; what isn't becomes a replacement character."""
        return self.body.decode(errors="replace")

    def json(self, *, depth: int = 64) -> Any:
        """Decode the body, whatever its declared type.

        Raises:
            ProviderReplyError: It isn't the strict JSON we take.
        """
        try:
            return decode_json(self.body, limit=len(self.body), depth=depth)
        except BadJsonError as error:
            raise ProviderReplyError(
                f"{self.endpoint} answered {self.status} with unreadable JSON ({error}): {printable(self.text)!r}",
                provider=self.provider,
                endpoint=self.endpoint,
            ) from None


def request_id_of(headers: Mapping[str, str]) -> str | None:
    """Return a request's name on the other side: providers call it `ZG-Res-Key`, gateways `X-Request-Id`."""
    found = next((headers[name] for name in _REQUEST_IDS if headers.get(name)), None)
    return None if found is None else printable(found, limit=100)


class Answer:
    """An answer whose body is still to be read. Lives as long as the exchange it came from."""

    def __init__(
        self,
        response: aiohttp.ClientResponse,
        *,
        endpoint: str,
        provider: str | None,
        metrics: Metrics | None = None,
        recording: Recording | None = None,
    ) -> None:
        """Wrap a response; `metrics` counts the body's bytes, `recording` keeps them."""
        self._metrics = metrics or Metrics()
        self._recording = recording
        self._response = response
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers
        self.endpoint = endpoint
        self.provider = provider

    @property
    def request_id(self) -> str | None:
        """The other side's name for this request, if it gave one."""
        return request_id_of(self.headers)

    @property
    def content_length(self) -> int | None:
        """The body's announced size in bytes."""
        return self._response.content_length

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Read the body as it comes.

        Raises:
            ProviderReplyError: It is compressed, which we didn't ask for and won't unpack.
            ProviderUnavailableError: The connection broke or fell silent, or the body is shorter than announced.
        """
        if self.headers.get("Content-Encoding", "identity").strip().lower() not in ("identity", ""):
            raise ProviderReplyError(
                f"{self.endpoint} answered with a compressed body",
                provider=self.provider,
                endpoint=self.endpoint,
            )
        while True:
            failure, chunk = None, b""
            try:
                chunk = await self._response.content.readany()
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                failure = translated(error, endpoint=self.endpoint, provider=self.provider)
            if failure is not None:
                raise failure
            if not chunk:
                return
            self._metrics.count("http.bytes_received", len(chunk))
            if self._recording is not None:
                self._recording.feed(chunk)
            yield chunk

    async def read(self, limit: int, *, cut: bool = False) -> bytes:
        """Read the whole body.

        Args:
            limit: Largest size in bytes.
            cut: Take the beginning of a larger one.

        Raises:
            ProviderReplyError: It is larger, or compressed.
            ProviderUnavailableError: The connection broke.
        """
        body = bytearray()
        async with contextlib.aclosing(self.chunks()) as chunks:
            async for chunk in chunks:
                body += chunk
                if len(body) > limit and cut:
                    return bytes(body[:limit])
                if len(body) > limit:
                    raise ProviderReplyError(
                        f"{self.endpoint} answered {self.status} with more than {limit} bytes",
                        provider=self.provider,
                        endpoint=self.endpoint,
                    )
        return bytes(body)

    async def reply(
        self, *, limit: int, slot: Slot | None = None, any_status: bool = False, cut: bool = False
    ) -> Reply:
        """Read the whole body and judge the status.

        Args:
            limit: Largest size in bytes.
            slot: The turn this request took, told of a 429.
            any_status: Take every status for an answer.
            cut: Take the beginning of a larger body.

        Raises:
            ProviderError: A status that isn't 2xx, as `wire.provider_api.rejected` classifies it, or no readable body.
        """
        if not 200 <= self.status < 300 and not any_status:
            raise await self.error(slot)
        return Reply(
            status=self.status,
            headers=self.headers,
            body=await self.read(limit, cut=cut),
            endpoint=self.endpoint,
            provider=self.provider,
        )

    async def error(self, slot: Slot | None = None) -> ProviderError:
        """Make an error of a refusal: status, endpoint and excerpt, whatever the body's form."""
        body = bytearray()
        with contextlib.suppress(ProviderError):  # what came is excerpt enough
            async with contextlib.aclosing(self.chunks()) as chunks:
                async for chunk in chunks:
                    body += chunk
                    if len(body) >= ERROR_BODY_LIMIT:
                        break
        text = body[:ERROR_BODY_LIMIT].decode(errors="replace")
        if 300 <= self.status < 400:
            return ProviderRejectedError(
                f"{self.endpoint} answered {self.status}, a redirect that isn't followed",
                status=self.status,
                body=printable(text),
                provider=self.provider,
                endpoint=self.endpoint,
                hint="The registered URL may be outdated; the provider has to register the new one",
            )
        failure = rejected(self.status, text, provider=self.provider, endpoint=self.endpoint, headers=self.headers)
        failure.request_id = self.request_id
        if self.status == 429 and slot is not None:
            slot.refused(failure.retry_after)
        return failure


def translated(
    error: Exception, *, endpoint: str, provider: str | None = None, host: str | None = None
) -> ProviderError:
    """Make an error of ours of one from aiohttp, without anything secret and without chaining.

    Args:
        error: An `aiohttp.ClientError`, `TimeoutError` or `OSError`.
        endpoint: `METHOD /path`.
        provider: Whose endpoint it is.
        host: What was connected to.

    Returns:
        `EndpointRefusedError` if the address policy spoke, else `ProviderUnavailableError`.
    """
    cause = getattr(error, "os_error", None)
    if isinstance(cause, AddressRefusedError):
        return EndpointRefusedError(
            str(cause),
            provider=provider,
            endpoint=endpoint,
            hint=f"If you trust it, allow it by name: allow_hosts=({host!r},)" if host else None,
        )
    at = f" at {printable(host, limit=80)}" if host else ""
    return ProviderUnavailableError(
        f"{endpoint}{at}: {failure_text(error)}",
        provider=provider,
        endpoint=endpoint,
        hint="Try again later, or another provider; see also that this machine is online",
    )


def failure_text(error: Exception) -> str:
    """Say why a request got no answer, in words that hold no header, query, user or password."""
    match error:
        case aiohttp.ConnectionTimeoutError():
            return "no connection within the time-out"
        case aiohttp.SocketTimeoutError():
            return "silent for longer than the idle time-out"
        case TimeoutError():
            return "no answer within the time-out"
        case aiohttp.ClientConnectorCertificateError():
            return f"bad certificate: {printable(str(error.certificate_error))}"
        case aiohttp.ClientConnectorError():
            return f"can't connect: {_os_text(error.os_error)}"
        case aiohttp.ServerDisconnectedError():
            return "the connection was closed without an answer"
        case aiohttp.ClientHttpProxyError():
            return f"the proxy answered {error.status}"
        case aiohttp.ClientPayloadError():
            return "the answer was cut short"
        case aiohttp.ClientResponseError():
            return "the answer isn't HTTP"
        case OSError():
            return f"the connection broke: {_os_text(error)}"
        case _:
            return f"the connection broke ({type(error).__name__})"


def _os_text(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return f"TLS: {printable(str(error.reason or error.strerror))}"
    if isinstance(error, socket.gaierror):
        return f"the name can't be resolved ({error.strerror})"
    return os.strerror(error.errno) if error.errno and error.errno > 0 else type(error).__name__
