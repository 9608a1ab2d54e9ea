"""The status page: over its routes, and as a browser shows it."""

import json
import os
import signal
import sys

import aiohttp
import anyio
import pytest

from tests.chromium import CHROMIUM, opened
from tests.devnet.conftest import MODEL, PARAMS, new_key, open_broker
from zg_async import JobRunner, JobSpec
from zg_async.serve.gate import listening
from zg_async.serve.status import StatusPage

pytestmark = [pytest.mark.slow, pytest.mark.goal("PRV-03")]


async def changes(reply):
    """Yield the stream's (event, data)."""
    name = None
    async for line in reply.content:
        text = line.decode().rstrip("\n")
        if text.startswith("event: "):
            name = text[7:]
        elif text.startswith("data: "):
            yield name, json.loads(text[6:])


async def test_jobs_appear_and_change_while_another_runner_drives_them(devnet, key, dataset, tmp_path):
    state = tmp_path / "state"
    spec = JobSpec(
        name="<b>boxes</b>",
        model=MODEL,
        dataset=dataset,
        training_params=PARAMS | {"max_steps": 60, "num_train_epochs": 10},
        output_dir=tmp_path / "out",
        deploy=True,
    )
    async with open_broker(devnet, key, state) as broker, aiohttp.ClientSession() as session:
        page = StatusPage(broker)
        headers = {"Authorization": f"Bearer {page.token}"}
        async with listening(page.app(), host="127.0.0.1", port=0) as url:
            with anyio.fail_after(60):
                async with session.get(f"{url}/api/stream", headers=headers) as reply:
                    stream = changes(reply)
                    assert (await anext(stream))[1]["wallet"] == broker.address
                    assert (await anext(stream))[1]["jobs"] == []
                    async with JobRunner(broker) as runner:
                        result = await runner.run_job(spec)
                    seen = []
                    async for name, value in stream:
                        assert name == "jobs"
                        seen += value["jobs"]
                        if seen and seen[-1]["status"] == "succeeded":
                            break
            assert {job["job_id"] for job in seen} == {result.job_id}
            assert len(seen) > 1  # it was shown on its way, too
            assert seen[-1]["name"] == "<b>boxes</b>"
            assert seen[-1]["adapter"] == result.adapter_name
            assert value["sums"]["counts"] == {"succeeded": 1}
            async with session.get(f"{url}/api/jobs/{result.job_id}/loss", headers=headers) as reply:
                losses = (await reply.json())["loss"]
            assert len(losses) > 2
            assert losses[-1] < losses[0]
            if CHROMIUM is not None:
                async with opened(f"{url}/#token={page.token}", tmp_path) as tab:
                    await tab.wait_for("document.querySelector('.job.succeeded polyline') !== null")
                    text = await tab.evaluate("document.body.innerText")
                    address = await tab.evaluate("location.href")
                    (tmp_path / "page.png").write_bytes(await tab.picture())
                assert "<b>boxes</b>" in text
                assert result.adapter_name in text
                assert address == url + "/"  # the token is out of sight


async def test_the_page_is_open_and_what_it_shows_is_not(devnet, tmp_path):
    async with open_broker(devnet, new_key(devnet, 0), tmp_path) as broker, aiohttp.ClientSession() as session:
        page = StatusPage(broker)
        async with listening(page.app(), host="127.0.0.1", port=0) as url:
            for path in ("/", "/status.js", "/status.css"):
                async with session.get(url + path) as reply:
                    assert reply.status == 200
                    assert "default-src 'none'" in reply.headers["Content-Security-Policy"]
                    assert page.token not in await reply.text()
            for path in ("/api/stream", "/api/jobs/x/loss"):
                async with session.get(url + path) as reply:
                    assert reply.status == 401
                async with session.get(url + path, headers={"Host": "evil.example"}) as reply:
                    assert reply.status == 421
                async with session.get(url + path, headers={"Authorization": "Bearer " + "x" * 43}) as reply:
                    assert reply.status == 401
            async with session.get(
                f"{url}/api/jobs/x/loss", headers={"Authorization": f"Bearer {page.token}"}
            ) as reply:
                assert reply.status == 404


async def test_the_command_serves_it_until_it_is_interrupted(devnet, key, tmp_path):
    place = tmp_path / "address"
    env = {**os.environ, "ZG_PRIVATE_KEY": key, "ZG_STATE_DIR": str(tmp_path / "state")}
    command = ["ui", "start-web", "-p", "0", "--network", "local", "--rpc", devnet.rpc_url, "--token-file", str(place)]
    async with await anyio.open_process(
        [sys.executable, "-m", "zg_async.cli.main", *command], env=env, stderr=None
    ) as process:
        shown = (await process.stdout.receive()).decode().strip()
        assert place.stat().st_mode & 0o777 == 0o600
        address, _, token = place.read_text().strip().partition("/#token=")
        assert shown == address  # the token is in the file alone
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{address}/api/stream", headers={"Authorization": f"Bearer {token}"}) as reply,
        ):
            assert (await anext(changes(reply)))[0] == "begin"
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 130


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium isn't installed")
def test_chromium_is_there():
    """So that a run without it says by name what it left out."""
    assert CHROMIUM
