"""JSON-RPC over the broker's one HTTP session: batches, caps, and errors of our own.

Every message names the host only: keys to RPC services stand in paths and queries. Reads are retried within bounds;
`eth_sendRawTransaction` never is, its sender decides by the hash. This is the only file that imports web3.
"""

import dataclasses
import datetime as dt
import email.utils
import importlib
import itertools
import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import aiohttp
from yarl import URL

from zg_async.clock import Clock
from zg_async.errors import ChainError, ChainUnavailableError, ConfigError, RpcError, WrongChainError
from zg_async.logs import get_logger
from zg_async.text import printable
from zg_async.tracing import detached_span
from zg_async.transport.http import Http, failure_text
from zg_async.transport.merging import Merger
from zg_async.transport.retry import RetryPolicy, retry
from zg_async.transport.rpc_errors import error_of
from zg_async.wire.strict_json import BadJsonError, decode_json

if TYPE_CHECKING:
    from web3 import AsyncWeb3

_log = get_logger("zg_async.rpc")
MIB: Final = 2**20
MAX_BATCH: Final = 100
_AT_ONCE: Final = 2
"""Exchanges of reads under way before others wait, to go together."""
_MERGED: Final = 20
"""The most requests of one asker that go with others'."""
_UNANSWERED: Final = -32005  # worth another try, as what a busy node says
_LISTS: Final = frozenset({"eth_getLogs", "eth_getBlockByNumber", "eth_getBlockByHash", "eth_getBlockReceipts"})
_BLOCKS: Final = frozenset({"eth_getBlockByNumber", "eth_getBlockByHash"})
_READS: Final = ("eth_get", "eth_call", "eth_estimateGas", "eth_blockNumber", "eth_chainId", "eth_gasPrice")
_MORE_READS: Final = ("eth_maxPriorityFeePerGas", "eth_feeHistory", "eth_syncing", "net_", "web3_", "txpool_")


class Ask(NamedTuple):
    """One request of a batch."""

    method: str
    params: Sequence[Any] = ()
    what: str | None = None
    """What it is for, in messages; None: the method."""
    contract: str | None = None
    """The address it calls, in errors."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RpcSettings:
    """Limits of the exchange with a node. Times in seconds, sizes in bytes."""

    timeout: float = 30.0
    reply_limit: int = 4 * MIB
    list_limit: int = 8 * MIB
    """For logs and blocks, and for batches."""
    retry: RetryPolicy = dataclasses.field(
        default_factory=lambda: RetryPolicy(attempts=4, max_elapsed=30.0, base=0.25, cap=4.0)
    )


class Rpc:
    """A node, or several that stand in for each other."""

    def __init__(
        self, urls: str | Sequence[str], http: Http, *, clock: Clock | None = None, settings: RpcSettings | None = None
    ) -> None:
        """Prepare; nothing is asked yet.

        Args:
            urls: The endpoint, or several in order of preference. Paths and queries are treated as secrets.
            http: Whose session is used; it stays the caller's.
            clock: For retries; None: the client's own.
            settings: Limits.

        Raises:
            ConfigError: Not an http URL.
        """
        self._urls = [_parse(url) for url in ([urls] if isinstance(urls, str) else urls)]
        if not self._urls:
            raise ConfigError("no RPC URL is known for this network", hint="Give one with rpc_url")
        self._http = http
        self._clock = clock or http.clock
        self._settings = settings or RpcSettings()
        self._ids = itertools.count(1)
        self._chain_id: int | None = None
        self._checked: set[int] = set()
        self._at = 0
        self.switches = 0
        """How often another endpoint took over."""
        self.last_switch = ""
        """The last time in words."""
        self._batches = True
        self._merger: Merger[Ask, dict[str, Any]] = Merger(self._post, at_once=_AT_ONCE, most=MAX_BATCH)
        for url in self._urls:
            http.allow(str(url.origin()))

    @property
    def endpoints(self) -> int:
        """How many endpoints there are."""
        return len(self._urls)

    @property
    def host(self) -> str:
        """Host and port of the endpoint in use: all of its URL that may be shown."""
        return self._urls[self._at].host_port_subcomponent or "?"

    def expect_chain(self, chain_id: int) -> None:
        """Refuse, from now on, endpoints on another chain; the one in use has been checked by the caller."""
        self._chain_id = chain_id
        self._checked.add(self._at)

    async def request(
        self,
        method: str,
        params: Sequence[Any] = (),
        *,
        what: str | None = None,
        contract: str | None = None,
        retries: bool = True,
    ) -> Any:
        """Ask one thing.

        Args:
            method: JSON-RPC method.
            params: JSON values.
            what: What it is for, in messages; None: the method.
            contract: The address it calls, in errors.
            retries: Whether a read may be repeated.

        Returns:
            The result.

        Raises:
            ContractRevertedError: The call was reverted.
            ChainUnavailableError: No answer, or the node is busy.
            RpcError: Another refusal, or an answer that can't be read.
        """
        results = await self.batch([Ask(method, params, what, contract)], retries=retries)
        if isinstance(results[0], ChainError):
            raise results[0]
        return results[0]

    async def batch(self, asks: Iterable[Ask | tuple[str, Sequence[Any]]], *, retries: bool = True) -> list[Any]:
        """Ask many things in as few round trips as possible (100 in each).

        Args:
            asks: `Ask`s, or plain (method, params).
            retries: Whether reads may be repeated when there was no answer, or the node was too busy for one of them.

        Returns:
            Results in order; in the place of a refused one its `ChainError`.

        Raises:
            ChainUnavailableError: No answer.
            RpcError: The whole answer can't be read.
        """
        wanted = [ask if isinstance(ask, Ask) else Ask(*ask) for ask in asks]
        results: list[Any] = []
        for start in range(0, len(wanted), MAX_BATCH):
            part = wanted[start : start + MAX_BATCH]
            for ask, answer in zip(part, await self._answers(part, retries=retries), strict=True):
                results.append(_result(ask, answer))
        return results

    async def everywhere(self, ask: Ask) -> list[tuple[str, Any]]:
        """Ask every endpoint the same thing, whichever is in use.

        Returns:
            Host and result of each that answered at all; in the place of a refused one its `ChainError`.
        """
        told: list[tuple[str, Any]] = []
        for index, url in enumerate(self._urls):
            try:
                await self._check_chain(index)
                told.append((_host(url), _result(ask, (await self._exchange(index, [ask]))[0])))
            except ChainError as error:
                _log.warning("the RPC endpoint %s can't be asked for a second opinion: %s", _host(url), error.message)
        return told

    async def _answers(self, asks: Sequence[Ask], *, retries: bool) -> Sequence[dict[str, Any]]:
        if not self._batches and len(asks) > 1:
            return [(await self._answers([ask], retries=retries))[0] for ask in asks]
        if not retries or not all(ask.method.startswith((*_READS, *_MORE_READS)) for ask in asks):
            return await self._post(asks)
        last: Sequence[dict[str, Any]] | None = None

        async def attempt() -> Sequence[dict[str, Any]]:
            nonlocal last
            last = None
            last = answers = await self._attempt(asks)
            for ask, answer in zip(asks, answers, strict=True):
                if "error" in answer and _is_busy(answer):
                    raise error_of(answer["error"], what=ask.method)
            return answers

        try:
            return await retry(
                attempt, clock=self._clock, policy=self._settings.retry, budget=self._http.budget(self.host)
            )
        except ChainUnavailableError:
            if last is None:
                raise
            return last  # refusals stand in their places

    async def _attempt(self, asks: Sequence[Ask]) -> Sequence[dict[str, Any]]:
        """Ask once, in one exchange with others while many are under way."""
        if self._batches and len(asks) <= _MERGED and not any(map(_may_be_large, asks)):
            answers = await self._merger.ask(asks)
            if isinstance(answers, ChainUnavailableError):  # everybody's own, to be tried again by each
                raise ChainUnavailableError(answers.message, hint=answers.hint, retry_after=answers.retry_after)
            if isinstance(answers, Sequence):
                return answers
        return await self._post(asks)

    async def _post(self, asks: Sequence[Ask]) -> Sequence[dict[str, Any]]:
        index = self._at
        try:
            await self._check_chain(index)
            return await self._exchange(index, asks)
        except (ChainUnavailableError, RpcError, WrongChainError) as error:  # a refused call is no error here
            if len(self._urls) == 1:
                raise
            self._switch(index, error)
            if isinstance(error, RpcError):  # the endpoint, not the chain, refuses: another may not
                raise ChainUnavailableError(error.message, hint=error.hint) from error
            raise

    def _switch(self, index: int, error: ChainError) -> None:
        if self._at != index:  # another call was faster
            return
        self._at = (index + 1) % len(self._urls)
        self.switches += 1
        self.last_switch = f"the RPC endpoint {_host(self._urls[index])} fails, going on with {self.host}"
        _log.warning("%s: %s", self.last_switch, error.message)

    async def _check_chain(self, index: int) -> None:
        if self._chain_id is None or index in self._checked:
            return
        answer = (await self._exchange(index, [Ask("eth_chainId")]))[0]
        if quantity(answer.get("result")) != self._chain_id:
            raise WrongChainError(f"{_host(self._urls[index])} isn't on chain {self._chain_id}", hint="Remove it")
        self._checked.add(index)

    async def _exchange(self, index: int, asks: Sequence[Ask]) -> Sequence[dict[str, Any]]:
        calls: list[dict[str, Any]] = [
            {"jsonrpc": "2.0", "id": next(self._ids), "method": ask.method, "params": list(ask.params)} for ask in asks
        ]
        is_list = len(asks) > 1 or asks[0].method in _LISTS
        limit = self._settings.list_limit if is_list else self._settings.reply_limit
        methods = "+".join(dict.fromkeys(ask.method for ask in asks))
        value = await self._send(self._urls[index], calls[0] if len(calls) == 1 else calls, limit, methods)
        if len(calls) > 1 and isinstance(value, dict) and "error" in value:
            if _is_busy(value):
                raise error_of(value["error"], what="a batch")
            self._batches = False  # this node takes no batches
            return await self._answers(asks, retries=False)
        return _by_id(value if isinstance(value, list) else [value], [call["id"] for call in calls])

    async def _send(self, url: URL, body: Any, limit: int, methods: str) -> Any:
        with detached_span("zg.rpc", host=_host(url), methods=methods):
            return await self._send_traced(url, body, limit)

    async def _send_traced(self, url: URL, body: Any, limit: int) -> Any:
        failure: ChainError | None = None
        status, headers, data = 0, {}, b""
        sent, metrics, started = (
            json.dumps(body, separators=(",", ":")).encode(),
            self._http.metrics,
            self._clock.monotonic(),
        )
        metrics.count("rpc.requests")
        metrics.count("rpc.bytes_sent", len(sent))
        try:
            async with (
                self._http.gate.turn(_host(url)) as turn,
                self._http.session.post(
                    url,
                    data=sent,
                    headers={"Content-Type": "application/json", "Accept-Encoding": "identity"},
                    timeout=aiohttp.ClientTimeout(total=self._settings.timeout),
                    allow_redirects=False,
                    raise_for_status=False,
                    auto_decompress=False,
                ) as response,
            ):
                status, headers = response.status, dict(response.headers)
                if status == 429:
                    turn.refused(retry_after({name.lower(): value for name, value in headers.items()}))
                else:
                    turn.answered()
                data = await _read(response, limit)
                metrics.count("rpc.bytes_received", len(data))
                metrics.observe("rpc.seconds", self._clock.monotonic() - started)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            failure = ChainUnavailableError(
                f"the RPC endpoint {_host(url)} gave no answer: {failure_text(error)}",
                hint="Check the endpoint and the network",
            )
        if failure is not None:
            raise failure
        if len(data) > limit:
            raise RpcError(f"the RPC endpoint {_host(url)} answered with more than {limit} bytes")
        return _parse_reply(_host(url), status, headers, data, limit)

    def web3(self) -> "AsyncWeb3[Any]":
        """Make an `AsyncWeb3` that talks through this transport: same session, same caps, no retries of its own.

        Importing web3 takes a second; call it where that doesn't hurt.
        """
        limit = sys.getrecursionlimit()
        try:
            web3 = importlib.import_module("web3")
            base = importlib.import_module("web3.providers.async_base").AsyncJSONBaseProvider
        finally:
            sys.setrecursionlimit(limit)  # py_ecc raises it to 100,000
        made: AsyncWeb3[Any] = web3.AsyncWeb3(_provider_class(base)(self))
        if "validation" in made.middleware_onion:  # it would ask eth_chainId before and after each call
            made.middleware_onion.remove("validation")
        return made


def _provider_class(base: Any) -> Any:
    class RpcProvider(base):  # type: ignore[misc]
        """web3's view of `Rpc`."""

        def __init__(self, rpc: Rpc) -> None:
            super().__init__()
            self._rpc = rpc

        async def make_request(self, method: str, params: Any) -> dict[str, Any]:
            return (await self._rpc._answers([Ask(method, params)], retries=True))[0]

        async def make_batch_request(self, requests: Sequence[tuple[str, Any]]) -> list[dict[str, Any]]:
            asks = [Ask(method, params) for method, params in requests]
            parts = [asks[start : start + MAX_BATCH] for start in range(0, len(asks), MAX_BATCH)]
            return [answer for part in parts for answer in await self._rpc._answers(part, retries=True)]

        async def is_connected(self, show_traceback: bool = False) -> bool:
            try:
                await self._rpc.request("eth_chainId")
            except ChainError:
                if show_traceback:
                    raise
                return False
            return True

        async def disconnect(self) -> None:
            """Leave the session open: it is the broker's."""

    return RpcProvider


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    if response.headers.get("Content-Encoding", "identity").strip().lower() not in ("identity", ""):
        raise aiohttp.ClientPayloadError
    data = bytearray()
    while chunk := await response.content.readany():
        data += chunk
        if len(data) > limit:
            break
    return bytes(data)


def _parse_reply(host: str, status: int, headers: dict[str, str], data: bytes, limit: int) -> Any:
    wait = retry_after({name.lower(): value for name, value in headers.items()})
    try:
        value, problem = decode_json(data, limit=limit), ""
    except BadJsonError as error:
        value, problem = None, f"{error}: "
    if status == 429:
        raise ChainUnavailableError(f"{host} limits the rate (status 429)", retry_after=wait)
    is_batch = isinstance(value, list)
    members = frozenset(value) if isinstance(value, dict) else frozenset()
    is_answer = is_batch or bool(members & {"result", "error"})
    if is_answer and (status < 500 or is_batch or members & {"id", "jsonrpc"}):
        return value  # also with status 4xx and 5xx: the body says more, if it is the node's and not a gateway's
    said = printable(data.decode(errors="replace"), limit=120)
    reason = f"{problem}{said!r}" if problem else said
    if status >= 500 or status == 408:
        raise ChainUnavailableError(f"{host} answered status {status}: {reason}", retry_after=wait)
    if status >= 300:
        hint = "Check the RPC URL and its key" if status in (401, 403, 404) else None
        raise RpcError(f"{host} answered status {status}: {reason}", hint=hint)
    raise RpcError(f"{host} answered no JSON-RPC: {reason}", hint="Is this the URL of an RPC endpoint?")


def _may_be_large(ask: Ask) -> bool:
    return ask.method in _LISTS and (ask.method not in _BLOCKS or ask.params[1:] != [False])


def _by_id(answers: Iterable[Any], ids: Sequence[int]) -> list[dict[str, Any]]:
    rows = [answer for answer in answers if isinstance(answer, dict) and "id" in answer]
    found = {row["id"]: row for row in rows if row["id"] is None or type(row["id"]) is int}
    if len(ids) == 1 and None in found:  # an error before the id was read
        found.setdefault(ids[0], found[None])
    missing = {"error": {"code": _UNANSWERED, "message": "the node left this request unanswered"}}
    return [found.get(number, missing) for number in ids]


def _result(ask: Ask, answer: dict[str, Any]) -> Any:
    error = answer.get("error")
    if error is not None:
        return error_of(error, what=ask.what or ask.method, contract=ask.contract)
    if "result" not in answer:
        return RpcError(f"the answer to {ask.what or ask.method} holds no result")
    return answer["result"]


def _is_busy(answer: dict[str, Any]) -> bool:
    return isinstance(error_of(answer["error"], what="a batch"), ChainUnavailableError)


def retry_after(headers: dict[str, str]) -> float | None:
    """Read a `Retry-After` header: seconds or a date; None for noise. Keys in lower case."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit() and len(text) < 10:
        return float(text)
    try:
        at = email.utils.parsedate_to_datetime(text)
        return max((at - dt.datetime.now(at.tzinfo)).total_seconds(), 0.0)
    except (ValueError, OverflowError, TypeError):
        return None


def quantity(value: Any) -> int:
    """Read a hex number of an answer.

    Raises:
        RpcError: It is none, or above 2**256.
    """
    if isinstance(value, str) and value.startswith("0x") and 2 < len(value) <= 66:
        try:
            return int(value, 16)
        except ValueError:
            pass
    raise RpcError(f"the node sent {printable(str(value), limit=40)!r} where a number should be")


def blob(value: Any) -> bytes:
    """Read hex bytes of an answer.

    Raises:
        RpcError: It is none.
    """
    if isinstance(value, str) and value.startswith("0x"):
        try:
            return bytes.fromhex(value[2:])
        except ValueError:
            pass
    raise RpcError(f"the node sent {printable(str(value), limit=40)!r} where bytes should be")


def _parse(text: str) -> URL:
    try:
        url = URL(text)
        if url.scheme in ("http", "https") and url.host:
            return url
    except ValueError:
        pass
    raise ConfigError("the RPC URL is no http URL", hint="It looks like https://host/path")


def _host(url: URL) -> str:
    return url.host_port_subcomponent or "?"
