"""The local OpenAI-compatible server: `zg serve` in front of one provider, `zg router-serve` of several.

An upstream that fails before its answer has begun is passed over for the next. Answers of providers are proven before
they are passed on; of a stream the end mark is held back until it is, and an error is sent in its place.
"""

import json
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

from aiohttp import web

from zg_async.broker import Broker
from zg_async.errors import (
    AdapterError,
    ConfigError,
    LimitError,
    ProviderError,
    ProviderRejectedError,
    SignerNotAcknowledgedError,
    VerificationError,
    ZgError,
)
from zg_async.jobs.runner import JobRunner
from zg_async.logs import get_logger
from zg_async.managers.inference_funds import is_short_of_funds
from zg_async.managers.inference_services import Verify
from zg_async.serve.budget import Budget, bounded, chat_bound
from zg_async.serve.fine_tuning import FineTuningRoutes
from zg_async.serve.gate import MAX_BODY, Gate, Handler, PassedOnError, error_reply, listening, new_token, read_json
from zg_async.serve.media import MediaRoutes
from zg_async.serve.upstreams import EndpointUpstream, ProviderUpstream, Upstream, Upstreams
from zg_async.text import printable
from zg_async.transport.answers import Answer
from zg_async.wire import inference_api
from zg_async.wire.answer_proof import AnswerProof, AnswerStatus
from zg_async.wire.records import ChatAnswer
from zg_async.wire.strict_json import BadJsonError, decode_json

Ask = Callable[[Upstream], Awaitable[web.StreamResponse]]
_KEPT: Final = 1000
_log = get_logger("zg_async.serve")


class Proxy:
    """The routes and what they share. `serving` runs one."""

    def __init__(
        self,
        broker: Broker,
        upstreams: Sequence[Upstream],
        *,
        token: str | None = None,
        hosts: Sequence[str] = (),
        origins: Sequence[str] = (),
        spend_cap: int | None = None,
        pause: float = 60.0,
        verify: Verify | None = None,
        runner: JobRunner | None = None,
    ) -> None:
        """Make a server.

        Args:
            broker: An open broker.
            upstreams: Whom to ask.
            token: What clients send as their API key; None: a new one.
            hosts: Names under which it may be addressed besides loopback.
            origins: Web origins that may use it.
            spend_cap: The most that may be spent while it runs, in neuron; None: no cap.
            pause: Seconds for which an upstream that failed isn't asked while others are there.
            verify: How answers have to be proven; None: as the broker's policy says.
            runner: An entered job runner, to serve the fine-tuning API as well; the first provider trains.
        """
        self.runner = runner
        self.token = token or new_token()
        self.broker = broker
        self.upstreams = Upstreams(upstreams, broker.clock, pause=pause)
        self.budget = Budget(spend_cap)
        self.verify: Verify | None = verify
        self._gate = Gate(self.token, hosts=hosts, origins=origins)
        self._proofs: OrderedDict[str, tuple[Upstream, AnswerProof | None]] = OrderedDict()
        for upstream in upstreams:
            if isinstance(upstream, EndpointUpstream):
                broker.http.allow(upstream.url)  # the user named it

    def app(self) -> web.Application:
        """Return the server application."""
        app = web.Application(client_max_size=MAX_BODY, middlewares=[self._gate.middleware, self._errors])
        if self.runner is not None:
            trainer = next((u.address for u in self.upstreams.all if isinstance(u, ProviderUpstream)), None)
            folder = self.broker.state_dir / "serve"
            app.add_routes(FineTuningRoutes(self.runner, self.budget, folder=folder, provider=trainer).routes())
        app.add_routes(
            [
                web.get("/health", self._health),
                web.get("/v1/models", self._models),
                web.post("/v1/chat/completions", self._chat),
                web.post("/v1/verify", self._verify),
                web.get("/v1/providers/status", self._status),
                *MediaRoutes(self).routes(),
            ]
        )
        return app

    @web.middleware
    async def _errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except PassedOnError as error:
            return error_reply(error.status, printable(error.body, limit=600), code="upstream_refused")
        except LimitError as error:
            return error_reply(402, str(error), kind="insufficient_quota", code="spend_cap")
        except ConfigError as error:
            return error_reply(400, str(error), code=error.code)
        except VerificationError as error:
            return error_reply(502, str(error), kind="server_error", code=error.code)
        except ZgError as error:
            return error_reply(503, str(error), kind="server_error", code=error.code)
        except web.HTTPException as error:
            return error_reply(error.status, error.reason or "refused")

    # ---- small routes

    async def _health(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _models(self, _: web.Request) -> web.Response:
        rows = []
        for upstream in self.upstreams.all:
            name = upstream.model
            if isinstance(upstream, ProviderUpstream) and name is None:
                name = (await self.broker.inference.recent_service(upstream.address)).model
            rows.append({"id": name, "object": "model", "created": 0, "owned_by": upstream.id})
        return web.json_response({"object": "list", "data": rows})

    async def _status(self, _: web.Request) -> web.Response:
        rows = [
            {
                "id": u.id,
                "type": "provider" if isinstance(u, ProviderUpstream) else "endpoint",
                "priority": u.priority,
                "available": self.upstreams.failure(u) is None,
                "error": self.upstreams.failure(u),
            }
            for u in self.upstreams.all
        ]
        spent = {
            "cap": _amount(self.budget.cap),
            "spent": str(self.budget.spent),
            "reserved": str(self.budget.reserved),
        }
        return web.json_response({"providers": rows, "budget": spent})

    async def _verify(self, request: web.Request) -> web.Response:
        name = (await read_json(request)).get("id")
        if not isinstance(name, str) or name not in self._proofs:
            return error_reply(404, "no answer of that id is known here", code="unknown_id")
        upstream, proof = self._proofs[name]
        is_endpoint = isinstance(upstream, EndpointUpstream)
        return web.json_response(
            {
                "isValid": not is_endpoint and proof is not None and proof.is_verified,
                "status": proof.status if proof else AnswerStatus.NOT_VERIFIABLE,
                "provider": upstream.id,
                "type": "endpoint" if is_endpoint else "provider",
            }
        )

    def remember(self, upstream: Upstream, proof: AnswerProof | None, *names: str | None) -> None:
        """Keep an answer's proof for the verify route."""
        for name in names:
            if name:
                self._proofs[name] = (upstream, proof)
        while len(self._proofs) > _KEPT:
            self._proofs.popitem(last=False)

    # ---- chat

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await read_json(request)
        if not isinstance(body.get("messages"), list) or not body["messages"]:
            return error_reply(400, "messages: field required")
        if body.get("stream") is True:
            return await self._chat_stream(request, body)
        return await self.first_that_answers(lambda upstream: self._whole(upstream, body))

    async def first_that_answers(self, ask: Ask, *, providers_only: bool = False) -> web.StreamResponse:
        """Ask upstreams in order until one answers.

        Args:
            ask: Asks one; the answer it returns has begun.
            providers_only: Leave plain endpoints out.

        Raises:
            PassedOnError: One refused the request itself.
            ZgError: All failed; the last one's reason.
        """
        last: ZgError | None = None
        for upstream in self.upstreams.candidates():
            if providers_only and isinstance(upstream, EndpointUpstream):
                continue
            try:
                response = await ask(upstream)
            except LimitError:
                raise
            except ConfigError as error:
                raise PassedOnError(400, str(error)) from error
            except AdapterError as error:  # an adapter lives where it was trained; the others are as healthy as before
                last = error
            except ZgError as error:
                if is_the_requests_fault(error):
                    raise PassedOnError(
                        getattr(error, "status", 400), getattr(error, "body", "") or str(error)
                    ) from error
                _log.warning("%s failed: %s", upstream.id, error)
                self.upstreams.failed(upstream, error.code)
                last = error
            else:
                return response
        raise last or ConfigError("there is nobody to ask")

    async def _whole(self, upstream: Upstream, body: Mapping[str, Any]) -> web.StreamResponse:
        if isinstance(upstream, EndpointUpstream):
            return await self._endpoint(upstream, body)
        fields, model, bound = await self._prepared(upstream, body)
        messages = fields.pop("messages")
        fields.pop("stream", None)
        with self.budget.reserve(bound) as held:
            inference = self.broker.inference
            if model is not None and model.startswith(inference_api.ADAPTER_PREFIX):
                answer = await inference.lora.chat(upstream.address, model, messages, verify=self.verify, **fields)
            else:
                answer = await inference.chat(upstream.address, messages, model=model, verify=self.verify, **fields)
            held.spent = answer.fee
        self.remember(upstream, answer.proof, answer.id, answer.response_key)
        return web.Response(body=_dump(answer.raw), headers=_headers(upstream, answer), content_type="application/json")

    async def _prepared(
        self, upstream: ProviderUpstream, body: Mapping[str, Any]
    ) -> tuple[dict[str, Any], str | None, int]:
        """Return the fields for a provider, its model, and the most the request can cost."""
        service = await self.broker.inference.recent_service(upstream.address)
        fields = bounded(body) if self.budget.cap is not None else dict(body)
        wanted = fields.pop("model", None)
        is_adapter = isinstance(wanted, str) and wanted.startswith(inference_api.ADAPTER_PREFIX)
        for own in ("provider", "verify", "around", "provider_address", "adapter_name", "message", "warm_up_seconds"):
            if own in fields:
                raise PassedOnError(400, f"{own}: no field of a chat completion")
        bound = chat_bound(service, fields, len(_dump(fields)))
        return fields, wanted if is_adapter else upstream.model, bound

    async def _chat_stream(self, request: web.Request, body: Mapping[str, Any]) -> web.StreamResponse:
        async def ask(upstream: Upstream) -> web.StreamResponse:
            if isinstance(upstream, EndpointUpstream):
                return await self._endpoint_stream(request, upstream, body)
            return await self._provider_stream(request, upstream, body)

        return await self.first_that_answers(ask)

    async def _provider_stream(
        self, request: web.Request, upstream: ProviderUpstream, body: Mapping[str, Any]
    ) -> web.StreamResponse:
        fields, model, bound = await self._prepared(upstream, body)
        messages = fields.pop("messages")
        inference = self.broker.inference
        stream = (
            inference.lora.chat_stream(upstream.address, model, messages, verify=self.verify, **fields)
            if model is not None and model.startswith(inference_api.ADAPTER_PREFIX)
            else inference.chat_stream(upstream.address, messages, model=model, verify=self.verify, **fields)
        )
        with self.budget.reserve(bound) as held:
            async with stream:
                first = await stream.next_chunk()  # until here another upstream may be asked
                response = await _begin(request, upstream, stream.response_key)
                try:
                    while first is not None:
                        await response.write(b"data: " + _dump(first.raw) + b"\n\n")
                        first = await stream.next_chunk()
                    answer = await stream.answer()
                except ZgError as error:
                    _log.warning("%s broke its answer off: %s", upstream.id, error)
                    self.upstreams.failed(upstream, error.code)
                    return await _broken_off(response, error)
                except ConnectionResetError:  # the client left; the provider bills the answer all the same
                    return response
            held.spent = answer.fee
        self.remember(upstream, answer.proof, answer.id, answer.response_key)
        return await _end(response, b"data: [DONE]\n\n")

    # ---- plain endpoints

    @asynccontextmanager
    async def _asked(self, upstream: EndpointUpstream, body: Mapping[str, Any]) -> AsyncGenerator[Answer, None]:
        headers = {"Authorization": f"Bearer {upstream.api_key}", "Content-Type": "application/json"}
        data = _dump({**body, "model": upstream.model})
        async with self.broker.http.exchange(
            "POST", f"{upstream.url}/chat/completions", data=data, headers=headers, transfer=True
        ) as answer:
            if not 200 <= answer.status < 300:
                raise await answer.error()
            yield answer

    async def _endpoint(self, upstream: EndpointUpstream, body: Mapping[str, Any]) -> web.Response:
        async with self._asked(upstream, body) as answer:
            data = await answer.read(inference_api.CHAT_REPLY_LIMIT)
        try:
            value = decode_json(data, limit=inference_api.CHAT_REPLY_LIMIT)
        except BadJsonError as error:
            raise ProviderError(f"{upstream.id} answered something else: {error}") from None
        self.remember(upstream, None, value.get("id") if isinstance(value, dict) else None)
        return web.Response(body=data, headers={"x-provider-address": upstream.id}, content_type="application/json")

    async def _endpoint_stream(
        self, request: web.Request, upstream: EndpointUpstream, body: Mapping[str, Any]
    ) -> web.StreamResponse:
        async with AsyncExitStack() as stack:
            answer = await stack.enter_async_context(self._asked(upstream, body))
            chunks = answer.chunks()
            stack.push_async_callback(chunks.aclose)
            first = await anext(chunks, b"")
            response = await _begin(request, upstream, None)
            try:
                await response.write(first)
                async for piece in chunks:
                    await response.write(piece)
            except ZgError as error:
                return await _broken_off(response, error)
            except ConnectionResetError:
                return response
        return await _end(response, b"")


def is_the_requests_fault(error: ZgError) -> bool:
    """Whether asking another upstream would help nothing: the request itself was refused."""
    if not isinstance(error, ProviderRejectedError) or isinstance(error, SignerNotAcknowledgedError):
        return False
    text = error.body or error.message
    if is_short_of_funds(text) or "session token" in text.lower():
        return False
    return error.status in (400, 404, 413, 415, 422)


def _headers(upstream: Upstream, answer: ChatAnswer) -> dict[str, str]:
    headers = {"x-provider-address": upstream.id}
    if answer.response_key:
        headers["ZG-Res-Key"] = printable(answer.response_key)
    if answer.proof:
        headers["x-zg-proof"] = answer.proof.status
    return headers


async def _begin(request: web.Request, upstream: Upstream, key: str | None) -> web.StreamResponse:
    headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Provider-Address": upstream.id}
    if key:
        headers["ZG-Res-Key"] = printable(key)
    response = web.StreamResponse(headers=headers)
    await response.prepare(request)
    return response


async def _broken_off(response: web.StreamResponse, error: ZgError) -> web.StreamResponse:
    body = {"error": {"message": str(error), "type": "server_error", "param": None, "code": error.code}}
    return await _end(response, b"data: " + _dump(body) + b"\n\n")


async def _end(response: web.StreamResponse, last: bytes) -> web.StreamResponse:
    try:
        if last:
            await response.write(last)
        await response.write_eof()
    except ConnectionResetError:
        pass
    return response


def _amount(value: int | None) -> str | None:
    return None if value is None else str(value)


def _dump(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


@asynccontextmanager
async def serving(proxy: Proxy, *, host: str = "127.0.0.1", port: int = 0) -> AsyncGenerator[str, None]:
    """Run a server until the context ends.

    Args:
        proxy: What to serve.
        host: The address to listen on.
        port: 0: a free one.

    Yields:
        The base URL for OpenAI clients.
    """
    async with listening(proxy.app(), host=host, port=port) as url:
        yield f"{url}/v1"
