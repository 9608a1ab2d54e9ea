"""What a job's settlement took, when nobody saw it happen: whom it asks, in which order."""

from types import SimpleNamespace

import pytest

from zg_async.errors import ChainUnavailableError, ProviderUnavailableError, RpcError, ServiceNotFoundError
from zg_async.jobs.delivering import _told_fee
from zg_async.managers.costs import SettledTask
from zg_async.managers.task_changes import WatchCursor

AWAY = ProviderUnavailableError("away")
GONE = ServiceNotFoundError("not registered any more")
NO_LOGS = RpcError("eth_getLogs isn't served here")


def work(*, events, provider, told=0):
    async def answer(found):
        if isinstance(found, Exception):
            raise found
        return found

    asked = []

    def cost_report(*, first_block):
        asked.append(first_block)
        return answer(events)

    tuning = SimpleNamespace(get_task=lambda *_: answer(provider))
    cursor = WatchCursor(block_number=1000, block_hash="0x").encode()
    state = SimpleNamespace(delivered=SimpleNamespace(cursor=cursor), fee=told)
    broker = SimpleNamespace(cost_report=cost_report, fine_tuning=tuning)
    return SimpleNamespace(broker=broker, state=state, provider="P", task_id="mine", asked=asked)


def report(*fees):
    tasks = [SettledTask(provider="P", task_id=task, fee=fee, is_penalty=False) for task, fee in fees]
    return SimpleNamespace(tasks=tasks)


@pytest.mark.parametrize(
    ("events", "provider", "told", "fee"),
    [
        (report(("other", 5), ("mine", 7)), AWAY, 3, 7),
        (report(), SimpleNamespace(fee=4), 3, 3),
        (NO_LOGS, SimpleNamespace(fee=4), 0, 4),
        (NO_LOGS, AWAY, 0, 0),
        (NO_LOGS, GONE, 0, 0),
    ],
    ids=["the chain", "the provider before", "the provider now", "nobody", "nobody any more"],
)
async def test_the_chain_comes_first_and_nobody_s_silence_fails_a_job_that_has_its_model(events, provider, told, fee):
    asked = work(events=events, provider=provider, told=told)
    assert await _told_fee(asked) == fee
    assert asked.asked == [1000 - 256]


async def test_a_node_that_is_away_is_asked_again_by_the_stage():
    with pytest.raises(ChainUnavailableError):
        await _told_fee(work(events=ChainUnavailableError("away"), provider=AWAY))
