"""One simulated inference provider: its server, its adapters, its bills. Source: inference.md sections 3 to 12."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import anyio.to_thread
from aiohttp import web

from zg_async.background import Background
from zg_async.clock import Clock, SystemClock
from zg_async.devnet.inference_auth import Sessions, check_provider
from zg_async.devnet.inference_chat import ChatRoutes, Signatures
from zg_async.devnet.inference_fees import FeeBook
from zg_async.devnet.inference_files import AdapterFiles, AdapterKeyError, check_key
from zg_async.devnet.inference_http import (
    MAX_BODY,
    Handler,
    Limits,
    RefusedError,
    hidden,
    json_object,
    json_reply,
    read_body,
)
from zg_async.devnet.inference_logs import ProviderLogs
from zg_async.devnet.inference_lora import AdapterEntry, Adapters, FetchModel, LoraRoutes
from zg_async.devnet.inference_settings import (
    Acknowledgement,
    FeeSettlement,
    InferenceChain,
    InferenceSettings,
    SettlementResult,
)
from zg_async.devnet.quote import build_quote
from zg_async.devnet.ticks import next_tick
from zg_async.errors import ZgError
from zg_async.logs import get_logger
from zg_async.wire.inference_api import ADAPTER_PREFIX, InvalidTokenError
from zg_async.wire.records import Address

__all__ = [
    "Acknowledgement",
    "AdapterEntry",
    "FeeSettlement",
    "InferenceChain",
    "InferenceNode",
    "InferenceSettings",
    "SettlementResult",
]

_log = get_logger("zg_async.devnet.inference")
QuoteSource = Callable[[bool], tuple[bytes, Mapping[str, str]]]
"""Whether the legacy layout is asked for -> the body and headers beside it."""
_FALSE: Final = frozenset({"0", "f", "F", "false", "FALSE", "False"})


class InferenceNode:
    """A provider that serves a small model and the adapters trained for it by the same wallet."""

    def __init__(
        self,
        *,
        provider_key: bytes,
        tee_key: bytes,
        provider_address: Address,
        tee_address: Address,
        chain: InferenceChain,
        fetch_model: FetchModel,
        work_dir: Path,
        base_model: str = "Qwen2.5-0.5B-Instruct",
        quote: QuoteSource | None = None,
        settings: InferenceSettings | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Make a provider; nothing runs until `serve` and `start`.

        Args:
            provider_key: The wallet's private key; unwraps adapter keys.
            tee_key: Signs answers, settlements and the quote.
            provider_address: The wallet's address.
            tee_address: The TEE signer's address.
            chain: What it knows of the chain.
            fetch_model: Gives a task's encrypted model file, as the fine-tuning side keeps it.
            work_dir: Its disk: adapter keys and unpacked adapters.
            base_model: The model's name in the registration.
            quote: Makes the attestation report; None makes the devnet's own.
            settings: What can be changed while it runs.
            clock: The machine's time.
        """
        self.address = provider_address
        self.tee_signer = tee_address
        self.base_model = base_model
        self.settings = settings or InferenceSettings()
        self.clock: Clock = clock or SystemClock()
        self.port = 0
        self.files = AdapterFiles(work_dir)
        self._quote = quote or (lambda legacy: _own_quote(tee_key, legacy=legacy))
        self._chain = chain
        self._sessions = Sessions(provider_address, chain, self.settings, self.clock)
        self._limits = Limits(self.settings, self.clock)
        self._logs = ProviderLogs(provider_address, self.clock)
        self.fees = FeeBook(provider_address, tee_key, chain, self.clock)
        self.adapters = Adapters(
            base_model=base_model,
            keys=(provider_key, tee_address),
            chain=chain,
            files=self.files,
            fetch_model=fetch_model,
            settings=self.settings,
            clock=self.clock,
        )
        self._lora = LoraRoutes(self.adapters, self._sessions, self.settings)
        self._chat = ChatRoutes(
            model=lambda: self.base_model,
            chain=chain,
            sessions=self._sessions,
            limits=self._limits,
            adapters=self.adapters,
            fees=self.fees,
            signatures=Signatures(tee_key, tee_address, self.settings, self.clock),
            settings=self.settings,
            clock=self.clock,
            on_low_balance=self._settle_soon,
        )
        self._settle_at = 0.0
        self._background = Background()
        self._runner: web.AppRunner | None = None

    # --- what goes on chain ---

    def additional_info(self) -> str:
        """Return the JSON for the registration. Source: inference.md 2.2."""
        return json.dumps(
            {
                "ImageDigest": "",
                "ImageName": "",
                "LoRAEnabled": self.settings.lora_enabled,
                "TEEVerifier": "dstack",
                "TargetSeparated": False,
                "TargetTeeAddress": "",
                "VerifierURL": "",
            },
            separators=(",", ":"),
        )

    def service_params(self, url: str | None = None) -> dict[str, Any]:
        """Return the arguments of `InferenceContract.add_or_update_service`, without the stake."""
        return {
            "service_type": "chatbot",
            "url": url or self.url,
            "model": self.base_model,
            "verifiability": "TeeML",
            "input_price": self.settings.input_price,
            "output_price": self.settings.output_price,
            "additional_info": self.additional_info(),
            "tee_signer_address": self.tee_signer,
        }

    # --- life ---

    @property
    def url(self) -> str:
        """Where it serves."""
        return f"http://127.0.0.1:{self.port}"

    def app(self) -> web.Application:
        """Return a new server application of this provider."""
        app = web.Application(client_max_size=MAX_BODY + 1, middlewares=[self._middleware])
        app.add_routes(
            [
                web.get("/v1/quote", self._get_quote),
                web.get("/v1/models", self._get_models),
                web.get("/v1/capabilities", self._get_capabilities),
                web.get("/v1/user/{address}/unsettledfee", self._get_unsettled),
                web.post("/internal/v1/adapter-keys", self._post_key),
                *self._logs.routes(),
                *self._lora.routes(),
                *self._chat.routes(),
            ]
        )
        return app

    async def serve(self) -> None:
        """Open the server, on the port of the last time if there was one."""
        self._runner = web.AppRunner(self.app(), access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        self.port = self._runner.addresses[0][1]

    async def start(self, *, from_block: int | None = None) -> None:
        """Open the server if it isn't, and begin to look for adapters and to settle.

        After an `aclose` the adapters that were in memory are loaded anew.

        Args:
            from_block: The first block to look at; None: 1000 before the newest, or where it stopped the last time.
        """
        if self._runner is None:
            await self.serve()
        if from_block is not None:
            self.adapters.look_from(from_block)
        self._settle_at = self.clock.monotonic() + self.settings.settle_interval
        await self.adapters.restart()
        self._logs.note("event", "started")
        self._background = Background()
        self._background.start(self._run(), name=f"devnet inference {self.address}")

    async def aclose(self) -> None:
        """Stop everything; adapters, keys and bills stay for another `start`. Idempotent."""
        await self._background.aclose()
        await self.adapters.aclose()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def restart(self) -> None:
        """Stop and start again."""
        await self.aclose()
        await self.start()

    async def _run(self) -> None:
        while True:
            await next_tick(self.clock, self.settings.poll_interval)
            try:
                if self.settings.lora_enabled:
                    await self.adapters.watch()
                self.adapters.offload_idle()
                if self.clock.monotonic() >= self._settle_at:
                    await self.settle()
            except (ZgError, OSError) as error:
                _log.debug("the chain doesn't answer: %s", error)

    def _settle_soon(self) -> None:
        self._settle_at = self.clock.monotonic()

    async def settle(self) -> Sequence[SettlementResult]:
        """Collect all fees now; see `FeeBook.settle`."""
        self._settle_at = self.clock.monotonic() + self.settings.settle_interval
        self._logs.note("event", "settling")
        return await self.fees.settle()

    # --- routes ---

    @web.middleware
    async def _middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if self.settings.latency > 0:
                await self.clock.sleep(self.settings.latency)
            self._limits.take(request)
            self._logs.note("broker", f"{request.method} {request.path}")
            return await handler(request)
        except RefusedError as refusal:
            return refusal.reply()
        except ZgError as error:
            _log.warning("%s %s failed: %s", request.method, request.path, error)
            return hidden(500).reply()

    async def _get_quote(self, request: web.Request) -> web.Response:
        body, headers = self._quote(request.query.get("legacy", "true") not in _FALSE)
        return web.Response(body=body, headers={"Content-Type": "text/plain; charset=utf-8", **headers})

    async def _get_models(self, _: web.Request) -> web.Response:
        service = await self._chain.service()
        prices = (self.settings.input_price, self.settings.output_price)
        if service is not None:
            prices = (service.input_price, service.output_price)
        return json_reply({"object": "list", "data": [self._model_info(*prices)]})

    def _model_info(self, input_price: int, output_price: int) -> dict[str, Any]:
        return {
            "id": self.base_model,
            "canonical_id": self.base_model,
            "provider": self.address,
            "object": "model",
            "created": 1_700_000_000,
            "owned_by": "0g-devnet",
            "name": self.base_model,
            "description": "A small byte-level model that stands for the named one on a devnet.",
            "type": "chatbot",
            "context_length": 1024,
            "max_completion_tokens": 512,
            "architecture": {
                "modality": "text->text",
                "input_modalities": ["text"],
                "output_modalities": ["text"],
                "instruct_type": "alpaca",
                "tokenizer": "bytes",
            },
            "supported_parameters": ["max_tokens", "stream"],
            "pricing": {"prompt": str(input_price), "completion": str(output_price)},
            "verifiability": "TeeML",
            "tee_attested": True,
            "tee_type": "TDX",
            "tee_verifier": "dstack",
            "provider_type": "decentralized",
        }

    async def _get_capabilities(self, _: web.Request) -> web.Response:
        tuning: dict[str, Any] = {"supports_fine_tuned_adapters": self.settings.lora_enabled}
        if self.settings.lora_enabled:
            tuning |= {"base_model": self.base_model, "adapter_prefix": ADAPTER_PREFIX}
        return json_reply({"base_model": self.base_model, "fine_tuning": tuning})

    async def _get_unsettled(self, request: web.Request) -> web.Response:
        try:
            user = await self._sessions.user(request.headers.get("Authorization", ""))
        except InvalidTokenError as error:
            raise RefusedError(f"Provider: validate session: {error}") from None
        if request.match_info["address"].lower() != user.lower():
            raise RefusedError("you can only query your own unsettled fee", 403)
        return json_reply({"userAddress": user, "unsettledFee": str(self.fees.unsettled(user))})

    async def _post_key(self, request: web.Request) -> web.Response:
        """Take an adapter's key from the fine-tuning side. Source: inference.md 12.2."""
        try:
            check_provider(request.headers, self.address, self.clock.now())
        except InvalidTokenError as error:
            raise RefusedError(str(error), 401) from None
        body = json_object(await read_body(request)) or {}
        texts = [body.get(name) or "" for name in ("taskId", "storageHash", "providerEncKey", "teeSignerAddress")]
        try:
            if not all(isinstance(text, str) for text in texts):
                raise AdapterKeyError("invalid_payload", "fields must be strings")
            key = check_key(*texts)
            await anyio.to_thread.run_sync(self.files.put_key, texts[0], key)
        except AdapterKeyError as error:
            raise RefusedError(str(error), body={"error": str(error), "code": error.code}) from None
        except OSError as error:
            body = {"error": "Internal Server Error", "code": "persist_failed"}
            raise RefusedError("persist_failed", 500, body=body) from error
        return json_reply({"status": "ok", "taskId": texts[0]})


def _own_quote(tee_key: bytes, *, legacy: bool) -> tuple[bytes, Mapping[str, str]]:
    quote = build_quote(tee_key, name="inference", legacy=legacy)
    return quote.body, {"ZG-Quote-Signature": quote.signature}
