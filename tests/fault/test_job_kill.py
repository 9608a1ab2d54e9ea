"""Real processes, real SIGKILL, real sockets: a job killed at any boundary still ends right."""

import json

import anyio
import pytest

from tests.fault.kill_cases import FACTS, POINTS, Case, runners
from zg_async.devnet.process import DevnetProcess

AT_A_TIME = 6
UNDISTURBED = ""
SEND = "rpc eth_sendRawTransaction"


@pytest.mark.slow
@pytest.mark.goal("DUR-02")
@pytest.mark.goal("DUR-03")
async def test_a_job_killed_at_any_boundary_ends_right(tmp_path):
    """One job for each call that changes something, killed before or after it; and two jobs of which every process is
    killed as soon as it has made one step: right after its first commit, and right before its second. All train on the
    same rows, and the devnet's trainer is deterministic, so all adapters are that of a job that nobody killed."""
    limiter, failures = anyio.CapacityLimiter(AT_A_TIME), []
    with DevnetProcess("--limits", "off", "--providers", "2") as devnet, runners() as socket:
        info = tmp_path / "devnet.json"
        info.write_text(json.dumps(dict(devnet.info)))
        kills = [f"{when}:{point}" for point in POINTS for when in ("before", "after")]
        cases = {kill: Case(info, socket, tmp_path / str(number)) for number, kill in enumerate(kills)}
        cases[UNDISTURBED] = Case(info, socket, tmp_path / "undisturbed")
        chains = {kill: Case(info, socket, tmp_path / kill) for kill in ("after:journal:1", "before:journal:2")}

        async def one(kill: str) -> None:
            async with limiter:
                try:
                    await (chains[kill].run_dying(kill) if kill in chains else cases[kill].run_to_end(kill))
                except AssertionError as error:
                    failures.append((kill, str(error)))

        async with anyio.create_task_group() as group:
            for kill in (*chains, *cases):
                group.start_soon(one, kill)
    assert failures == []
    assert {kill: case.deaths for kill, case in cases.items()} == dict.fromkeys(kills, 1) | {UNDISTURBED: 0}
    assert {case.weights for case in (*cases.values(), *chains.values())} == {cases[UNDISTURBED].weights}
    assert [cases[f"before:{SEND}:{n}"].unsent for n in range(1, 5)] == [[1]] * 4
    assert {f"after journal {fact}" for fact in FACTS} <= set(chains["after:journal:1"].died_at())
    assert {f"before journal {fact}" for fact in FACTS[1:]} <= set(chains["before:journal:2"].died_at())
