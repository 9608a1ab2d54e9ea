"""Adapters: deploy a fine-tuned LoRA at the provider that trained it, and chat with it.

A provider learns of an adapter from the acknowledgement on chain, and only of those that it trained itself.
"""

import contextlib
import functools
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import quote

import anyio

from zg_async.errors import AdapterError, ProviderError, ProviderRejectedError, ProviderUnavailableError, ZgError
from zg_async.managers.chat import ChatStream, Message
from zg_async.managers.context import Context
from zg_async.managers.inference_services import Verify
from zg_async.showing import Records
from zg_async.text import printable
from zg_async.tracing import observed
from zg_async.wire import inference_api
from zg_async.wire.inference_api import Refusal
from zg_async.wire.records import Adapter, AdapterState, Address, ChatAnswer, DeployResponse, InferenceService, TaskId

if TYPE_CHECKING:
    from zg_async.managers.inference import InferenceManager

_POLL: Final = 1.0
_POLL_LIMIT: Final = 5.0
_MAX_REPEATS: Final = 5
"""A failing status request is repeated this often before its error surfaces."""
_RESTORE_WAIT: Final = 30.0
"""What the provider asks for while an offloaded adapter is restored."""

OnProgress = Callable[[str], None]
_T = TypeVar("_T")


@observed("lora")
class LoraManager:
    """Adapters of one wallet."""

    def __init__(self, context: Context, inference: "InferenceManager") -> None:
        """Bind to a wallet; `inference` gives tokens and chat."""
        self._ctx = context
        self._inference = inference

    # ---- look

    async def list_adapters(self, provider_address: str) -> Records[Adapter]:
        """List this wallet's adapters at a provider.

        Args:
            provider_address: The provider's address.

        Returns:
            Only this wallet's, also where the provider lists everybody's.
        """
        service = await self._inference.get_service(provider_address)
        adapters = inference_api.parse_adapters(
            await self._get(service, "/v1/lora/adapters"), provider=service.provider
        )
        wallet = self._ctx.wallet
        return Records(a for a in adapters if a.user is None or a.user == wallet)

    async def get_adapter_status(self, provider_address: str, adapter_name: str) -> Adapter:
        """Read one adapter.

        Args:
            provider_address: The provider's address.
            adapter_name: Its name, as used for `model` in chat.

        Raises:
            AdapterError: The provider doesn't know it.
        """
        service = await self._inference.get_service(provider_address)
        try:
            body = await self._get(service, f"/v1/lora/adapters/{quote(adapter_name, safe='')}")
        except ProviderRejectedError as e:
            raise self._error(service, adapter_name, e) from e
        return inference_api.parse_adapter(body, provider=service.provider)

    async def resolve_adapter_name(self, provider_address: str, base_model: str, task_id: str) -> str:
        """Find an adapter's name: the provider's list decides, the naming rule is the fallback.

        Args:
            provider_address: The provider's address.
            base_model: The model it was trained on.
            task_id: The task that trained it.
        """
        known = await self._by_task(provider_address, TaskId(task_id))
        return known.adapter_name if known else inference_api.adapter_name(base_model, task_id)

    async def _by_task(self, provider: str, task_id: TaskId) -> Adapter | None:
        return next((a for a in await self.list_adapters(provider) if a.task_id == task_id), None)

    # ---- deploy

    async def preflight(self, provider_address: str, base_model: str) -> InferenceService:
        """Check that a provider can serve an adapter of a base model, before anything is sent to it.

        Raises:
            NoInferenceServiceError: It is not registered for inference.
            AdapterError: It serves another base model.
        """
        service = await self._inference.get_service(provider_address)
        if not inference_api.same_model(service.model, base_model):
            raise AdapterError(
                f"{service.provider} serves {printable(service.model, limit=80)}, the adapter is for "
                f"{printable(base_model, limit=80)}",
                provider=service.provider,
                hint="An adapter runs only on the model it was trained on",
            )
        return service

    async def deploy_adapter(
        self,
        provider_address: str,
        base_model: str,
        task_id: str,
        wait: bool = False,
        timeout_seconds: float = 120,
        on_progress: OnProgress | None = None,
    ) -> DeployResponse:
        """Deploy the adapter of a task; an active one stays as it is.

        Args:
            provider_address: The provider that trained it.
            base_model: The model it was trained on.
            task_id: The task.
            wait: Wait until it is active.
            timeout_seconds: How long, in all.
            on_progress: Called with each new state.

        Returns:
            The provider's message, the adapter's name and its state.

        Raises:
            NoInferenceServiceError: The provider serves no inference.
            AdapterError: It serves another base model, refused, or the adapter failed or took too long.
        """
        service = await self.preflight(provider_address, base_model)
        body = {"taskId": task_id, "baseModel": base_model}
        with self._deadline(timeout_seconds if wait else None, service.provider, f"the adapter of task {task_id}"):
            adapter = await self._known(service, TaskId(task_id), on_progress) if wait else None
            if adapter is None:
                adapter = await self._by_task(service.provider, TaskId(task_id))
            name = adapter.adapter_name if adapter else inference_api.adapter_name(base_model, task_id)
            return await self._deploy(service, name, adapter, body, wait, on_progress)

    async def deploy_adapter_by_name(
        self,
        provider_address: str,
        adapter_name: str,
        wait: bool = False,
        timeout_seconds: float = 120,
        on_progress: OnProgress | None = None,
    ) -> DeployResponse:
        """Deploy an adapter whose name is known; an active one stays as it is.

        Args:
            provider_address: The provider that trained it.
            adapter_name: Its name.
            wait: Wait until it is active.
            timeout_seconds: How long, in all.
            on_progress: Called with each new state.

        Raises:
            AdapterError: The provider doesn't know it or refused, or it failed or took too long.
        """
        service = await self._inference.get_service(provider_address)
        with self._deadline(timeout_seconds if wait else None, service.provider, f"adapter {adapter_name}"):
            adapter = next(
                (a for a in await self.list_adapters(service.provider) if a.adapter_name == adapter_name), None
            )
            body = (
                {"taskId": adapter.task_id, "baseModel": adapter.base_model}
                if adapter and adapter.task_id and adapter.base_model
                else {"adapterName": adapter_name}
            )
            return await self._deploy(service, adapter_name, adapter, body, wait, on_progress)

    async def _known(self, service: InferenceService, task_id: TaskId, on_progress: OnProgress | None) -> Adapter:
        """Wait until the provider has seen the acknowledgement and lists the adapter."""
        async with contextlib.aclosing(self._poll(lambda: self._by_task(service.provider, task_id))) as states:
            async for adapter in states:
                if adapter is not None:
                    return adapter
                if on_progress:
                    on_progress(AdapterState.PENDING.value)
                    on_progress = None
        raise AdapterError(f"{service.provider} never listed the adapter of task {task_id}", provider=service.provider)

    async def _deploy(
        self,
        service: InferenceService,
        name: str,
        adapter: Adapter | None,
        body: dict[str, str],
        wait: bool,
        on_progress: OnProgress | None,
    ) -> DeployResponse:
        if adapter is not None and adapter.state is AdapterState.ACTIVE:
            if on_progress:
                on_progress(adapter.state_text)
            return DeployResponse(message="already active", adapter_name=name, state=AdapterState.ACTIVE)
        message, state = "deployment in progress", adapter.state if adapter else AdapterState.UNKNOWN
        if adapter is None or adapter.state in (AdapterState.READY, AdapterState.FAILED, AdapterState.UNKNOWN):
            message, name, state = await self._post_deploy(service, name, body)
        elif adapter.state in (AdapterState.OFFLOADED, AdapterState.ARCHIVED):
            await self._ask_back(service.provider, name)
            message = "restoring"
        if not wait:
            return DeployResponse(message=message, adapter_name=name, state=state)
        active = await self.wait_adapter(service.provider, name, on_progress=on_progress)
        return DeployResponse(message=message, adapter_name=active.adapter_name, state=active.state)

    async def _post_deploy(
        self, service: InferenceService, name: str, body: dict[str, str]
    ) -> tuple[str, str, AdapterState]:
        try:
            reply = await self._request(service, "POST", "/v1/lora/adapters/deploy", body)
        except ProviderRejectedError as e:
            if inference_api.deploy_is_under_way(e.status, e.body or e.message):
                return "deployment in progress", name, AdapterState.LOADING
            raise self._error(service, name, e) from e
        deployed, message = inference_api.parse_deploy(reply, provider=service.provider)
        return message, deployed or name, AdapterState.LOADING

    async def restore(
        self,
        provider_address: str,
        adapter_name: str,
        wait: bool = True,
        timeout_seconds: float = 120,
        on_progress: OnProgress | None = None,
    ) -> Adapter:
        """Bring an offloaded or archived adapter back; an active one stays as it is.

        Args:
            provider_address: The provider's address.
            adapter_name: Its name.
            wait: Wait until it is active.
            timeout_seconds: How long.
            on_progress: Called with each new state.

        Returns:
            The adapter as it is then.

        Raises:
            AdapterError: It isn't there, failed, or took too long.
        """
        with self._deadline(timeout_seconds if wait else None, Address(provider_address), f"adapter {adapter_name}"):
            adapter = await self.get_adapter_status(provider_address, adapter_name)
            if adapter.state in (AdapterState.OFFLOADED, AdapterState.ARCHIVED):
                await self._ask_back(provider_address, adapter_name)
            if wait:
                return await self.wait_adapter(provider_address, adapter_name, on_progress=on_progress)
            return await self.get_adapter_status(provider_address, adapter_name)

    async def _ask_back(self, provider: str, name: str) -> None:
        """A provider restores an adapter on the first request for it, and refuses that one."""
        try:
            await self._inference.chat(provider, ".", model=name, max_tokens=1)
        except ProviderError as e:
            text = getattr(e, "body", "") or e.message
            if inference_api.classify_refusal(text) not in (Refusal.RESTORING, Refusal.LOADING):
                raise

    # ---- watch

    async def watch_adapter(self, provider_address: str, adapter_name: str) -> AsyncGenerator[Adapter, None]:
        """Yield an adapter each time its state changes, beginning with the state now.

        Drive it with `contextlib.aclosing`. It doesn't end by itself.

        Args:
            provider_address: The provider's address.
            adapter_name: Its name.

        Raises:
            ProviderError: The status can't be read, several times in a row.
        """
        last: str | None = None
        async with contextlib.aclosing(
            self._poll(lambda: self.get_adapter_status(provider_address, adapter_name))
        ) as states:
            async for adapter in states:
                if adapter.state_text != last:
                    last = adapter.state_text
                    yield adapter

    async def wait_adapter(
        self, provider_address: str, adapter_name: str, *, on_progress: OnProgress | None = None
    ) -> Adapter:
        """Wait until an adapter is active; use `anyio.fail_after` for a deadline.

        Args:
            provider_address: The provider's address.
            adapter_name: Its name.
            on_progress: Called with each new state.

        Raises:
            AdapterError: It failed.
        """
        deploys = 0
        async with contextlib.aclosing(self.watch_adapter(provider_address, adapter_name)) as states:
            async for adapter in states:
                if on_progress:
                    on_progress(adapter.state_text)
                if adapter.state is AdapterState.ACTIVE:
                    return adapter
                if adapter.state is AdapterState.FAILED:
                    raise AdapterError(
                        f"adapter {adapter_name} failed to load: {printable(adapter.error) or 'no reason given'}",
                        adapter_name=adapter_name,
                        state=adapter.state_text,
                        provider=provider_address,
                        hint="Deploy it again; if it fails again, the provider's operator has to look",
                    )
                if adapter.state is AdapterState.READY and deploys < _MAX_REPEATS:
                    deploys += 1
                    service = await self._inference.get_service(provider_address)
                    body = {"taskId": adapter.task_id, "baseModel": adapter.base_model}
                    await self._post_deploy(service, adapter_name, body)
        raise AdapterError(f"adapter {adapter_name} never became active", adapter_name=adapter_name)

    async def _poll(self, read: Callable[[], Awaitable[_T]]) -> AsyncGenerator[_T, None]:
        """Yield what `read` returns, again and again; retryable errors surface after some repeats."""
        failures, pause = 0, _POLL
        while True:
            try:
                value = await read()
            except ZgError as e:
                failures += 1
                if not e.retryable or failures > _MAX_REPEATS:
                    raise
            else:
                failures = 0
                yield value
            await self._ctx.clock.sleep(pause)
            pause = min(pause * 1.3, _POLL_LIMIT)

    # ---- chat

    async def chat(
        self,
        provider_address: str,
        adapter_name: str,
        message: str | Sequence[Message],
        system_prompt: str = "You are a helpful assistant.",
        *,
        warm_up_seconds: float = 120,
        verify: Verify | None = None,
        **fields: Any,
    ) -> ChatAnswer:
        """Ask an adapter; while the provider is still loading or restoring it, ask again.

        Args:
            provider_address: The provider's address.
            adapter_name: The adapter's name.
            message: The question; or a whole conversation as OpenAI messages, before which nothing goes.
            system_prompt: Goes before a question.
            warm_up_seconds: How long to wait for the adapter to be loaded.
            verify: How the answer has to be proven; None: as the broker's policy says.
            fields: Any other field of an OpenAI chat completion, passed through.

        Raises:
            AdapterError: It isn't there, isn't yours, or isn't loaded in time.
        """
        messages = _messages(message, system_prompt)

        async def ask() -> ChatAnswer:
            return await self._inference.chat(provider_address, messages, model=adapter_name, verify=verify, **fields)

        return await self._warmed(provider_address, adapter_name, warm_up_seconds, ask)

    def chat_stream(
        self,
        provider_address: str,
        adapter_name: str,
        message: str | Sequence[Message],
        system_prompt: str = "You are a helpful assistant.",
        *,
        warm_up_seconds: float = 120,
        verify: Verify | None = None,
        **fields: Any,
    ) -> ChatStream:
        """Ask an adapter and take its answer as it comes; entering waits while the provider is still loading it.

        Args:
            provider_address: The provider's address.
            adapter_name: The adapter's name.
            message: The question; or a whole conversation as OpenAI messages, before which nothing goes.
            system_prompt: Goes before a question.
            warm_up_seconds: How long to wait for the adapter to be loaded.
            verify: How the answer has to be proven; None: as the broker's policy says.
            fields: Any other field of an OpenAI chat completion, passed through.

        Returns:
            The stream; see `inference.chat_stream`.
        """
        return self._inference.chat_stream(
            provider_address,
            _messages(message, system_prompt),
            model=adapter_name,
            verify=verify,
            around=functools.partial(self._warmed, provider_address, adapter_name, warm_up_seconds),
            **fields,
        )

    async def _warmed(self, provider: str, name: str, seconds: float, ask: Callable[[], Awaitable[_T]]) -> _T:
        """Ask until the adapter is warm, or the time is over."""
        deadline = self._ctx.clock.monotonic() + seconds
        while True:
            try:
                return await ask()
            except (ProviderRejectedError, ProviderUnavailableError) as e:
                wait = await self._warm_up(provider, name, e)
                if self._ctx.clock.monotonic() + wait > deadline:
                    raise
            await self._ctx.clock.sleep(wait)

    async def _warm_up(
        self, provider: str, name: str, error: ProviderRejectedError | ProviderUnavailableError
    ) -> float:
        """Return how long to wait before asking again, or raise what is final."""
        match inference_api.classify_refusal(error.body or error.message):
            case Refusal.RESTORING:
                return min(error.retry_after or _RESTORE_WAIT, _RESTORE_WAIT)
            case Refusal.LOADING:
                return _POLL_LIMIT
            case Refusal.NOT_DEPLOYED:
                with contextlib.suppress(AdapterError):
                    await self.deploy_adapter_by_name(provider, name)
                return _POLL
            case Refusal.UNKNOWN_ADAPTER | Refusal.NOT_OWNER | Refusal.DISABLED | Refusal.FAILED:
                raise self._error(await self._inference.get_service(provider), name, error) from error
            case Refusal.OTHER:
                if error.status in (202, 503):
                    return error.retry_after or _POLL_LIMIT
                raise error

    # ---- helpers

    async def _get(self, service: InferenceService, path: str) -> bytes:
        return await self._request(service, "GET", path, None)

    async def _request(self, service: InferenceService, method: str, path: str, body: dict[str, str] | None) -> bytes:
        reply = await self._ctx.http.request(
            method,
            service.url.rstrip("/") + path,
            json=body,
            headers=await self._inference.get_request_headers(service.provider),
            limit=inference_api.ADAPTER_REPLY_LIMIT,
            provider=service.provider,
            idempotent=method == "GET",
            signed=True,
        )
        return reply.body

    def _error(self, service: InferenceService, name: str, error: ProviderError) -> AdapterError:
        text = getattr(error, "body", "") or error.message
        return AdapterError(
            f"adapter {name} at {service.provider}: {printable(text)}",
            adapter_name=name,
            provider=service.provider,
            endpoint=error.endpoint,
            hint=inference_api.refusal_hint(text),
        )

    @contextlib.contextmanager
    def _deadline(self, seconds: float | None, provider: Address, what: str) -> Generator[None, None, None]:
        try:
            with anyio.fail_after(seconds):
                yield
        except TimeoutError as e:
            raise AdapterError(
                f"{what} is not active at {provider} after {seconds:g} s",
                provider=provider,
                hint="It may still become active: get_adapter_status shows its state",
            ) from e


def _messages(message: str | Sequence[Message], system_prompt: str) -> Sequence[Message]:
    if not isinstance(message, str):
        return message
    return [{"role": "system", "content": system_prompt}, {"role": "user", "content": message}]
