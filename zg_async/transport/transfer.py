"""Files over HTTP: an upload whose hash is taken of the bytes sent, and a download that resumes.

Both run two sides at once, the network in the loop and the file with its hashes in a thread, a few pieces apart. Each
attempt is one of the provider's rate-limited requests and carries a fresh signature. There is no total time-out: a side
that is silent, or slower than `min_rate`, ends the attempt.
"""

import contextlib
import dataclasses
import re
import shutil
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from zg_async.errors import ConfigError, ProviderError, ProviderReplyError, ProviderUnavailableError
from zg_async.transport.files import HasherFactory, PartFile, SourceFile, shown
from zg_async.transport.http import MIB, Answer, Http, Reply
from zg_async.transport.limiter import Slot
from zg_async.transport.multipart import MultipartForm
from zg_async.transport.retry import RetryPolicy, retry
from zg_async.wire.hashing import Keccak256

TRANSFER_POLICY: Final = RetryPolicy(attempts=5, max_elapsed=900.0, base=2.0, cap=30.0)
_SLICE: Final = 64 * 1024
_DEPTH: Final = 3
_PROGRESS: Final = 64 * 1024
_RATE_WINDOW: Final = 60.0
_SPARE_DISK: Final = 16 * MIB
_CONTENT_RANGE: Final = re.compile(r"bytes (?:([0-9]{1,18})-([0-9]{1,18})|\*)/([0-9]{1,18})")


@dataclasses.dataclass(slots=True)
class Progress:
    """How far a transfer is. Read it whenever you like; nothing is pushed."""

    bytes_done: int = 0
    bytes_total: int | None = None
    """None: not known yet."""
    attempt: int = 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Uploaded:
    """A file that was sent."""

    reply: Reply
    size: int
    keccak256: bytes
    """Of the bytes sent."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Downloaded:
    """A file that was received, durable, under the name it was received as."""

    path: Path
    size: int
    digests: tuple[bytes, ...]
    """keccak256 first, then the extra hashers' in order."""
    fetched: int
    """Bytes that came over the network in this call, repeats included."""
    kept: int
    """Bytes of the result that an earlier call had left."""

    @property
    def keccak256(self) -> bytes:
        """The file's keccak256."""
        return self.digests[0]


async def upload_file(
    http: Http,
    url: str,
    *,
    path: Path,
    filename: str,
    fields: Callable[[], Awaitable[Mapping[str, str]]],
    provider: str | None = None,
    progress: Progress | None = None,
    policy: RetryPolicy = TRANSFER_POLICY,
) -> Uploaded:
    """Send a file as the `file` part of a form, repeated as a whole when no answer came.

    Args:
        http: The client.
        url: Where to; one of the rate-limited routes.
        path: A regular file, which must not change meanwhile.
        filename: Its name in the form; see `multipart.plain_filename`.
        fields: Makes the other fields, afresh for each attempt: they hold a signature with a time.
        provider: Whose endpoint it is, for errors.
        progress: Kept up to date.
        policy: Retry bounds.

    Returns:
        The answer, and the hash of what was sent.

    Raises:
        ConfigError: The file can't be read, or changed.
        ProviderUnavailableError: No success after the retries (retryable).
        ProviderError: The provider refused.
    """
    host = http.host_of(url, provider=provider)
    shown_progress = progress or Progress()

    async def attempt() -> Uploaded:
        async with http.limiter.slot(host) as slot, http.transfers:
            return await _Upload(http, url, path, filename, provider, shown_progress).run(await fields(), slot)

    return await retry(attempt, clock=http.clock, policy=policy, budget=http.budget(host))


class _Upload:
    """One attempt."""

    def __init__(
        self, http: Http, url: str, path: Path, filename: str, provider: str | None, progress: Progress
    ) -> None:
        self._http = http
        self._url = url
        self._path = path
        self._filename = filename
        self._provider = provider
        self._progress = progress
        self._fault: ConfigError | None = None
        self._idle = anyio.CancelScope()

    async def run(self, fields: Mapping[str, str], slot: Slot) -> Uploaded:
        keccak = Keccak256()
        source = await anyio.to_thread.run_sync(SourceFile, self._path, (keccak,))
        try:
            form = MultipartForm(fields, file_field="file", filename=self._filename, file_size=source.size)
            self._progress.bytes_done, self._progress.bytes_total = 0, source.size
            self._progress.attempt += 1
            reply = await self._send(source, form, slot)
            return Uploaded(reply=reply, size=source.size, keccak256=keccak.digest())
        finally:
            source.close()

    async def _send(self, source: SourceFile, form: MultipartForm, slot: Slot) -> Reply:
        outcome: Reply | ProviderError | None = None
        pieces, body = anyio.create_memory_object_stream[bytes](_DEPTH)
        async with anyio.create_task_group() as group:
            group.start_soon(self._read, source, pieces)
            with body, self._idle:
                try:
                    outcome = await self._exchange(form, body, slot)
                except ProviderError as error:
                    outcome = error
        if self._fault is not None:
            raise self._fault
        if isinstance(outcome, Reply):
            return outcome
        raise outcome or ProviderUnavailableError(
            f"POST to {self._http.host_of(self._url)}: the upload stalled", provider=self._provider
        )

    async def _exchange(self, form: MultipartForm, body: MemoryObjectReceiveStream[bytes], slot: Slot) -> Reply:
        settings = self._http.settings
        patience = settings.control_timeout + 3.0 * form.content_length / MIB  # it converts the file before it answers
        async with self._http.exchange(
            "POST",
            self._url,
            data=_Body(form, body, self._handed),
            headers={"Content-Type": form.content_type, "Content-Length": str(form.content_length)},
            provider=self._provider,
            transfer=True,
            read_timeout=patience,
        ) as answer:
            self._idle.deadline = anyio.current_time() + settings.control_timeout
            return await answer.reply(limit=MIB, slot=slot)

    def _handed(self, size: int) -> None:
        """Note that so many more bytes of the file went out; -1 says that the form is complete."""
        if size < 0:
            self._idle.deadline = float("inf")
            return
        self._progress.bytes_done += size
        self._http.metrics.count("http.bytes_uploaded", size)
        self._idle.deadline = anyio.current_time() + self._http.settings.idle_timeout

    async def _read(self, source: SourceFile, pieces: MemoryObjectSendStream[bytes]) -> None:
        with pieces:
            try:
                while piece := await anyio.to_thread.run_sync(source.read):
                    await pieces.send(piece)
            except anyio.BrokenResourceError:  # the exchange is over
                return
            except ConfigError as error:
                self._fault = error


class _Body:
    """The form as aiohttp takes it: slices small enough that a slow line isn't taken for a dead one."""

    def __init__(
        self, form: MultipartForm, pieces: MemoryObjectReceiveStream[bytes], handed: Callable[[int], None]
    ) -> None:
        self._head: bytes | None = form.head
        self._tail: bytes | None = form.tail
        self._left = form.content_length - len(form.head) - len(form.tail)
        self._pieces = pieces
        self._piece = memoryview(b"")
        self._last = 0
        self._handed = handed

    def __aiter__(self) -> "_Body":
        return self

    async def __anext__(self) -> bytes | memoryview:
        self._handed(self._last)
        self._last = 0
        if self._head is not None:
            head, self._head = self._head, None
            return head
        if not self._piece and self._left:
            try:
                self._piece = memoryview(await self._pieces.receive())
            except anyio.EndOfStream:  # the reader found a fault: break the request off
                raise OSError("the file can't be read") from None
        if self._piece:
            part, self._piece = self._piece[:_SLICE], self._piece[_SLICE:]
            self._last = len(part)
            self._left -= self._last
            return part
        if self._tail is None:
            self._handed(-1)
            raise StopAsyncIteration
        tail, self._tail = self._tail, None
        return tail


async def download_file(
    http: Http,
    url: str,
    *,
    path: Path,
    body: Callable[[], Awaitable[object]],
    provider: str | None = None,
    progress: Progress | None = None,
    extra_hashers: Sequence[HasherFactory] = (),
    accept: Callable[[tuple[bytes, ...]], bool] | None = None,
    limit: int | None = None,
    policy: RetryPolicy = TRANSFER_POLICY,
) -> Downloaded:
    """Fetch a file with POST, going on where an earlier attempt or call stopped.

    Args:
        http: The client.
        url: Where from; one of the rate-limited routes.
        path: Where to; what lies there is taken as the file's beginning. Never the final name: the caller verifies
            the hashes, which settle whether the beginning was right, and then renames.
        body: Makes the JSON body, afresh for each attempt: it holds a signature with a time.
        provider: Whose endpoint it is, for errors.
        progress: Kept up to date.
        extra_hashers: Make further hashes to be taken beside keccak256.
        accept: Judges the digests of what lies at `path` already; True means there is nothing to fetch.
        limit: Largest size in bytes; None means what the disk holds.
        policy: Bounds for attempts without progress.

    Returns:
        Size and hashes of the complete, synced file at `path`.

    Raises:
        ConfigError: The file can't be written, or the disk is too small.
        ProviderUnavailableError: No success after the retries; what came is kept (retryable).
        ProviderReplyError: Larger than `limit`, or no plain file.
        ProviderError: The provider refused.
    """
    part = await anyio.to_thread.run_sync(PartFile, path, (Keccak256, *extra_hashers))
    try:
        return await _Download(http, url, part, body, provider, progress or Progress(), limit).run(accept, policy)
    finally:
        part.close()


class _Download:
    """One call, over all its attempts."""

    def __init__(
        self,
        http: Http,
        url: str,
        part: PartFile,
        body: Callable[[], Awaitable[object]],
        provider: str | None,
        progress: Progress,
        limit: int | None,
    ) -> None:
        self._http = http
        self._url = url
        self._host = http.host_of(url, provider=provider)
        self._part = part
        self._body = body
        self._provider = provider
        self._progress = progress
        self._limit = limit
        self._total: int | None = None
        self._modified: str | None = None
        self._fetched = 0
        self._kept = 0
        self._fault: ConfigError | None = None

    async def run(self, accept: Callable[[tuple[bytes, ...]], bool] | None, policy: RetryPolicy) -> Downloaded:
        while await anyio.to_thread.run_sync(self._part.hash_more):
            self._progress.bytes_done = self._part.size
        self._kept = self._part.size
        if not (self._part.size and accept is not None and accept(self._part.digests())):
            await self._fetch(policy)
        await anyio.to_thread.run_sync(self._part.sync)
        return Downloaded(
            path=self._part.path,
            size=self._part.size,
            digests=self._part.digests(),
            fetched=self._fetched,
            kept=self._kept,
        )

    async def _fetch(self, policy: RetryPolicy) -> None:
        while True:  # the policy bounds attempts that bring nothing; each round here has brought something
            before = self._fetched
            try:
                await retry(self._attempt, clock=self._http.clock, policy=policy, budget=self._http.budget(self._host))
                return
            except ProviderUnavailableError:
                if self._fetched - before < _PROGRESS:
                    raise

    async def _attempt(self) -> None:
        self._progress.attempt += 1
        start = self._part.size
        async with (
            self._http.limiter.slot(self._host) as slot,
            self._http.transfers,
            self._http.exchange(
                "POST",
                self._url,
                json=await self._body(),
                headers={"Range": f"bytes={start}-"} if start else None,
                provider=self._provider,
                transfer=True,
            ) as answer,
        ):
            if answer.status == 416 and start:
                await self._check_complete(answer)
                return
            if answer.status not in (200, 206):
                raise await answer.error(slot)
            slot.landed()
            await self._place(answer, start)
            await self._receive(answer)
        if self._total is not None and self._part.size != self._total:
            raise self._unavailable(answer, f"got {self._part.size} of {self._total} bytes")

    async def _check_complete(self, answer: Answer) -> None:
        """Judge "range not satisfiable": either we have it all, or what we have is no beginning of it."""
        match = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        if match is None or int(match[3]) != self._part.size:
            await self._restart()
            raise self._unavailable(answer, "the file changed at the provider")
        self._progress.bytes_total = self._part.size

    async def _place(self, answer: Answer, start: int) -> None:
        """Find out where the answer's bytes belong and how many there are."""
        if answer.status == 206:
            match = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
            if match is None or match[1] is None or int(match[1]) != start or int(match[2]) + 1 != int(match[3]):
                raise ProviderReplyError(
                    f"{answer.endpoint} answered with a range we didn't ask for",
                    provider=self._provider,
                    endpoint=answer.endpoint,
                )
            total: int | None = int(match[3])
        else:
            total = answer.content_length
        modified = answer.headers.get("Last-Modified")
        other = (self._total not in (None, total)) or (self._modified not in (None, modified))
        self._total, self._modified = total, modified
        if other or (answer.status == 200 and start):
            await self._restart()
        if other and answer.status == 206:
            raise self._unavailable(answer, "the file changed at the provider")
        self._progress.bytes_total = total
        await self._check_room(answer, total)

    async def _check_room(self, answer: Answer, total: int | None) -> None:
        if total is not None and self._limit is not None and total > self._limit:
            raise self._too_large(answer)
        if total is None:
            return
        free = (await anyio.to_thread.run_sync(shutil.disk_usage, self._part.path.parent)).free
        if total - self._part.size + _SPARE_DISK > free:
            raise ConfigError(
                f"{shown(self._part.path)} needs {total - self._part.size} bytes, the disk has {free}",
                hint="Free some space and start again",
            )

    async def _restart(self) -> None:
        await anyio.to_thread.run_sync(self._part.restart)
        self._progress.bytes_done = self._kept = 0

    async def _receive(self, answer: Answer) -> None:
        failure: ProviderError | None = None
        pieces, received = anyio.create_memory_object_stream[list[bytes]](_DEPTH)
        async with anyio.create_task_group() as group:
            group.start_soon(self._write, received)
            with pieces, contextlib.suppress(anyio.BrokenResourceError):  # the writer says why in _fault
                failure = await self._pump(answer, pieces)
        if self._fault is not None:
            raise self._fault
        if failure is not None:
            raise failure

    async def _pump(self, answer: Answer, pieces: MemoryObjectSendStream[list[bytes]]) -> ProviderError | None:
        """Hand the body to the writer; on a failure what came is handed on, too."""
        failure: ProviderError | None = None
        batch: list[bytes] = []
        size, expected, pace = 0, self._part.size, _Pace(self._http)
        try:
            async with contextlib.aclosing(answer.chunks()) as chunks:
                async for chunk in chunks:
                    batch.append(chunk)
                    size += len(chunk)
                    expected += len(chunk)
                    self._fetched += len(chunk)
                    self._progress.bytes_done = expected
                    if self._limit is not None and expected > self._limit:
                        raise self._too_large(answer)
                    if pace.too_slow(len(chunk)):
                        raise self._unavailable(answer, "too slow")
                    if size >= MIB:
                        await pieces.send(batch)
                        batch, size = [], 0
        except ProviderError as error:
            failure = error
        if batch:
            await pieces.send(batch)
        return failure

    async def _write(self, received: MemoryObjectReceiveStream[list[bytes]]) -> None:
        with received:
            try:
                async for batch in received:
                    await anyio.to_thread.run_sync(self._part.write, batch)
            except ConfigError as error:
                self._fault = error

    def _unavailable(self, answer: Answer, reason: str) -> ProviderUnavailableError:
        return ProviderUnavailableError(
            f"{answer.endpoint}: {reason}", provider=self._provider, endpoint=answer.endpoint
        )

    def _too_large(self, answer: Answer) -> ProviderReplyError:
        return ProviderReplyError(
            f"{answer.endpoint} answered with more than {self._limit} bytes",
            provider=self._provider,
            endpoint=answer.endpoint,
        )


class _Pace:
    """Whether bytes come at the minimum rate, looked at once a minute."""

    def __init__(self, http: Http) -> None:
        self._clock = http.clock
        self._rate = http.settings.min_rate
        self._since = self._clock.monotonic()
        self._bytes = 0

    def too_slow(self, size: int) -> bool:
        self._bytes += size
        elapsed = self._clock.monotonic() - self._since
        if elapsed < _RATE_WINDOW:
            return False
        slow = self._bytes < self._rate * elapsed
        self._since += elapsed
        self._bytes = 0
        return slow
