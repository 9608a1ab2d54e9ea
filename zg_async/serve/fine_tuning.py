"""The OpenAI fine-tuning API on top of the job runner: files in, jobs, their events, and the model to chat with.

Jobs live in the runner's journal, files in a folder of this user; both outlive the server. A job may cost at most what
the server's cap has left when it is created, and holds that much until it has ended.
"""

import contextlib
import dataclasses
import datetime as dt
import hashlib
import json
import os
import re
from collections.abc import AsyncGenerator, Callable, Mapping
from pathlib import Path
from typing import Any, Final

import anyio.to_thread
from aiohttp import web

from zg_async.errors import ConfigError, JournalError, LimitError
from zg_async.jobs.events import Event, JobFailed, JobWarned, StageRetrying, event_to_json
from zg_async.jobs.handle import JobHandle
from zg_async.jobs.runner import JobRunner
from zg_async.jobs.spec import JobSpec
from zg_async.jobs.state import JobState
from zg_async.managers.dataset import check_dataset
from zg_async.paths import make_private_dir
from zg_async.serve.budget import Budget
from zg_async.serve.gate import PassedOnError, error_reply, read_form, read_json
from zg_async.text import printable
from zg_async.wire.rows import TrainingParams
from zg_async.wire.strict_json import BadJsonError, decode_json

LABEL: Final = "openai-file"
_FILE_ID: Final = re.compile(r"file-[0-9a-f]{24}")
_JOB_ID: Final = re.compile(r"ftjob-(job-[0-9a-f]{20})")
_LEARNING_RATE: Final = 0.0002
_PARAMETERS: Final = frozenset(f.name for f in dataclasses.fields(TrainingParams))
_MOST: Final = 100


class FileShelf:
    """Uploaded files, by what is in them."""

    def __init__(self, folder: Path) -> None:
        """Use a folder; it is made when the first file comes."""
        self._folder = folder

    def put(self, name: str, purpose: str, data: bytes, now: int) -> dict[str, Any]:
        """Keep a file; the same bytes are the same file. Blocks."""
        file_id = f"file-{hashlib.sha256(data).hexdigest()[:24]}"
        facts = {"filename": printable(name), "purpose": purpose, "created_at": now, "bytes": len(data)}
        folder = make_private_dir(self._folder)
        _write(folder / f"{file_id}.jsonl", data)
        _write(folder / f"{file_id}.json", json.dumps(facts).encode())
        return _file(file_id, facts)

    def path(self, file_id: str) -> Path:
        """Return where a file's bytes are.

        Raises:
            PassedOnError: There is no such file.
        """
        path = self._folder / f"{file_id}.jsonl"
        if not _FILE_ID.fullmatch(file_id) or not path.is_file():
            raise PassedOnError(404, f"no such file: {printable(file_id, limit=60)}")
        return path

    def get(self, file_id: str) -> dict[str, Any]:
        """Return what is known of a file. Blocks."""
        self.path(file_id)
        try:
            facts = decode_json((self._folder / f"{file_id}.json").read_bytes(), limit=64 * 1024)
        except (OSError, BadJsonError):
            raise PassedOnError(404, f"no such file: {file_id}") from None
        return _file(file_id, facts)

    def all(self) -> list[dict[str, Any]]:
        """Return all files, newest first. Blocks."""
        names = [p.stem for p in self._folder.glob("file-*.jsonl")] if self._folder.is_dir() else []
        return sorted((self.get(n) for n in names if _FILE_ID.fullmatch(n)), key=lambda f: -f["created_at"])

    def delete(self, file_id: str) -> None:
        """Remove a file. Blocks."""
        self.path(file_id).unlink()
        with contextlib.suppress(FileNotFoundError):
            (self._folder / f"{file_id}.json").unlink()


def _write(path: Path, data: bytes) -> None:
    part = path.with_suffix(".part")
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _file(file_id: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": file_id, "object": "file", "status": "processed", **facts}


class FineTuningRoutes:
    """Files and jobs."""

    def __init__(self, runner: JobRunner, budget: Budget, *, folder: Path, provider: str | None) -> None:
        """Serve a runner's jobs.

        Args:
            runner: An entered runner.
            budget: The server's cap.
            folder: Where files and adapters go.
            provider: Who trains; None: the best free one.
        """
        self._runner = runner
        self._budget = budget
        self._folder = folder
        self._provider = provider
        self._shelf = FileShelf(folder / "files")
        self._held: dict[str, tuple[JobHandle, int]] = {}
        self._creating = anyio.Lock()

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        return [
            web.post("/v1/files", self._upload),
            web.get("/v1/files", self._files),
            web.get("/v1/files/{file}", self._get_file),
            web.get("/v1/files/{file}/content", self._content),
            web.delete("/v1/files/{file}", self._delete_file),
            web.post("/v1/fine_tuning/jobs", self._create),
            web.get("/v1/fine_tuning/jobs", self._list),
            web.get("/v1/fine_tuning/jobs/{job}", self._retrieve),
            web.post("/v1/fine_tuning/jobs/{job}/cancel", self._cancel),
            web.get("/v1/fine_tuning/jobs/{job}/events", self._events),
            web.get("/v1/fine_tuning/jobs/{job}/checkpoints", self._checkpoints),
        ]

    # ---- files

    async def _upload(self, request: web.Request) -> web.Response:
        fields, files, names = await read_form(request)
        if "file" not in files:
            return error_reply(400, "file: a file is required")
        if fields.get("purpose", "fine-tune") != "fine-tune":
            return error_reply(400, "purpose: only fine-tune is served here")
        now = int(self._runner.broker.clock.now())
        kept = await anyio.to_thread.run_sync(self._shelf.put, names["file"], "fine-tune", files["file"], now)
        report = await check_dataset(self._shelf.path(kept["id"]))
        if not report.is_ok:
            await anyio.to_thread.run_sync(self._shelf.delete, kept["id"])
            issue = report.errors[0]
            return error_reply(400, f"line {issue.row}: {printable(issue.message)}", code="invalid_file")
        return web.json_response(kept)

    async def _files(self, _: web.Request) -> web.Response:
        rows = await anyio.to_thread.run_sync(self._shelf.all)
        return web.json_response({"object": "list", "data": rows, "has_more": False})

    async def _get_file(self, request: web.Request) -> web.Response:
        return web.json_response(await anyio.to_thread.run_sync(self._shelf.get, request.match_info["file"]))

    async def _content(self, request: web.Request) -> web.StreamResponse:
        return web.FileResponse(self._shelf.path(request.match_info["file"]))

    async def _delete_file(self, request: web.Request) -> web.Response:
        file_id = request.match_info["file"]
        await anyio.to_thread.run_sync(self._shelf.delete, file_id)
        return web.json_response({"id": file_id, "object": "file", "deleted": True})

    # ---- jobs

    async def _create(self, request: web.Request) -> web.Response:
        body = await read_json(request)
        model, file_id = body.get("model"), body.get("training_file")
        if not isinstance(model, str) or not isinstance(file_id, str):
            return error_reply(400, "model and training_file are required")
        path, metadata = self._shelf.path(file_id), body.get("metadata") or {}
        if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
            return error_reply(400, "metadata: texts only")
        suffix = body.get("suffix")
        async with self._creating:
            await self._settle()
            cap = self._left()
            spec = JobSpec(
                model=model.rpartition("/")[2],
                dataset=path,
                training_params=_parameters(body),
                output_dir=self._folder / "models" / os.urandom(8).hex(),
                deploy=True,
                provider=self._provider,
                max_spend=cap,
                name=suffix if isinstance(suffix, str) else None,
                labels={**metadata, LABEL: file_id},
            )
            job = await self._runner.submit(spec)
            if cap is not None:
                self._held[job.id] = (job, cap)
                self._budget.reserved += cap
        return web.json_response(await _job(job))

    def _left(self) -> int | None:
        if self._budget.cap is None:
            return None
        left = self._budget.cap - self._budget.spent - self._budget.reserved
        if left <= 0:
            raise LimitError("nothing is left of the server's spend cap", hint="Wait for what runs, or raise the cap")
        return left

    async def _settle(self) -> None:
        """Give back what ended jobs held, and count what they cost."""
        for job_id, (job, held) in tuple(self._held.items()):
            state = await job.state()
            if state.status.is_terminal and self._held.pop(job_id, None) is not None:
                self._budget.reserved -= held
                self._budget.spent += (state.fee or 0) + sum(paid.gas for paid in state.paid)

    async def _list(self, request: web.Request) -> web.Response:
        await self._settle()
        states = [s for s in await self._runner.list_jobs() if s.spec is not None and LABEL in s.spec.labels]
        states.sort(key=lambda s: s.submitted_at or dt.datetime.min.replace(tzinfo=dt.UTC), reverse=True)
        page = _page([{"id": f"ftjob-{state.job_id}"} for state in states], request.query)
        shown = {row["id"] for row in page["data"]}
        jobs = [await self._runner.attach(s.job_id) for s in states if f"ftjob-{s.job_id}" in shown]
        return web.json_response(page | {"data": [await _job(job) for job in jobs]})

    async def _handle(self, request: web.Request) -> JobHandle:
        match = _JOB_ID.fullmatch(request.match_info["job"])
        try:
            if match:
                job = await self._runner.attach(match[1])
                spec = (await job.state()).spec
                if spec is not None and LABEL in spec.labels:
                    return job
        except (ConfigError, JournalError):
            pass
        raise PassedOnError(404, f"no such job: {printable(request.match_info['job'], limit=60)}")

    async def _retrieve(self, request: web.Request) -> web.Response:
        job = await self._handle(request)
        await self._settle()
        return web.json_response(await _job(job))

    async def _cancel(self, request: web.Request) -> web.Response:
        job = await self._handle(request)
        if not await job.cancel():
            return error_reply(400, "the job can't be cancelled any more", code="not_cancellable")
        await self._settle()
        return web.json_response(await _job(job))

    async def _events(self, request: web.Request) -> web.StreamResponse:
        job = await self._handle(request)
        if request.query.get("stream") == "true":
            return await _streamed(request, _rows(job, to_come=True))
        async with contextlib.aclosing(_rows(job, to_come=False)) as rows:
            found = [row async for row in rows]
        await self._settle()
        return web.json_response(_page(found, request.query))

    async def _checkpoints(self, request: web.Request) -> web.Response:
        _ = await self._handle(request)  # answers 404 for an unknown one
        return web.json_response({"object": "list", "data": [], "has_more": False})


async def _rows(job: JobHandle, *, to_come: bool) -> AsyncGenerator[dict[str, Any], None]:
    last = (await job.state()).seq
    async with job.events() as events:
        async for event in events:
            yield _event(event)
            if not to_come and event.seq >= last:
                return


async def _streamed(request: web.Request, rows: AsyncGenerator[dict[str, Any], None]) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
    await response.prepare(request)
    async with contextlib.aclosing(rows):
        with contextlib.suppress(ConnectionResetError):
            async for row in rows:
                await response.write(b"data: " + json.dumps(row).encode() + b"\n\n")
            await response.write(b"data: [DONE]\n\n")
            await response.write_eof()
    return response


def _page(rows: list[dict[str, Any]], query: Mapping[str, str]) -> dict[str, Any]:
    after, text = query.get("after"), query.get("limit", "20")
    limit = min(max(int(text), 1), _MOST) if text.isascii() and text.isdigit() and len(text) < 9 else 20
    start = next((i + 1 for i, row in enumerate(rows) if row["id"] == after), 0) if after else 0
    return {"object": "list", "data": rows[start : start + limit], "has_more": len(rows) > start + limit}


def _parameters(body: Mapping[str, Any]) -> dict[str, object]:
    """Translate OpenAI's hyperparameters; a provider's own names are taken as they are."""
    given: Any = body.get("hyperparameters") or {}
    method = body.get("method")
    if isinstance(method, dict):
        if method.get("type", "supervised") != "supervised":
            raise PassedOnError(400, "method: only supervised fine-tuning is served here")
        part = method.get("supervised")
        given = (part.get("hyperparameters") if isinstance(part, dict) else None) or given
    if not isinstance(given, dict):
        raise PassedOnError(400, "hyperparameters: an object is required")
    named: Mapping[str, Callable[[Any], tuple[str, object]]] = {
        "n_epochs": lambda value: ("num_train_epochs", value),
        "batch_size": lambda value: ("per_device_train_batch_size", value),
        "learning_rate_multiplier": lambda value: ("learning_rate", _rate(value)),
    }
    found: dict[str, object] = json.loads(TrainingParams().to_json())
    for name, value in given.items():
        if value == "auto":
            continue
        if name not in named and name not in _PARAMETERS:
            raise PassedOnError(400, f"hyperparameters: {printable(name, limit=60)} is not known here")
        own, translated = named[name](value) if name in named else (name, value)
        found[own] = translated
    return found


def _rate(multiplier: Any) -> float:
    if isinstance(multiplier, bool) or not isinstance(multiplier, int | float):
        raise PassedOnError(400, "learning_rate_multiplier: a number is required")
    return round(_LEARNING_RATE * multiplier, 12)


async def _job(job: JobHandle) -> dict[str, Any]:
    state, finished = await job.state(), None
    if state.status.is_terminal:
        async with job.events(after=state.seq - 1) as events:
            finished = _stamp((await anext(events)).at)
    return _job_object(state, finished)


def _job_object(state: JobState, finished: int | None) -> dict[str, Any]:
    spec = state.spec
    labels = dict(spec.labels) if spec else {}
    file_id = labels.pop(LABEL, "")
    result, failure = state.result, state.failure
    params = json.loads(str(spec.training_params)) if spec else {}
    return {
        "id": f"ftjob-{state.job_id}",
        "object": "fine_tuning.job",
        "created_at": _stamp(state.submitted_at),
        "finished_at": finished,
        "model": spec.model if spec else "",
        "status": state.status.value,
        "training_file": file_id,
        "validation_file": None,
        "fine_tuned_model": result.adapter_name if result and finished else None,
        "hyperparameters": {
            "n_epochs": params.get("num_train_epochs", "auto"),
            "batch_size": params.get("per_device_train_batch_size", "auto"),
            "learning_rate_multiplier": float(params.get("learning_rate", _LEARNING_RATE)) / _LEARNING_RATE,
        },
        "error": {"code": failure.code, "message": printable(failure.message), "param": None} if failure else None,
        "organization_id": state.wallet or "",
        "result_files": [],
        "seed": 0,
        "trained_tokens": None,
        "metadata": labels,
        "user_provided_suffix": spec.name if spec else None,
    }


def _event(event: Event) -> dict[str, Any]:
    level = (
        "error" if isinstance(event, JobFailed) else "warn" if isinstance(event, JobWarned | StageRetrying) else "info"
    )
    data = event_to_json(event)
    message = getattr(event, "message", "") or event.kind.replace("_", " ")
    return {
        "id": f"ftevent-{event.seq}",
        "object": "fine_tuning.job.event",
        "created_at": _stamp(event.at),
        "level": level,
        "message": printable(message),
        "type": "message",
        "data": data,
    }


def _stamp(at: dt.datetime | None) -> int:
    return int(at.timestamp()) if at else 0
