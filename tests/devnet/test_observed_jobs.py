"""Two jobs at once, with faults on the way: what is logged, raised and traced says what it belongs to."""

import asyncio
import logging
import os
import subprocess
import sys

import opentelemetry.trace
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from tests.devnet.conftest import MODEL, PARAMS, new_key, open_broker
from zg_async import JobFailedError, JobRunner, JobSpec, LocalSigner, TaskNotFoundError
from zg_async.errors import ZgError
from zg_async.jobs.driver import Driver

pytestmark = pytest.mark.slow
SHARED = ("zg block watcher", "poll ", "watch chain events", "zg guardian", "zg journal lease")
"""Background work for all jobs."""


@pytest.fixture
def records(suite_watch):
    class Kept(logging.Handler):
        def __init__(self):
            super().__init__(logging.DEBUG)
            self.kept = []

        def emit(self, record):
            try:
                task = asyncio.current_task()
            except RuntimeError:
                task = None  # a worker thread
            self.kept.append((record, "" if task is None else task.get_name()))

    handler = Kept()
    logging.getLogger("zg_async").addHandler(handler)
    yield handler.kept
    logging.getLogger("zg_async").removeHandler(handler)


@pytest.fixture
def failures(monkeypatch):
    """(job, what the job knew, the error) of each stage that failed."""
    seen, failed = [], Driver._failed

    async def noted(driver, stage, error):
        seen.append((driver.state, error))
        await failed(driver, stage, error)

    monkeypatch.setattr(Driver, "_failed", noted)
    return seen


@pytest.fixture
def spans(monkeypatch):
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(opentelemetry.trace, "get_tracer", provider.get_tracer)
    return exporter


@pytest.fixture
def secrets(monkeypatch):
    seen, sign_personal = [], LocalSigner.sign_personal

    async def signed(self, message):
        seen.append(await sign_personal(self, message))
        return seen[-1]

    monkeypatch.setattr(LocalSigner, "sign_personal", signed)
    return seen


@pytest.mark.goal("OBS-05", part="jobs")
@pytest.mark.goal("OBS-02", part="spans")
async def test_every_log_line_error_and_span_of_two_jobs_says_which_it_belongs_to(
    devnet, dataset, tmp_path, faults, records, failures, spans, secrets
):
    faults(lora_503=1, queue_full=1, lose_answer=1)
    providers = [entry["address"] for entry in devnet.providers[:2]]
    async with open_broker(devnet, new_key(devnet), tmp_path / "state") as broker, JobRunner(broker) as runner:
        jobs = [
            await runner.submit(
                JobSpec(
                    model=MODEL, dataset=dataset, training_params=PARAMS, provider=p, output_dir=tmp_path / f"out{n}"
                )
            )
            for n, p in enumerate(providers)
        ]
        results = {job.id: await job.result() for job in jobs}
    assert len(failures) >= 1
    for state, error in failures:
        known = {"job_id": state.job_id, "task_id": state.task_id, "provider": state.provider}
        assert error.context.items() >= {name: value for name, value in known.items() if value}.items()

    lines = [(r, task) for r, task in records if not r.name.startswith(("zg_async.devnet", "zg_async.outbox"))]
    of_jobs = [r for r, task in lines if not task.startswith(SHARED) and r.job_id]
    assert {r.job_id for r in of_jobs} == set(results)
    for record, task in lines:
        if task.startswith("zg job "):
            assert record.job_id == task.removeprefix("zg job ")
        if task.startswith("poll "):
            assert record.provider == task.removeprefix("poll ")
    for record in of_jobs:
        result = results[record.job_id]
        assert record.provider in ("", result.provider)
        assert record.task_id in ("", result.task_id)
    for result in results.values():  # what was said after the task was known says which
        path = f"POST /v1/user/{broker.address}/task/{result.task_id}"
        downloads = [r for r in of_jobs if r.getMessage().startswith(path)]
        assert downloads
        assert {(r.provider, r.task_id) for r in downloads} == {(result.provider, result.task_id)}

    found = spans.get_finished_spans()
    by_name = {}
    for span in found:
        by_name.setdefault(span.name, []).append(span)
    for job_id, result in results.items():
        stages = [s.attributes["zg.stage"] for s in by_name["zg.stage"] if s.attributes["zg.job_id"] == job_id]
        assert "fund" in stages
        assert stages[-1] == "decrypt_model"
        sent = {
            s.attributes["zg.tx_hash"] for s in by_name["zg.transaction"] if s.attributes.get("zg.job_id") == job_id
        }
        assert sent == set(result.transactions)
        calls = [s for s in by_name["zg.http"] if s.attributes.get("zg.job_id") == job_id]
        assert {s.attributes["zg.provider"] for s in calls} == {result.provider}
        assert any(s.attributes["zg.endpoint"].startswith("POST ") for s in calls)
        inside = {s.context.trace_id for s in by_name["zg.stage"] if s.attributes["zg.job_id"] == job_id}
        assert {s.context.trace_id for s in calls} <= inside
    assert {"zg.rpc", "zg.fine_tuning.create_task"} <= set(by_name)
    assert any(s.status.status_code is StatusCode.ERROR for s in by_name["zg.http"] + by_name["zg.stage"])
    assert len({s.context.trace_id for s in by_name["zg.stage"]}) >= 2
    told = "".join(span.to_json() for span in found).lower()
    assert len(secrets) >= 4
    assert not [s for s in secrets if s.hex() in told]


@pytest.mark.goal("OBS-05", part="a failed job")
async def test_the_error_of_a_failed_job_says_what_it_belongs_to(devnet, dataset, provider, tmp_path, faults):
    faults(wrong_hash=-1)
    async with open_broker(devnet, new_key(devnet), tmp_path / "state") as broker, JobRunner(broker) as runner:
        spec = JobSpec(
            model=MODEL, dataset=dataset, training_params=PARAMS, provider=provider, output_dir=tmp_path / "out"
        )  # fmt: skip
        job = await runner.submit(spec)
        async for event in job.events():
            if event.kind == "task_created":
                task_id = event.task_id
        with pytest.raises(JobFailedError) as caught:
            await job.result()
    assert caught.value.context == {"job_id": job.id, "task_id": task_id, "provider": provider}


@pytest.mark.goal("OBS-05", part="calls without a job")
async def test_an_error_of_a_call_says_what_it_was_asked_for(broker, provider):
    with pytest.raises(TaskNotFoundError) as caught:
        await broker.fine_tuning.get_task(provider, "11111111-1111-4111-8111-111111111111")
    assert caught.value.context == {"provider": provider, "task_id": "11111111-1111-4111-8111-111111111111"}
    with pytest.raises(ZgError) as caught:
        await broker.fine_tuning.get_deliverable(provider, task_id="no-task")
    assert caught.value.context == {"provider": provider, "task_id": "no-task"}


@pytest.mark.goal("OBS-02", part="zero imports when absent")
def test_nothing_of_opentelemetry_is_imported_and_calls_work_without_it(devnet, tmp_path):
    url = devnet.rpc_url
    code = (
        "import asyncio, sys\n"
        "sys.modules['opentelemetry'] = None\n"  # any import of it raises
        "from zg_async import create_broker\n"
        "async def main():\n"
        f"    async with create_broker('0x' + '17' * 32, 'local', rpc_url={url!r}, state_dir='s') as broker:\n"
        "        await broker.fine_tuning.list_service()\n"
        "        print(await broker.chain.balance(broker.address))\n"
        "asyncio.run(main())\n"
        "print([m for m in sys.modules if m.startswith('opentelemetry.')])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path, env=dict(os.environ)
    )
    assert (done.stdout.splitlines(), done.stderr) == (["0", "[]"], "")
