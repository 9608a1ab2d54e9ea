"""The two routes that move files: dataset upload and model download (fine-tuning.md 6, 12)."""

import contextlib
import re
import uuid
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import aiohttp
import anyio
import anyio.to_thread
from aiohttp import web

from zg_async.devnet.provider_files import PIECE
from zg_async.devnet.provider_http import (
    bind_refusal,
    check_age,
    check_owner,
    check_signer,
    find_task,
    json_reply,
    must_bind,
    prefixed,
    task_id_of,
)
from zg_async.devnet.provider_rules import Refused, fold_address, is_hex_address
from zg_async.wire.records import DOWNLOADABLE
from zg_async.wire.signing import dataset_upload_hash, model_download_hash

if TYPE_CHECKING:
    from zg_async.devnet.provider import ProviderNode

_INTEGER: Final = re.compile(r"[+-]?\d{1,18}")
_RANGE: Final = re.compile(r"bytes=\s*(\d*)\s*-\s*(\d*)\s*")


class Transfers:
    """The handlers."""

    def __init__(self, node: "ProviderNode") -> None:
        """Serve one provider."""
        self._node = node

    # --- datasets ---

    async def upload(self, request: web.Request) -> web.StreamResponse:
        """Route 2."""
        node = self._node
        node.gate.limit(request)
        folder = anyio.Path(node.files.folder)
        await folder.mkdir(parents=True, exist_ok=True)
        part = Path(folder / f"upload-{uuid.uuid4().hex}.part")
        try:
            fields, name, size = await self._read_form(request, part)
            self._check_upload(request.match_info["address"], fields, name, size)
            user = fold_address(request.match_info["address"])
            if user is None or name is None:
                raise Refused("invalid user address format")
            with prefixed("save dataset"):
                if "/" in name or name in (".", ".."):
                    raise Refused("invalid filename")
                dataset_hash = await anyio.to_thread.run_sync(node.files.save_dataset, user, part, node.now())
        finally:
            await anyio.Path(part).unlink(missing_ok=True)
        if node.faults.strikes("wrong_dataset_hash", request.path):
            dataset_hash = "0x" + "ee" * 32
        message = "Dataset uploaded successfully. Use this hash when creating a fine-tuning task."
        return json_reply({"datasetHash": dataset_hash, "message": message})

    async def _read_form(self, request: web.Request, part: Path) -> tuple[dict[str, str], str | None, int]:
        """Read the form; the file goes to disk up to the limit, the rest is counted only."""
        fields: dict[str, str] = {}
        name, size = None, 0
        if not request.content_type.startswith("multipart/"):
            return fields, name, size
        limit = self._node.settings.maximum_dataset_bytes
        try:
            async for field in await request.multipart():
                if not isinstance(field, aiohttp.BodyPartReader):
                    continue
                if field.filename is None:
                    fields.setdefault(field.name or "", (await field.read(decode=True)).decode(errors="replace"))
                elif field.name == "file" and name is None:
                    name = field.filename
                    async with await anyio.open_file(part, "wb") as out:
                        while piece := await field.read_chunk(PIECE):
                            size += len(piece)
                            if size <= limit:
                                await out.write(piece)
        except ValueError:  # a damaged form: what was read counts
            return fields, name, size
        return fields, name, size

    def _check_upload(self, address: str, fields: Mapping[str, str], name: str | None, size: int) -> None:
        signature, timestamp = fields.get("signature", ""), fields.get("timestamp", "")
        if not signature:
            raise Refused("Signature is required", 401)
        if not timestamp:
            raise Refused("Timestamp is required", 401)
        if not _INTEGER.fullmatch(timestamp):
            raise Refused("Invalid timestamp format")
        try:
            if not is_hex_address(address):
                raise Refused("invalid user address format")
            check_age(self._node, int(timestamp))
            check_signer(dataset_upload_hash(address, int(timestamp)), signature, address)
        except Refused as refused:
            raise Refused(f"Authentication failed: {refused.text}", 401) from refused
        if name is None:
            raise Refused("No file provided")
        if size > self._node.settings.maximum_dataset_bytes:
            raise Refused("File too large. Maximum size is 100MB")
        if not name.lower().endswith((".jsonl", ".json")):
            raise Refused("Invalid file type. Only JSONL/JSON files are allowed")

    # --- download ---

    async def download(self, request: web.Request) -> web.StreamResponse:
        """Route 8."""
        node = self._node
        node.gate.limit(request)
        task_id = task_id_of(request)
        body = await must_bind(request)
        if body is None or not isinstance(body.get("signature"), str) or not body["signature"]:
            return bind_refusal("bind request body", "Signature")
        timestamp = body.get("timestamp")
        if not isinstance(timestamp, int) or isinstance(timestamp, bool) or not timestamp:
            return bind_refusal("bind request body", "Timestamp")
        address = request.match_info["address"]
        try:
            check_age(self._node, timestamp)
            check_signer(model_download_hash(task_id, timestamp), body["signature"], address)
        except Refused as refused:
            raise Refused(f"authentication failed: {refused.text}", 401) from refused
        with prefixed("get LoRA model"):
            task = find_task(self._node, task_id)
            check_owner(task, address)
            if task.progress not in DOWNLOADABLE:
                raise Refused("task is not ready for download. Please wait for 'Delivered' status", 409)
            path = node.files.encrypted(task_id)
            if node.faults.strikes("lora_503", request.path) or not await anyio.Path(path).exists():
                raise Refused("encrypted LoRA not yet available", 503)
        return await self._send_file(request, path, f"lora_encrypted_{task_id}.data")

    async def _send_file(self, request: web.Request, path: Path, name: str) -> web.StreamResponse:
        stat = await anyio.Path(path).stat()
        size = stat.st_size
        first, last = 0, size - 1
        if asked := request.headers.get("Range"):
            chosen = _parse_range(asked, size)
            if chosen is None:
                headers = {"Content-Range": f"bytes */{size}", "Content-Type": "text/plain; charset=utf-8"}
                return web.Response(status=416, text="invalid range: failed to overlap\n", headers=headers)
            first, last = chosen
        reply = web.StreamResponse(status=206 if asked else 200)
        reply.headers["Content-Description"] = "File Transfer"
        reply.headers["Content-Disposition"] = f"attachment; filename={name}"
        reply.headers["Content-Type"] = "application/octet-stream"
        reply.headers["Accept-Ranges"] = "bytes"
        reply.last_modified = stat.st_mtime
        if asked:
            reply.headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        reply.content_length = last - first + 1
        await reply.prepare(request)
        async with contextlib.aclosing(_file_pieces(path, first, last)) as pieces:
            with contextlib.suppress(ConnectionError):  # who asked has gone
                await self._send_pieces(request, reply, pieces, first, size)
        return reply

    async def _send_pieces(
        self,
        request: web.Request,
        reply: web.StreamResponse,
        pieces: AsyncGenerator[bytes, None],
        first: int,
        size: int,
    ) -> None:
        faults = self._node.faults
        cut, stall = faults.strikes("cut_download", request.path), faults.strikes("stall_download", request.path)
        left = faults.cut_bytes if cut or stall else size
        flip = size // 2 if faults.strikes("wrong_hash", request.path) else -1
        position = first
        async for piece in pieces:
            if position <= flip < position + len(piece):
                changed = bytearray(piece)
                changed[flip - position] ^= 1
                piece = bytes(changed)
            await reply.write(piece[:left])
            position += len(piece)
            left -= len(piece)
            if left < 0:
                if stall:
                    await self._node.gate.closing.wait()
                if request.transport is not None:
                    request.transport.close()  # what was written still goes out
                return
        await reply.write_eof()


async def _file_pieces(path: Path, first: int, last: int) -> AsyncGenerator[bytes, None]:
    async with await anyio.open_file(path, "rb") as file:
        await file.seek(first)
        left = last - first + 1
        while left > 0 and (piece := await file.read(min(PIECE, left))):
            left -= len(piece)
            yield piece


def _parse_range(text: str, size: int) -> tuple[int, int] | None:
    """Read a single range; None where nothing of it lies in the file."""
    match = _RANGE.fullmatch(text)
    if match is None or match.group(0) == "" or not (match[1] or match[2]):
        return None
    if not match[1]:
        return (max(size - int(match[2]), 0), size - 1) if int(match[2]) and size else None
    first = int(match[1])
    last = min(int(match[2]), size - 1) if match[2] else size - 1
    return (first, last) if first <= last and first < size else None
