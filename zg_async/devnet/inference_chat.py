"""Chat completions of an inference provider: checks, answer, bill, signature. Source: inference.md 5.3, 5.6, 6, 11.

The model is byte-level and greedy. Its prompt is the last user message in the layout it is trained on; system messages
and earlier turns are dropped, as they are from training rows. Sampling parameters are ignored. Tokens are bytes of
UTF-8: `prompt_tokens` counts the text of all messages, `completion_tokens` the answer.
"""

import dataclasses
import hashlib
import json
import uuid
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Final

import anyio.to_thread
from aiohttp import web

from zg_async.clock import Clock
from zg_async.devnet.inference_auth import Sessions
from zg_async.devnet.inference_fees import FeeBook
from zg_async.devnet.inference_http import Limits, RefusedError, hidden, json_object, json_reply, read_body
from zg_async.devnet.inference_lora import Adapters
from zg_async.devnet.inference_media import MEDIA_PATHS, ImageJobs, fields_of
from zg_async.devnet.inference_media import answer as media_answer
from zg_async.devnet.inference_settings import InferenceChain, InferenceSettings
from zg_async.devnet.model import Adapter, base_model, prompt_text
from zg_async.units import format_amount
from zg_async.wire.inference_api import ADAPTER_PREFIX, InvalidTokenError, same_model
from zg_async.wire.records import Address, InferenceService
from zg_async.wire.signing import personal_text_hash, sign_digest, signature_hex

_MAX_TOKENS: Final = 2048
_STRIKES: Final = 5
_STRIKE_SECONDS: Final = 300.0
_BLOCK_SECONDS: Final = 3600.0
_ZERO: Final = "0x" + "00" * 20
_KEPT: Final = 10_000


@dataclasses.dataclass(frozen=True, slots=True)
class _Chat:
    """A request that passed the form checks."""

    messages: tuple[tuple[str, str], ...]
    max_tokens: int
    streams: bool
    has_usage: bool


@dataclasses.dataclass(frozen=True, slots=True)
class _Answer:
    text: str
    tokens: int
    ended: bool
    chat: _Chat

    @property
    def usage(self) -> dict[str, int]:
        prompt = sum(len(content.encode()) for _, content in self.chat.messages)
        return {"prompt_tokens": prompt, "completion_tokens": self.tokens, "total_tokens": prompt + self.tokens}

    @property
    def billed(self) -> tuple[int, int]:
        """Tokens of prompt and answer that are paid: words where a stream's usage isn't sent."""
        if self.chat.streams and not self.chat.has_usage:
            return sum(len(content.split()) for _, content in self.chat.messages), len(self.text.split())
        return self.usage["prompt_tokens"], self.usage["completion_tokens"]


class Signatures:
    """Signed answers, kept for some minutes."""

    def __init__(self, tee_key: bytes, tee_address: Address, settings: InferenceSettings, clock: Clock) -> None:
        """Sign with a TEE key."""
        self._key = tee_key
        self._address = tee_address
        self._settings = settings
        self._clock = clock
        self._kept: OrderedDict[str, tuple[float, dict[str, str]]] = OrderedDict()

    def sign(self, response_id: str, request: bytes, *response: bytes) -> None:
        """Sign a request and its response, exactly these bytes; of images each one."""
        parts = ",".join(hashlib.sha256(part).hexdigest() for part in response)
        text = f"{hashlib.sha256(request).hexdigest()}:{parts}"
        key = hashlib.sha256(self._key).digest() if self._settings.strikes("bad_signature") else self._key
        value = {
            "text": text,
            "signature": signature_hex(sign_digest(key, personal_text_hash(text))),
            "signing_address": self._address,
            "signing_algo": "ecdsa",
        }
        self._kept[response_id] = (self._clock.monotonic() + self._settings.signature_seconds, value)
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)

    def get(self, response_id: str) -> dict[str, str]:
        """Return the body of the signature route.

        Raises:
            RefusedError: Unknown or too old.
        """
        until, value = self._kept.get(response_id.lower(), (0.0, None))
        if value is None or until <= self._clock.monotonic():
            raise RefusedError("Provider proxy: get chat signature: chat_id_not_found")
        return value


class ChatRoutes:
    """Everything under `/v1/proxy`."""

    def __init__(
        self,
        *,
        model: Callable[[], str],
        chain: InferenceChain,
        sessions: Sessions,
        limits: Limits,
        adapters: Adapters,
        fees: FeeBook,
        signatures: Signatures,
        settings: InferenceSettings,
        clock: Clock,
        on_low_balance: Callable[[], None],
    ) -> None:
        """Serve a provider's model."""
        self._model = model
        self._chain = chain
        self._sessions = sessions
        self._limits = limits
        self._adapters = adapters
        self._fees = fees
        self._signatures = signatures
        self._settings = settings
        self._clock = clock
        self._on_low_balance = on_low_balance
        self._jobs = ImageJobs(settings, clock)
        self._strikes: dict[Address, list[float]] = {}
        self._blocked: dict[Address, float] = {}

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        return [
            web.route("*", "/v1/proxy/{path:.*}", self._proxy),
            web.post("/v1/async/{path:images/(?:generations|edits)}", self._submit_job),
            web.get("/v1/async/jobs/{job_id}", self._get_job),
        ]

    async def _proxy(self, request: web.Request) -> web.StreamResponse:
        path = request.match_info["path"].strip("/")
        path = path.removeprefix("v1/")
        if request.method == "GET" and path.startswith("signature/"):
            return json_reply(self._signatures.get(path.removeprefix("signature/")))
        if request.method == "GET" and path == "attestation/report":
            raise hidden(501)
        is_media = self._settings.media and path in MEDIA_PATHS
        if request.method != "POST" or (path != "chat/completions" and not is_media):
            raise _refused("check route", "endpoint not supported")
        with self._limits.running():
            return await (self._media(request, path) if is_media else self._chat(request))

    # --- checks, in the order of section 5.3 ---

    async def _user(self, request: web.Request) -> Address:
        try:
            return await self._sessions.user(request.headers.get("Authorization", ""))
        except InvalidTokenError as error:
            raise _refused("validate session", str(error)) from None

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        raw = await read_body(request)
        user = await self._user(request)
        with self._limits.running_for(user):
            self._check_block(user)
            body = json_object(raw)
            if body is None:
                raise _refused("parse request body", "invalid JSON")
            name = body.get("model", "")
            is_tuned = isinstance(name, str) and name.startswith(ADAPTER_PREFIX)
            adapter = self._tuned(name, user) if is_tuned else None
            if self._settings.model_expired:
                raise RefusedError("model has expired", 410, headers={"Cache-Control": "no-store"})
            service = await self._check_account(user)
            if not is_tuned:
                self._check_model(user, name)
            return await self._forward(request, raw, body, user, service, adapter)

    def _tuned(self, name: str, user: Address) -> Adapter | None:
        try:
            return self._adapters.for_chat(name, user).weights
        except RefusedError as refusal:
            raise _refused("check fine-tuned model", refusal.text) from None

    def _check_block(self, user: Address) -> None:
        until = self._blocked.get(user, 0.0)
        if self._clock.monotonic() < until:
            raise RefusedError("too many requests with unsupported models, blocked for an hour", 429)

    async def _check_account(self, user: Address) -> InferenceService:
        """Check that the user may run up a bill; returns the service with its prices."""
        account = await self._chain.account(user)
        if account is None:
            raise _refused("validate request", "account not exist")
        if not account.acknowledged:
            raise _refused("validate request", "user not acknowledge the provider")
        service = await self._chain.service()
        if service is None or not service.tee_signer_acknowledged or service.tee_signer_address == _ZERO:
            raise _refused("validate request", "service not acknowledge the tee signer")
        unsettled, locked = self._fees.unsettled(user), self._settings.minimum_locked
        if account.spendable < unsettled + locked:
            self._on_low_balance()
            raise _refused(
                "validate request",
                f"insufficient balance: balance {format_amount(account.balance)}, "
                f"pending refund {format_amount(account.pending_refund)}, "
                f"unsettled fees {format_amount(unsettled)}, minimum locked balance {format_amount(locked)}",
            )
        return service

    def _check_model(self, user: Address, name: object) -> None:
        """Refuse a foreign model; the fifth time in five minutes blocks the user for an hour."""
        if name in (None, "") or (isinstance(name, str) and same_model(name, self._model())):
            return
        now = self._clock.monotonic()
        strikes = [when for when in self._strikes.get(user, ()) if when > now - _STRIKE_SECONDS] + [now]
        self._strikes[user] = strikes
        if len(strikes) >= _STRIKES:
            self._blocked[user] = now + _BLOCK_SECONDS
        raise _refused("check model", f"model not supported: requested {name}, serving {self._model()}")

    # --- images and speech ---

    async def _media(self, request: web.Request, path: str) -> web.Response:
        raw = await read_body(request)
        user = await self._user(request)
        with self._limits.running_for(user):
            self._check_block(user)
            fields = fields_of(path, raw, request.headers.get("Content-Type", ""))
            service = await self._check_account(user)
            self._check_model(user, fields.get("model"))
            if self._settings.strikes("error_503"):
                raise hidden(503)
            made = media_answer(path, fields, self._clock.now())
            response_id = str(uuid.uuid4())
            fee = made.inputs * service.input_price + made.outputs * service.output_price
            self._fees.charge(user, response_id, fee)
            self._signatures.sign(response_id, raw, *made.signed_parts)
            headers = {"ZG-Res-Key": response_id, "Content-Type": "application/json"}
            body = made.body
            if self._settings.strikes("tamper"):
                body = body.replace(b'"b64_json":"iVBORw0KGgo', b'"b64_json":"iVBORw0KGgp').replace(b"A rec", b"No rec")
            return web.Response(body=body, headers=headers)

    async def _submit_job(self, request: web.Request) -> web.Response:
        raw, path = await read_body(request), request.match_info["path"]
        user = await self._user(request)
        if not self._settings.async_images:
            raise RefusedError("async processing is not enabled", 503)
        if not raw:
            raise RefusedError("request body is empty")
        fields = fields_of(path, raw, request.headers.get("Content-Type", ""))
        return self._jobs.submit(user, raw, media_answer(path, fields, self._clock.now()))

    async def _get_job(self, request: web.Request) -> web.Response:
        user = await self._user(request)
        if not self._settings.async_images:
            raise RefusedError("async processing is not enabled", 503)
        state, job = self._jobs.get(user, request.match_info["job_id"])
        headers: dict[str, str] = {}
        if state["status"] in ("pending", "processing"):
            headers["Retry-After"] = "5"
        if job is not None:
            headers["ZG-Res-Key"] = response_id = str(uuid.uuid4())
            self._signatures.sign(response_id, job.request, *job.answer.signed_parts)
        return json_reply(state, 200, headers)

    # --- the answer ---

    async def _forward(
        self,
        request: web.Request,
        raw: bytes,
        body: dict[str, Any],
        user: Address,
        service: InferenceService,
        adapter: Adapter | None,
    ) -> web.StreamResponse:
        if self._settings.strikes("error_503"):
            raise hidden(503)
        default = self._settings.max_tokens if adapter is None else self._settings.adapter_max_tokens
        answer = await self._generate(_parse_chat(body, default), adapter)
        response_id, shown = str(uuid.uuid4()), body.get("model") or self._model()
        pieces = self._stream(answer, response_id, shown) if answer.chat.streams else ()
        whole = b"".join(pieces) if pieces else self._json(answer, response_id, shown)
        self._bill(user, response_id, answer, service)
        if self._settings.old_hashes:
            self._signatures.sign(response_id, *self._old_bytes(body, answer, response_id))
        else:
            self._signatures.sign(response_id, raw, whole)
        headers = {} if self._settings.no_response_key else {"ZG-Res-Key": response_id}
        if self._settings.strikes("tamper"):
            pieces, whole = [_tampered(piece) for piece in pieces], _tampered(whole)
        if not pieces:
            headers["Content-Type"] = "application/json"
            return web.Response(body=whole, headers=headers)
        return await self._send_stream(request, pieces, headers)

    async def _generate(self, chat: _Chat, adapter: Adapter | None) -> _Answer:
        if self._settings.canned:
            words = self._settings.canned.split()[: chat.max_tokens]
            return _Answer(" ".join(words), len(words), False, chat)
        question = next((content for role, content in reversed(chat.messages) if role == "user"), "")
        prompt = prompt_text(question)
        text, ended = await anyio.to_thread.run_sync(
            lambda: base_model().generate(prompt, adapter, max_tokens=chat.max_tokens)
        )
        return _Answer(text.decode("utf-8", "replace"), len(text), ended, chat)

    def _bill(self, user: Address, response_id: str, answer: _Answer, service: InferenceService) -> None:
        inputs, outputs = answer.billed
        self._fees.charge(user, response_id, inputs * service.input_price + outputs * service.output_price)

    def _json(self, answer: _Answer, response_id: str, model: str) -> bytes:
        message = {"role": "assistant", "content": answer.text}
        choice = {"index": 0, "message": message, "finish_reason": _reason(answer)}
        head = self._head(response_id, "chat.completion", model)
        return _dump({**head, "choices": [choice], "usage": answer.usage})

    def _stream(self, answer: _Answer, response_id: str, model: str) -> list[bytes]:
        head = self._head(response_id, "chat.completion.chunk", model)
        deltas: list[tuple[dict[str, str], str | None]] = [({"role": "assistant", "content": ""}, None)]
        deltas += [({"content": word}, None) for word in _words(answer.text)]
        deltas.append(({}, _reason(answer)))
        chunks = [
            {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]} for delta, reason in deltas
        ]
        if answer.chat.has_usage:
            chunks.append({**head, "choices": [], "usage": answer.usage})
        return [b"data: " + _dump(chunk) + b"\n\n" for chunk in chunks] + [b"data: [DONE]\n\n"]

    def _head(self, response_id: str, kind: str, model: str) -> dict[str, Any]:
        chat_id = f"chatcmpl-{response_id.replace('-', '')}"
        return {"id": chat_id, "object": kind, "created": int(self._clock.now()), "model": model}

    def _old_bytes(self, body: dict[str, Any], answer: _Answer, response_id: str) -> tuple[bytes, bytes]:
        """Return what older builds hash: the request with the base model, sorted; the answer before its renaming."""
        model = self._model()
        request = {**body, "model": model} | ({"lora_adapter_name": body["model"]} if body.get("model") else {})
        pieces = self._stream(answer, response_id, model) if answer.chat.streams else ()
        response = b"".join(pieces) or self._json(answer, response_id, model)
        return json.dumps(request, sort_keys=True, separators=(",", ":")).encode(), response

    async def _send_stream(
        self, request: web.Request, pieces: Sequence[bytes], headers: dict[str, str]
    ) -> web.StreamResponse:
        """Send a stream that is signed and billed already, so that a client that leaves pays for all of it."""
        response = web.StreamResponse(headers={**headers, "Content-Type": "text/event-stream"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        sent = pieces[: len(pieces) // 2] if self._settings.strikes("cut_stream") else pieces
        try:
            for piece in sent:
                await response.write(piece)
                if self._settings.stream_delay > 0:
                    await self._clock.sleep(self._settings.stream_delay)
            await response.write_eof()
        except ConnectionResetError:
            pass
        return response


def _tampered(body: bytes) -> bytes:
    """Change an answer so that it stays readable."""
    return body.replace(b'"content":"', b'"content":"!').replace(b'"finish_reason":"length"', b'"finish_reason":"stop"')


def _refused(step: str, cause: str) -> RefusedError:
    return RefusedError(f"Provider proxy: handle proxied service, {step}: {cause}")


def _parse_chat(body: dict[str, Any], default_tokens: int) -> _Chat:
    """Read what the model needs of a request; refuses as the model's server does."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise _bad_request("messages: field required")
    parsed = []
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise _bad_request("messages: each needs a role and a content")
        parsed.append((message["role"], _content(message.get("content"))))
    wanted = body.get("max_completion_tokens", body.get("max_tokens"))
    if wanted is not None and (type(wanted) is not int or wanted < 1):
        raise _bad_request("max_tokens must be at least 1")
    options = body.get("stream_options")
    has_usage = isinstance(options, dict) and options.get("include_usage") is True
    return _Chat(tuple(parsed), min(wanted or default_tokens, _MAX_TOKENS), body.get("stream") is True, has_usage)


def _content(content: object) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        texts = [part.get("text") for part in content if part.get("type") == "text"]
        return "\n".join(text for text in texts if isinstance(text, str))
    raise _bad_request("messages: content must be text")


def _bad_request(text: str) -> RefusedError:
    body = {"error": {"message": text, "type": "BadRequestError", "param": None, "code": 400}}
    return RefusedError(text, 400, body=body)


def _words(text: str) -> list[str]:
    """Split a text into pieces that end in a space."""
    return [piece for piece in text.replace(" ", " \0").split("\0") if piece]


def _reason(answer: _Answer) -> str:
    return "stop" if answer.ended else "length"


def _dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
