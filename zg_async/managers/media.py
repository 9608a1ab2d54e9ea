"""Images, image edits, speech, and image jobs that run at the provider while nobody waits."""

import base64
import binascii
import contextlib
import dataclasses
import enum
import hashlib
import os
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import anyio.to_thread

from zg_async.errors import ConfigError, ProviderError, ProviderReplyError
from zg_async.managers.chat import InferenceChat
from zg_async.managers.inference_calls import Request, checked, json_request
from zg_async.managers.inference_services import Verify, require_object
from zg_async.text import printable
from zg_async.tracing import observed
from zg_async.transport.answers import Reply
from zg_async.transport.multipart import MultipartForm, plain_filename
from zg_async.wire import billing
from zg_async.wire.answer_proof import AnswerProof
from zg_async.wire.inference_api import CHAT_REPLY_LIMIT
from zg_async.wire.records import Address, InferenceService
from zg_async.wire.strict_json import BadJsonError, decode_json

MEDIA_LIMIT: Final = 128 * 1024 * 1024
"""Bytes of an answer with images in it."""
_POLL: Final = 5.0
"""What providers ask for between two looks at a job."""
_LONGEST_POLL: Final = 60.0
_IMAGE_TYPES: Final = (".png", ".jpg", ".jpeg", ".webp")
_AUDIO_TYPES: Final = (".wav", ".mp3", ".m4a", ".flac", ".ogg", ".webm", ".mp4", ".mpeg", ".mpga")
File = bytes | str | os.PathLike[str]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ImageAnswer:
    """Generated or edited images."""

    images: tuple[bytes, ...] = dataclasses.field(repr=False)
    """Their bytes; empty where the provider sent links."""
    urls: tuple[str, ...]
    """Links, where the provider sent those. Nothing binds what lies there to its signature: such an answer is refused
    unless `verify` is `"signer"` or `"off"`."""
    fee: int
    """Neuron, estimated: the registered output price for each image."""
    proof: AnswerProof | None
    raw: Mapping[str, object] = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Transcript:
    """What was said in a recording."""

    text: str
    fee: int
    """Neuron, estimated."""
    proof: AnswerProof | None
    raw: Mapping[str, object] = dataclasses.field(repr=False)


class ImageJobStatus(enum.StrEnum):
    """States of an image job; an unknown one counts as in progress."""

    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ImageJob:
    """An image job at a provider."""

    id: str
    provider: Address
    status: ImageJobStatus
    status_text: str
    """The provider's own word for it."""
    request_hash: str | None
    """SHA-256 of the request, to prove the result; None: it was submitted elsewhere."""
    error: str = ""
    result: ImageAnswer | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return self.status in (ImageJobStatus.COMPLETED, ImageJobStatus.FAILED)


@observed("inference")
class InferenceMedia(InferenceChat):
    """Chat, and the other services."""

    async def generate_images(
        self, provider: str, prompt: str, *, model: str | None = None, verify: Verify | None = None, **fields: Any
    ) -> ImageAnswer:
        """Make images.

        Args:
            provider: A text-to-image provider's address.
            prompt: What to draw.
            model: None: the service's own.
            verify: How the answer has to be proven; None: as the broker's policy says.
            fields: Any other field of an OpenAI image generation, such as `n` and `size`.

        Raises:
            ProviderError: The provider refused, or didn't answer.
            VerificationError: The images were changed, or somebody else signed them.
        """
        service = await self.recent_service(provider)
        request = _image_request("images/generations", service, prompt, model, fields)
        return await self._images(service, request, _count(fields), verify)

    async def edit_images(
        self,
        provider: str,
        prompt: str,
        image: File,
        *,
        model: str | None = None,
        verify: Verify | None = None,
        **fields: Any,
    ) -> ImageAnswer:
        """Change an image.

        Args:
            provider: An image-editing provider's address.
            prompt: What to change.
            image: The image's bytes, or its path.
            model: None: the service's own.
            verify: How the answer has to be proven; None: as the broker's policy says.
            fields: Any other field of an OpenAI image edit.
        """
        service = await self.recent_service(provider)
        request = await _edit_request("images/edits", service, prompt, image, model, fields)
        return await self._images(service, request, _count(fields), verify)

    async def transcribe(
        self, provider: str, file: File, *, model: str | None = None, verify: Verify | None = None, **fields: Any
    ) -> Transcript:
        """Write down what is said in a recording.

        Args:
            provider: A speech-to-text provider's address.
            file: The recording's bytes, or its path.
            model: None: the service's own.
            verify: How the answer has to be proven; None: as the broker's policy says.
            fields: Any other field of an OpenAI transcription.
        """
        service = await self.recent_service(provider)
        form = {"model": model or service.model, "response_format": "json", **_texts(fields)}
        request = await _form_request("audio/transcriptions", form, "file", file, _AUDIO_TYPES)
        body, key = await self._whole(service, request, CHAT_REPLY_LIMIT)
        value = _decoded(body, service.provider)
        text = value.get("text")
        if not isinstance(text, str):
            raise ProviderReplyError("the provider's transcript has no text", provider=service.provider)
        counts = billing.count_usage("speech-to-text", value.get("usage"))
        fee = counts.inputs * service.input_price + counts.outputs * service.output_price
        self._charge(service.provider, None, fee)
        hashes = (hashlib.sha256(body).hexdigest(),)
        proof = await self._require_proof(service, key or _id(value), request.sha256, hashes, verify)
        return Transcript(text=text, fee=fee, proof=proof, raw=value)

    # ---- jobs

    async def submit_image_job(
        self, provider: str, prompt: str, *, image: File | None = None, model: str | None = None, **fields: Any
    ) -> ImageJob:
        """Have images made or changed while nobody waits.

        Args:
            provider: The provider's address.
            prompt: What to draw or change.
            image: An image to change; None: make a new one.
            model: None: the service's own.
            fields: Any other field of the OpenAI request.

        Returns:
            The job; `watch_image_job` follows it, `wait_image_job` waits for its images.
        """
        service = await self.recent_service(provider)
        request = (
            _image_request("/v1/async/images/generations", service, prompt, model, fields)
            if image is None
            else await _edit_request("/v1/async/images/edits", service, prompt, image, model, fields)
        )
        body, _ = await self._whole(service, request, CHAT_REPLY_LIMIT)
        value = _decoded(body, service.provider)
        return _job(value, service.provider, request.sha256, None)

    async def get_image_job(self, provider: str, job: ImageJob | str, *, verify: Verify | None = None) -> ImageJob:
        """Read an image job; with its images when it is completed.

        Args:
            provider: The provider's address.
            job: The job, or its id. Of an id alone the images can't be bound to the request: see `verify`.
            verify: How the result has to be proven; None: as the broker's policy says.

        Raises:
            ProviderError: It isn't known there, or isn't yours.
        """
        return (await self._look(provider, job, verify))[0]

    async def _look(self, provider: str, job: ImageJob | str, verify: Verify | None) -> tuple[ImageJob, float]:
        service = await self.recent_service(provider)
        job_id, request_hash = (job.id, job.request_hash) if isinstance(job, ImageJob) else (job, None)
        reply: Reply = await self._ctx.http.request(
            "GET",
            f"{service.url.rstrip('/')}/v1/async/jobs/{quote(job_id, safe='')}",
            headers=await self.get_request_headers(service.provider),
            limit=MEDIA_LIMIT,
            provider=service.provider,
            signed=True,
        )
        value = _decoded(reply.body, service.provider)
        found = _job(value, service.provider, request_hash, job_id)
        if found.status is ImageJobStatus.COMPLETED and isinstance(value.get("data"), dict):
            data = require_object(value["data"], "image job", service.provider)
            key = reply.headers.get("ZG-Res-Key") or _id(data)
            result = await self._proven(service, data, key, request_hash or "", verify)
            found = dataclasses.replace(found, result=result)
        return found, min(_retry_after(reply) or _POLL, _LONGEST_POLL)

    async def watch_image_job(
        self, provider: str, job: ImageJob | str, *, verify: Verify | None = None
    ) -> AsyncGenerator[ImageJob, None]:
        """Yield an image job each time its state changes, beginning with the state now; ends when the job is over.

        Drive it with `contextlib.aclosing`.

        Args:
            provider: The provider's address.
            job: The job, or its id.
            verify: How the result has to be proven; None: as the broker's policy says.
        """
        last: str | None = None
        while True:
            found, pause = await self._look(provider, job, verify)
            if found.status_text != last:
                last = found.status_text
                yield found
            if found.is_over:
                return
            await self._ctx.clock.sleep(pause)

    async def wait_image_job(self, provider: str, job: ImageJob | str, *, verify: Verify | None = None) -> ImageAnswer:
        """Wait for an image job's images; use `anyio.fail_after` for a deadline.

        Args:
            provider: The provider's address.
            job: The job, or its id.
            verify: How the result has to be proven; None: as the broker's policy says.

        Raises:
            ProviderError: It failed.
        """
        found: ImageJob | None = None
        async with contextlib.aclosing(self.watch_image_job(provider, job, verify=verify)) as states:
            async for state in states:
                found = state
        if found is None or found.result is None:
            reason = found.error if found and found.error else "no result came"
            raise ProviderError(f"the image job failed: {reason}", provider=found.provider if found else None)
        self._charge(found.provider, None, found.result.fee)
        return found.result

    # ---- helpers

    async def _whole(self, service: InferenceService, request: Request, limit: int) -> tuple[bytes, str | None]:
        async with AsyncExitStack() as stack:
            answer = await self._send(service, request, stack)
            return await answer.read(limit), answer.headers.get("ZG-Res-Key")

    async def _images(
        self, service: InferenceService, request: Request, wanted: int, verify: Verify | None
    ) -> ImageAnswer:
        body, key = await self._whole(service, request, MEDIA_LIMIT)
        value = _decoded(body, service.provider)
        self._charge(service.provider, None, wanted * service.output_price)
        return await self._proven(service, value, key or _id(value), request.sha256, verify)

    async def _proven(
        self,
        service: InferenceService,
        value: Mapping[str, object],
        key: str | None,
        request_hash: str,
        verify: Verify | None,
    ) -> ImageAnswer:
        images, urls = await anyio.to_thread.run_sync(_read_images, value, service.provider)
        hashes = tuple(hashlib.sha256(image).hexdigest() for image in images) if images and not urls else None
        proof = await self._require_proof(service, key, request_hash, hashes, verify)
        count = len(images) + len(urls)
        return ImageAnswer(images=images, urls=urls, fee=count * service.output_price, proof=proof, raw=value)


def _image_request(
    path: str, service: InferenceService, prompt: str, model: str | None, fields: Mapping[str, Any]
) -> Request:
    return json_request(
        path, {"model": model or service.model, "prompt": prompt, "n": 1, "response_format": "b64_json", **fields}
    )


async def _edit_request(
    path: str, service: InferenceService, prompt: str, image: File, model: str | None, fields: Mapping[str, Any]
) -> Request:
    form = {"model": model or service.model, "prompt": prompt, "response_format": "b64_json", **_texts(fields)}
    return await _form_request(path, form, "image", image, _IMAGE_TYPES)


async def _form_request(
    path: str, fields: Mapping[str, str], file_field: str, file: File, extensions: tuple[str, ...]
) -> Request:
    if isinstance(file, bytes):
        name, data = f"file{extensions[0]}", file
    else:
        source = Path(file)
        try:
            data = await anyio.to_thread.run_sync(source.read_bytes)
        except OSError as error:
            raise ConfigError(f"{printable(source.name)} can't be read: {error.strerror}") from error
        name = plain_filename(source.name, extensions=extensions)
    try:
        form = MultipartForm(fields, file_field=file_field, filename=name, file_size=len(data))
    except ValueError as error:
        raise ConfigError(f"a field of the form has no plain name: {sorted(fields)}") from error
    return checked(Request(path=path, body=form.head + data + form.tail, content_type=form.content_type))


def _texts(fields: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in fields.items()}


def _count(fields: Mapping[str, Any]) -> int:
    wanted = fields.get("n", 1)
    return wanted if type(wanted) is int and wanted > 0 else 1


def _decoded(body: bytes, provider: Address) -> dict[str, object]:
    try:
        return require_object(decode_json(body, limit=MEDIA_LIMIT), "answer", provider)
    except BadJsonError as error:
        raise ProviderReplyError(f"the provider's answer can't be read: {error}", provider=provider) from None


def _id(value: Mapping[str, object]) -> str | None:
    found = value.get("id")
    return found if isinstance(found, str) and found else None


def _read_images(value: Mapping[str, object], provider: Address) -> tuple[tuple[bytes, ...], tuple[str, ...]]:
    rows = value.get("data")
    if not isinstance(rows, list) or not rows:
        raise ProviderReplyError("the provider's answer holds no images", provider=provider)
    images, urls = [], []
    for row in rows:
        text, url = (row.get("b64_json"), row.get("url")) if isinstance(row, dict) else (None, None)
        if isinstance(text, str):
            images.append(_image(text, provider))
        elif isinstance(url, str):
            urls.append(url)
        else:
            raise ProviderReplyError("the provider's answer holds an image without bytes or link", provider=provider)
    return tuple(images), tuple(urls)


def _image(text: str, provider: Address) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ProviderReplyError("the provider's image isn't base64", provider=provider) from None


def _job(value: Mapping[str, object], provider: Address, request_hash: str | None, known: str | None) -> ImageJob:
    job_id, status, error = value.get("jobId") or known, value.get("status"), value.get("errorMessage")
    if not isinstance(job_id, str) or not isinstance(status, str):
        raise ProviderReplyError("the provider's image job has no id or status", provider=provider)
    is_known = status in ImageJobStatus._value2member_map_
    return ImageJob(
        id=job_id,
        provider=provider,
        status=ImageJobStatus(status) if is_known else ImageJobStatus.UNKNOWN,
        status_text=status,
        request_hash=request_hash,
        error=printable(error) if isinstance(error, str) else "",
    )


def _retry_after(reply: Reply) -> float | None:
    text = reply.headers.get("Retry-After", "")
    return float(text) if text.isascii() and text.isdigit() and len(text) <= 4 and int(text) > 0 else None
