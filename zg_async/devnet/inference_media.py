"""Images, image edits, speech and image jobs of an inference provider. Source: inference.md 5.2, 5.3, 5.7, 6.3.

An image is one pixel whose colour follows from the prompt and its number; a recording is as long as its bytes at
16 kHz and 16 bits, and says how many it had.
"""

import base64
import dataclasses
import datetime as dt
import hashlib
import json
import struct
import uuid
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from email import message_from_bytes
from typing import Any, Final

from aiohttp import web

from zg_async.clock import Clock
from zg_async.devnet.inference_http import RefusedError, json_object, json_reply
from zg_async.devnet.inference_settings import InferenceSettings
from zg_async.wire.records import Address

MEDIA_PATHS: Final = frozenset({"images/generations", "images/edits", "audio/transcriptions"})
_BYTES_PER_SECOND: Final = 32_000
_MAX_IMAGES: Final = 10
_KEPT: Final = 1000


@dataclasses.dataclass(frozen=True, slots=True)
class MediaAnswer:
    """What the model's server answered, and what it is billed and signed by."""

    body: bytes
    signed_parts: tuple[bytes, ...]
    """The images, or the whole body."""
    inputs: int
    outputs: int


@dataclasses.dataclass(frozen=True, slots=True)
class _Job:
    user: Address
    created: float
    began: float
    request: bytes
    answer: MediaAnswer
    is_failing: bool


def fields_of(path: str, raw: bytes, content_type: str) -> Mapping[str, Any]:
    """Read a request's fields; files as bytes.

    Raises:
        RefusedError: It isn't what the route takes.
    """
    if path == "images/generations":
        body = json_object(raw)
        if body is None:
            raise _bad("invalid JSON")
        return body
    if not content_type.startswith("multipart/form-data"):
        raise _bad("request Content-Type isn't multipart/form-data")
    form = message_from_bytes(b"Content-Type: " + content_type.encode("ascii", "replace") + b"\r\n\r\n" + raw)
    found: dict[str, Any] = {}
    for part in form.get_payload() if form.is_multipart() else []:
        name = part.get_param("name", header="content-disposition")  # type: ignore[union-attr]
        data = part.get_payload(decode=True)  # type: ignore[union-attr]
        if isinstance(name, str) and isinstance(data, bytes):
            found[name] = data if part.get_filename() else data.decode(errors="replace")  # type: ignore[union-attr]
    return found


def answer(path: str, fields: Mapping[str, Any], now: float) -> MediaAnswer:
    """Answer as the model's server would.

    Raises:
        RefusedError: A field is missing or wrong.
    """
    if path == "audio/transcriptions":
        return _transcribe(fields)
    prompt = fields.get("prompt")
    if not isinstance(prompt, str) or not prompt:
        raise _bad("prompt: field required")
    if path == "images/edits" and not isinstance(fields.get("image"), bytes):
        raise _bad("image: field required")
    count = _count(fields.get("n", 1))
    base = fields.get("image", b"") if path == "images/edits" else b""
    images = tuple(_pixel(prompt.encode() + base + bytes([number])) for number in range(count))
    data = [{"b64_json": base64.b64encode(image).decode()} for image in images]
    return MediaAnswer(_dump({"created": int(now), "data": data}), images, 0, count)


def _count(value: Any) -> int:
    text = value if isinstance(value, str) else str(value) if type(value) is int else ""
    if not text.isdigit() or not 1 <= int(text) <= _MAX_IMAGES:
        raise _bad(f"n must be between 1 and {_MAX_IMAGES}")
    return int(text)


def _transcribe(fields: Mapping[str, Any]) -> MediaAnswer:
    file = fields.get("file")
    if not isinstance(file, bytes):
        raise _bad("file: field required")
    seconds = max(1, round(len(file) / _BYTES_PER_SECOND))
    usage = {"type": "duration", "seconds": seconds}
    body = _dump({"text": f"A recording of {len(file)} bytes.", "usage": usage})
    return MediaAnswer(body, (body,), seconds, 0)


class ImageJobs:
    """Image jobs, by whom they were submitted."""

    def __init__(self, settings: InferenceSettings, clock: Clock) -> None:
        """Begin with none."""
        self._settings = settings
        self._clock = clock
        self._jobs: OrderedDict[str, _Job] = OrderedDict()

    def submit(self, user: Address, request: bytes, result: MediaAnswer) -> web.Response:
        """Take a job."""
        job_id = str(uuid.uuid4())
        failing = self._settings.strikes("fail_job")
        self._jobs[job_id] = _Job(user, self._clock.now(), self._clock.monotonic(), request, result, failing)
        while len(self._jobs) > _KEPT:
            self._jobs.popitem(last=False)
        return json_reply({"jobId": job_id, "status": "pending"}, 202)

    def get(self, user: Address, job_id: str) -> tuple[dict[str, Any], _Job | None]:
        """Return a job's state, and the job itself once it is completed.

        Raises:
            RefusedError: 404 there is none, 403 it is another user's.
        """
        job = self._jobs.get(job_id)
        if job is None:
            raise RefusedError("job not found", 404)
        if job.user != user:
            raise RefusedError("you do not own this job", 403)
        age, delay = self._clock.monotonic() - job.began, self._settings.job_delay
        state: dict[str, Any] = {
            "jobId": job_id,
            "createdAt": _time(job.created),
            "updatedAt": _time(job.created + age),
        }
        if age < delay:
            return state | {"status": "pending" if age < delay / 2 else "processing"}, None
        if job.is_failing:
            return state | {"status": "failed", "errorMessage": "the model's server failed"}, None
        return state | {"status": "completed", "data": json.loads(job.answer.body)}, job


def _pixel(seed: bytes) -> bytes:
    """A PNG of one pixel."""
    colour = hashlib.sha256(seed).digest()[:3]

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" + colour)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def _time(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat().replace("+00:00", "Z")


def _bad(text: str) -> RefusedError:
    body = {"error": {"message": text, "type": "BadRequestError", "param": None, "code": 400}}
    return RefusedError(text, 400, body=body)


def _dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
