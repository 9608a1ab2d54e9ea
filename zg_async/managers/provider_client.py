"""One fine-tuning provider over HTTP: its twelve routes, records in and out.

It signs nothing: signatures come in, or a callable that makes a fresh one for each attempt. It knows no chain.
"""

import contextlib
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar

import anyio
import anyio.to_thread

from zg_async.clock import Clock
from zg_async.errors import (
    ProviderError,
    ProviderRejectedError,
    ProviderReplyError,
    ProviderUnavailableError,
    TaskNotFoundError,
)
from zg_async.logs import get_logger
from zg_async.transport.files import HasherFactory, PartFile, publish
from zg_async.transport.http import MIB, Http, Reply
from zg_async.transport.retry import RetryPolicy
from zg_async.transport.server_clock import NEGLIGIBLE
from zg_async.transport.transfer import (
    Downloaded,
    Progress,
    Uploaded,
    download_file,
    upload_file,
)
from zg_async.wire import provider_api as api
from zg_async.wire.hashing import keccak256
from zg_async.wire.records import Address, Model, Task, TaskId

T = TypeVar("T")
_log = get_logger("zg_async.fine_tuning")
LIMITED_POLICY: Final = RetryPolicy(attempts=6, base=1.0, max_elapsed=240.0)
"""For routes under the provider's rate limit, where a 429 costs ten seconds."""
USAGE_LIMIT: Final = 256 * MIB
_HASH: Final = re.compile(r"0x[0-9a-fA-F]{64}")
_PLAIN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class ProviderClient:
    """The HTTP side of a fine-tuning provider. Holds nothing open; make one whenever you need it."""

    def __init__(self, http: Http, url: str, provider: Address, clock: Clock) -> None:
        """Make a client.

        Args:
            http: The broker's HTTP client.
            url: The service's URL as registered on chain.
            provider: The provider's address, for errors and records.
            clock: The source of time.
        """
        self.provider = provider
        self._http = http
        self._url = url.rstrip("/")
        self._clock = clock

    @property
    def _host(self) -> str:
        return self._http.host_of(self._url, provider=self.provider)

    async def now(self) -> float:
        """Return the unix time by the provider's clock, for what is signed; asks it something small if need be."""
        host, clocks = self._host, self._http.server_clocks
        if not clocks.knows(host):
            with contextlib.suppress(ProviderError):
                await self.pending()
        return clocks.now(host)

    async def _timed(self, send: Callable[[], Awaitable[T]]) -> T:
        """Send what carries a signed time; if it is refused and that answer tells another time, sign once more."""
        host, clocks = self._host, self._http.server_clocks
        ahead = clocks.ahead(host)
        try:
            return await send()
        except ProviderRejectedError as error:
            if error.status != 401 or abs(clocks.ahead(host) - ahead) <= NEGLIGIBLE:
                raise
            _log.warning("%s refused what was signed by a wrong clock: signing again by its own", self.provider)
            return await send()

    async def get_quote(self, *, legacy: bool = True) -> Reply:
        """Fetch the attestation quote: body as sent, and the headers, one of which may sign it.

        Args:
            legacy: Ask for the layout with the signer's address as text; False for the binary one.
        """
        return await self._http.request(
            "GET",
            self._url + api.quote_path(legacy),
            limit=api.QUOTE_LIMIT,
            provider=self.provider,
            limited=True,
            policy=LIMITED_POLICY,
        )

    async def upload_dataset(
        self,
        user: Address,
        path: Path,
        filename: str,
        fields: Callable[[], Awaitable[Mapping[str, str]]],
        *,
        progress: Progress | None = None,
    ) -> Uploaded:
        """Send a dataset. Repeated when no answer came: the provider keeps it under its hash.

        Args:
            user: The wallet, spelled as it was signed.
            path: A regular file.
            filename: What the provider gets to see; ends in `.jsonl` or `.json`.
            fields: Makes `signature` and `timestamp` afresh for each attempt.
            progress: Kept up to date.

        Raises:
            ProviderRejectedError: The provider refused it.
            ProviderUnavailableError: No success after the retries (retryable).
        """
        return await self._timed(
            lambda: upload_file(
                self._http,
                self._url + api.dataset_path(user),
                path=path,
                filename=filename,
                fields=fields,
                provider=self.provider,
                progress=progress,
            )
        )

    async def create_task(self, user: Address, body: Mapping[str, object]) -> TaskId:
        """Create a task. Never repeated by itself: after no answer, look for its nonce among the tasks.

        Args:
            user: The wallet.
            body: As `wire.provider_api.create_task_body` makes it.

        Raises:
            UnfinishedTaskError: The wallet has an open task here.
            QueueFullError: Others are ahead, or too many.
            SignerNotAcknowledgedError: The wallet, or the contract's owner, hasn't acknowledged the signer.
            ProviderUnavailableError: No answer; the task may exist.
        """
        reply = await self._call("POST", api.tasks_path(user), json=body, idempotent=False)
        return api.parse_created(reply.body, self.provider)

    async def list_tasks(self, user: Address, *, latest: bool = False) -> tuple[Task, ...]:
        """List a wallet's tasks, newest first; `latest` gives at most one."""
        reply = await self._call("GET", api.tasks_path(user, latest=latest), limit=api.LIST_LIMIT)
        return api.parse_tasks(reply.body, self.provider)

    async def get_task(self, user: Address, task_id: TaskId) -> Task:
        """Read a task.

        Raises:
            TaskNotFoundError: The provider knows no such task.
        """
        reply = await self._call("GET", api.task_path(user, task_id), limit=api.TASK_LIMIT)
        return api.parse_task(reply.body, self.provider)

    async def cancel_task(self, user: Address, task_id: TaskId, signature: str) -> str:
        """Ask for a task's end; returns the provider's words.

        Raises:
            TaskNotFoundError: The provider knows no such task.
            ProviderRejectedError: Another's task (403), or too late (409).
        """
        reply = await self._call(
            "POST", api.cancel_path(user, task_id), json=api.cancel_body(signature), idempotent=False
        )
        return reply.text

    async def get_log(self, user: Address, task_id: TaskId) -> str:
        """Read a task's log so far; bytes that aren't UTF-8 are replaced."""
        return (await self.get_log_bytes(user, task_id)).decode("utf-8", "replace")

    async def get_log_or_empty(self, user: Address, task_id: TaskId) -> str:
        """Read a task's log so far, or nothing if there is none to be had: for error messages."""
        try:
            return await self.get_log(user, task_id)
        except (ProviderUnavailableError, TaskNotFoundError):
            return ""

    async def get_log_bytes(self, user: Address, task_id: TaskId) -> bytes:
        """Read a task's log so far, its first 64 MiB at most; it only grows.

        Raises:
            TaskNotFoundError: The provider knows no such task.
            ProviderUnavailableError: No answer, or there is no log yet (retryable).
        """
        reply = await self._call("GET", api.log_path(user, task_id), limit=api.LOG_LIMIT, cut=True)
        return reply.body

    async def download_model(
        self,
        user: Address,
        task_id: TaskId,
        path: Path,
        body: Callable[[], Awaitable[object]],
        *,
        progress: Progress | None = None,
        extra_hashers: Sequence[HasherFactory] = (),
        accept: Callable[[tuple[bytes, ...]], bool] | None = None,
    ) -> Downloaded:
        """Fetch a task's encrypted model, going on where an earlier attempt or call stopped. Nothing is verified.

        Args:
            user: The wallet.
            task_id: Which task.
            path: The growing file; never the final name.
            body: Makes signature and timestamp afresh for each attempt.
            progress: Kept up to date.
            extra_hashers: Make hashes to be taken beside keccak256.
            accept: Judges the digests of what lies at `path` already.

        Raises:
            ProviderRejectedError: Not the owner (403), or not delivered yet (409).
            ProviderUnavailableError: No success after the retries; the file may not be there yet, or be gone.
        """
        return await self._timed(
            lambda: download_file(
                self._http,
                self._url + api.lora_path(user, task_id),
                path=path,
                body=body,
                provider=self.provider,
                progress=progress,
                extra_hashers=extra_hashers,
                accept=accept,
            )
        )

    async def pending(self) -> int:
        """Count the tasks of all users that wait or run."""
        reply = await self._call("GET", api.pending_path())
        return api.parse_pending(reply.body, self.provider)

    async def models(self) -> tuple[Model, ...]:
        """List the provider's own models; predefined ones aren't among them."""
        reply = await self._call("GET", api.models_path(), limit=api.LIST_LIMIT)
        return api.parse_models(reply.body, self.provider)

    async def model(self, name_or_hash: str) -> Model:
        """Read one of the provider's own models.

        Raises:
            ProviderRejectedError: It has none of that name.
        """
        reply = await self._call("GET", api.model_path(await self._hash_of(name_or_hash)), limit=api.TASK_LIMIT)
        return api.parse_model(reply.body, self.provider)

    async def model_usage(self, name: str, output: Path) -> Path:
        """Save a model's usage document, a zip.

        Args:
            name: Name or hash of one of the provider's own models.
            output: A file, or a folder that gets `<name>.zip`.

        Returns:
            Where it was saved.

        Raises:
            ProviderRejectedError: There is no such document; predefined models have none.
            ConfigError: It can't be written.
        """
        if await anyio.Path(output).is_dir():
            output = output / f"{name if _PLAIN.fullmatch(name) else keccak256(name.encode()).hex()[:16]}.zip"
        part = output.with_name(f"{output.name}.{secrets.token_hex(4)}.part")
        url = self._url + api.model_usage_path(await self._hash_of(name))
        file = await anyio.to_thread.run_sync(PartFile, part, ())
        try:
            async with self._http.exchange("GET", url, provider=self.provider, transfer=True) as answer:
                if answer.status != 200:
                    raise await answer.error()
                async for chunk in answer.chunks():
                    if file.size + len(chunk) > USAGE_LIMIT:
                        raise ProviderReplyError(
                            f"{answer.endpoint} answered with more than {USAGE_LIMIT} bytes",
                            provider=self.provider,
                            endpoint=answer.endpoint,
                        )
                    await anyio.to_thread.run_sync(file.write, (chunk,))
            await anyio.to_thread.run_sync(file.sync)
            await anyio.to_thread.run_sync(publish, part, output)
        finally:
            file.close()
            part.unlink(missing_ok=True)
        return output

    async def _hash_of(self, name_or_hash: str) -> str:
        """The provider reads some names as hex (`deepseek-...`) and doesn't find them: ask by hash."""
        if _HASH.fullmatch(name_or_hash):
            return name_or_hash
        return next((m.hash for m in await self.models() if m.name == name_or_hash), name_or_hash)

    async def _call(
        self,
        method: str,
        path: str,
        *,
        json: object = None,
        limit: int = api.TASK_LIMIT,
        idempotent: bool = True,
        cut: bool = False,
    ) -> Reply:
        return await self._http.request(
            method,
            self._url + path,
            json=json,
            limit=limit,
            provider=self.provider,
            idempotent=idempotent,
            cut=cut,
        )
