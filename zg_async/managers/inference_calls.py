"""One request to an inference provider: its turn, its token, its money, its answer's proof.

What is repeated is only what the provider refused before it did anything: a stale token once, a busy provider for a
while, a short account once after funding. A request that got no answer isn't repeated: it may have been billed.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Final

import anyio
import anyio.to_thread

from zg_async.background import Background
from zg_async.errors import (
    ConfigError,
    HashMismatchError,
    ProviderError,
    ProviderUnavailableError,
    SignatureMismatchError,
)
from zg_async.managers.context import Context
from zg_async.managers.inference_funds import InferenceFunds, is_short_of_funds
from zg_async.managers.inference_services import InferencePolicy, Verify
from zg_async.tracing import observed
from zg_async.transport.answers import Answer
from zg_async.transport.key_book import KeyBook
from zg_async.transport.retry import RetryPolicy, retry
from zg_async.wire import answer_proof, billing, inference_api
from zg_async.wire.answer_proof import AnswerProof, AnswerStatus
from zg_async.wire.records import Address, InferenceService

_SIGNATURE_POLICY: Final = RetryPolicy(attempts=6, max_elapsed=10.0, base=0.5, cap=0.5, on=(ProviderError,))
"""Older builds sign after they have sent the answer."""
_MAX_BODY: Final = 32 * 1024 * 1024


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is sent; the hash of its bytes is what gets signed."""

    path: str
    """Behind `/v1/proxy/` or, beginning with a slash, behind the service's URL."""
    body: bytes = dataclasses.field(repr=False)
    content_type: str = "application/json"

    @property
    def sha256(self) -> str:
        """The body's hash, in hex."""
        return hashlib.sha256(self.body).hexdigest()


def json_request(path: str, body: Mapping[str, object]) -> Request:
    """Write a request with a JSON body.

    Raises:
        ConfigError: A field can't be written as JSON, or the whole is larger than providers take (32 MiB).
    """
    try:
        text = json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the request can't be written as JSON: {error}") from error
    return checked(Request(path=path, body=text))


def checked(request: Request) -> Request:
    """Return a request that isn't larger than providers take.

    Raises:
        ConfigError: It is.
    """
    if len(request.body) > _MAX_BODY:
        raise ConfigError(f"a request of {len(request.body)} bytes; providers take {_MAX_BODY}")
    return request


@observed("inference")
class InferenceCalls(InferenceFunds):
    """Services, tokens and funds, and requests."""

    def __init__(self, context: Context, policy: InferencePolicy | None = None, keys: KeyBook | None = None) -> None:
        """Bind to a wallet."""
        super().__init__(context, policy, keys)
        self._turns: dict[Address, anyio.CapacityLimiter] = {}
        self._proving = anyio.CapacityLimiter(1)

    async def _send(self, service: InferenceService, request: Request, stack: AsyncExitStack) -> Answer:
        """Send a request and return its answer, 2xx, whose body is still to be read; all in `stack`."""
        beside = Background()
        stack.push_async_callback(beside.aclose)
        stack.push_async_callback(beside.wait)
        turn = self._turns.setdefault(service.provider, anyio.CapacityLimiter(max(1, self.policy.in_flight)))
        borrower = object()  # a stream may be closed by another task than the one that opened it
        await turn.acquire_on_behalf_of(borrower)
        stack.callback(turn.release_on_behalf_of, borrower)
        await self._fund_beside(service.provider, beside)
        renewed = funded = False
        while True:
            token = await self.session_token(service.provider)
            outcome = await self._patiently(service, request, token.headers, stack)
            if isinstance(outcome, Answer):
                return outcome
            text = getattr(outcome, "body", "") or outcome.message
            if inference_api.is_stale_token(text) and not renewed:  # revoked or expired: one new token, one more try
                self.forget_session(service.provider, token)
                renewed = True
            elif is_short_of_funds(text) and not funded and await self._fund_by_policy(service.provider, refused=True):
                funded = True
            else:
                raise outcome

    async def _patiently(
        self, service: InferenceService, request: Request, headers: Mapping[str, str], stack: AsyncExitStack
    ) -> Answer | ProviderError:
        async def attempt() -> Answer | ProviderError:
            try:
                return await self._once(service, request, headers, stack)
            except ProviderUnavailableError as error:
                if _is_busy(error):
                    raise
                return error
            except ProviderError as error:
                return error

        seconds = self.policy.busy_seconds
        policy = RetryPolicy(attempts=1000, max_elapsed=seconds, base=0.2, cap=5.0, max_retry_after=seconds)
        try:
            return await retry(attempt, clock=self._ctx.clock, policy=policy)
        except ProviderUnavailableError as error:
            return error

    async def _once(
        self, service: InferenceService, request: Request, headers: Mapping[str, str], stack: AsyncExitStack
    ) -> Answer:
        base = service.url.rstrip("/") if request.path.startswith("/") else inference_api.proxy_url(service.url) + "/"
        async with AsyncExitStack() as opened:
            answer = await opened.enter_async_context(
                self._ctx.http.exchange(
                    "POST",
                    base + request.path,
                    data=request.body,
                    headers={**headers, "Content-Type": request.content_type},
                    provider=service.provider,
                    transfer=True,
                    read_timeout=self.policy.silence,
                )
            )
            is_late = answer.status == 202 and not request.path.startswith("/")  # "still loading" of an early design
            if is_late or not 200 <= answer.status < 300:
                raise await answer.error()
            stack.push_async_exit(opened.pop_all())
        return answer

    # ---- proof

    async def verify_answer(
        self,
        provider: str,
        response_key: str | None,
        *,
        request: bytes | None = None,
        response: bytes | None = None,
    ) -> AnswerProof:
        """Check who signed an answer, and whether over these bytes.

        Args:
            provider: The provider's address.
            response_key: The `ZG-Res-Key` header, or the completion's id.
            request: The request's body as it was sent; None: not compared.
            response: The answer's body as it was received, of a stream all of it; None: not compared.

        Returns:
            The three checks and what follows; nothing is raised for a failed one.

        Raises:
            ProviderError: The signature can't be fetched; providers keep it for 20 minutes.
        """
        return await self._prove(
            await self.recent_service(provider),
            response_key,
            hashlib.sha256(request).hexdigest() if request is not None else None,
            (hashlib.sha256(response).hexdigest(),) if response is not None else None,
        )

    async def _prove(
        self,
        service: InferenceService,
        response_key: str | None,
        request_hash: str | None,
        response_hashes: Sequence[str] | None,
    ) -> AnswerProof:
        promise = answer_proof.signing_promise(service, response_key)
        if promise is not None or response_key is None:
            return promise or AnswerProof(status=AnswerStatus.SKIPPED)
        signed = await self._signature(service, response_key)

        def judge(by: InferenceService) -> AnswerProof:
            return answer_proof.check_answer(
                by, signed, response_key=response_key, request_hash=request_hash, response_hashes=response_hashes
            )

        proof = await anyio.to_thread.run_sync(judge, service, limiter=self._proving)  # 9 ms without coincurve
        if proof.status is AnswerStatus.FAILED:  # an upgrade changes the signer: what the chain says now decides
            now = await self.get_service(service.provider)
            proof = answer_proof.signing_promise(now, response_key) or judge(now)
        return proof

    async def _signature(self, service: InferenceService, response_key: str) -> answer_proof.SignedText:
        url = service.url.rstrip("/") + inference_api.signature_path(response_key, service.model)

        async def attempt() -> bytes | ProviderError:
            try:
                reply = await self._ctx.http.request(
                    "GET", url, limit=answer_proof.SIGNATURE_LIMIT, provider=service.provider
                )
            except ProviderError as error:
                if "chat_id_not_found" in (getattr(error, "body", "") or error.message):
                    raise
                return error
            return reply.body

        found = await retry(attempt, clock=self._ctx.clock, policy=_SIGNATURE_POLICY)
        if isinstance(found, ProviderError):
            raise found
        return answer_proof.parse_signature(found, provider=service.provider)

    async def _require_proof(
        self,
        service: InferenceService,
        response_key: str | None,
        request_hash: str,
        response_hashes: Sequence[str] | None,
        verify: Verify | None,
    ) -> AnswerProof:
        """Prove an answer as far as asked, or raise."""
        wanted = verify or self.policy.verify
        if wanted not in ("bytes", "signer", "off"):
            raise ConfigError(f"unknown verification {str(wanted)[:40]!r}", hint='It is "bytes", "signer" or "off"')
        if wanted == "off":
            return AnswerProof(status=AnswerStatus.SKIPPED, response_key=response_key)
        proof = await self._prove(service, response_key, request_hash, response_hashes)
        enforce(proof, wanted, service)
        return proof

    # ---- as the peers have it

    async def process_response(
        self, provider_address: str, chat_id: str | None = None, content: str | None = None
    ) -> bool | None:
        """Count a call made with a client of your own, and check who signed its answer, as the peers' method does.

        It knows no bytes, so it can't tell whether the signature belongs to this answer: `verify_answer` can.

        Args:
            provider_address: The provider's address.
            chat_id: The `ZG-Res-Key` header, or the completion's id; None: nothing is checked.
            content: The usage object as JSON, of images the request's; None: nothing is counted.

        Returns:
            True: the right signer; False: not, or not verifiable; None: nothing was checked.

        Raises:
            ProviderError: The signature can't be fetched.
        """
        service = await self.recent_service(provider_address)
        if content is not None:
            counts = billing.count_content(service.service_type, content)
            self._charge(service.provider, None, billing.fee_of_counts(service, counts))
        return (await self._prove(service, chat_id, None, None)).as_peers_say()


def enforce(proof: AnswerProof, verify: Verify, service: InferenceService) -> None:
    """Let only a proof pass that is as good as asked.

    Raises:
        HashMismatchError: The right signer, but not over these bytes.
        SignatureMismatchError: Another signer, or nothing that names the answer.
    """
    match proof.status:
        case AnswerStatus.VERIFIED | AnswerStatus.NOT_VERIFIABLE:
            return
        case AnswerStatus.NOT_BOUND:
            if verify == "signer":
                return
            raise HashMismatchError(
                f"the answer of {service.provider} is not bound to these bytes: {proof.reason}",
                hint='It may have been changed on the way; older builds hash others: there pass verify="signer"',
            )
        case AnswerStatus.SKIPPED:
            if service.verifiability not in answer_proof.VERIFIABLE:
                return
            raise SignatureMismatchError(f"{service.provider} promises signed answers, and nothing names this one")
        case AnswerStatus.FAILED:
            raise SignatureMismatchError(
                f"the answer of {service.provider} isn't by its TEE signer: {proof.reason}",
                hint="Don't use it; verify the provider",
            )


def _is_busy(error: ProviderUnavailableError) -> bool:
    """Whether the provider refused before doing anything, and may not the next time."""
    text = error.body or error.message
    is_of_adapter = inference_api.classify_refusal(text) is not inference_api.Refusal.OTHER
    return error.status in (429, 503) and "unsupported models" not in text.lower() and not is_of_adapter
