"""Real processes, real SIGKILL, real sockets: a job killed around any call that changes something still ends right."""

import json

import anyio
import pytest

from tests.fault.kill_cases import POINTS, Case
from zg_async.devnet.process import DevnetProcess

AT_A_TIME = 3


@pytest.mark.slow
@pytest.mark.goal("DUR-02", part="SIGKILL around every call that changes something")
@pytest.mark.goal("DUR-03", part="one transaction per key across kills")
async def test_a_job_killed_around_any_call_that_changes_something_ends_right(tmp_path):
    limiter, failures, deaths = anyio.CapacityLimiter(AT_A_TIME), [], []
    with DevnetProcess("--limits", "off", "--providers", "2") as devnet:
        info = tmp_path / "devnet.json"
        info.write_text(json.dumps(dict(devnet.info)))

        async def one(number: int, kill: str) -> None:
            case = Case(info, tmp_path / str(number))
            async with limiter:
                try:
                    await case.run_to_end(kill)
                except AssertionError as error:
                    failures.append((kill, str(error)))
            if case.deaths:
                deaths.append(kill)

        kills = [f"{when}:{point}" for point in POINTS for when in ("before", "after")]
        async with anyio.create_task_group() as group:
            for number, kill in enumerate(kills):
                group.start_soon(one, number, kill)
    assert failures == []
    assert sorted(deaths) == sorted(kills)
