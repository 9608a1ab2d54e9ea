"""What all routes of a provider share: answers, refusals, and who signed."""

import contextlib
import hmac
import json
import uuid
from collections.abc import Iterator
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from zg_async.devnet.provider_rules import Refused, fold_address, signature_bytes
from zg_async.devnet.provider_store import ProviderTask
from zg_async.errors import ZgError
from zg_async.wire.records import Address, TaskId
from zg_async.wire.signing import eip191_hash, recover_address

if TYPE_CHECKING:
    from zg_async.devnet.provider import ProviderNode

MAX_AGE: Final = 300
MAX_AHEAD: Final = 60
_JSON: Final = "application/json; charset=utf-8"


def json_reply(value: Any, status: int = 200) -> web.Response:
    """Answer with JSON as the broker's framework writes it."""
    return web.Response(body=json.dumps(value).encode(), status=status, headers={"Content-Type": _JSON})


def error_reply(status: int, text: str) -> web.Response:
    """Answer with an error; from 500 on only the status phrase is told."""
    return json_reply({"error": HTTPStatus(status).phrase if status >= 500 else text}, status)


@contextlib.contextmanager
def prefixed(context: str) -> Iterator[None]:
    """Put the context before a refusal's text."""
    try:
        yield
    except Refused as refused:
        raise Refused(f"{context}: {refused.text}", refused.status) from refused


def find_task(node: "ProviderNode", task_id: TaskId) -> ProviderTask:
    """Return a task.

    Raises:
        Refused: 404, there is none.
    """
    task = node.store.get(task_id)
    if task is None:
        raise Refused(f"task {task_id} not found", 404)
    return task


def check_age(node: "ProviderNode", timestamp: int) -> None:
    """Check a signature's time against the provider's clock.

    Raises:
        Refused: Too old or too far ahead.
    """
    age = int(node.wall_time()) - timestamp
    if age < -MAX_AHEAD:
        raise Refused(f"timestamp is too far in the future: {-age} seconds ahead")
    if age > MAX_AGE:
        raise Refused(f"timestamp is too old: {age} seconds ago (max {MAX_AGE} seconds)")


def check_signer(inner: bytes, signature: str, address: str) -> None:
    """Check that the address in a path signed.

    Raises:
        Refused: Somebody else did, or nobody.
    """
    signer = recover_signer(inner, signature)
    expected = fold_address(address)
    if expected is None or not hmac.compare_digest(signer, expected):
        raise Refused(f"signature verification failed: expected {expected}, got {signer}")


def recover_signer(inner: bytes, signature: str) -> Address:
    """Recover who signed a hash; v may be 0, 1, 27 or 28.

    Raises:
        Refused: The signature can't be read.
    """
    try:
        return recover_address(eip191_hash(inner), signature_bytes(signature))
    except ZgError as error:
        raise Refused("recover public key from signature: recovery failed") from error


def task_id_of(request: web.Request) -> TaskId:
    """Read the id in a path; 400 if it is none."""
    try:
        return TaskId(str(uuid.UUID(request.match_info["id"])))
    except ValueError as error:
        raise Refused(f"parse task id: invalid UUID length: {len(request.match_info['id'])}") from error


def check_owner(task: ProviderTask, address: str) -> None:
    """Refuse with 403 unless the path's address owns the task."""
    if task.user != fold_address(address):
        raise Refused("task does not belong to this user", 403)


async def must_bind(request: web.Request) -> dict[str, Any] | None:
    """Read a JSON object; None if the body is none."""
    try:
        body = json.loads(await request.read())
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) else None


def bind_refusal(context: str, field: str) -> web.Response:
    """Answer a malformed body: the framework has already set the type when the JSON is written."""
    text = f"{context}: Key: '{field}' Error:Field validation for '{field}' failed on the 'required' tag"
    body = json.dumps({"error": text}).encode()
    return web.Response(body=body, status=400, headers={"Content-Type": "text/plain; charset=utf-8"})
