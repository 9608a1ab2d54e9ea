"""What a user calls a task, and what it will cost, before and beside what providers know of it."""

import pytest

from tests.devnet.conftest import MODEL, PARAMS, open_broker
from zg_async import ConfigError, TaskLabel
from zg_async.units import format_amount

pytestmark = pytest.mark.slow


@pytest.mark.goal("TSK-07")
async def test_a_task_gets_a_name_tags_and_a_note_and_lists_are_filtered_by_them(
    devnet, key, broker, provider, task, tmp_path
):
    tuning = broker.fine_tuning
    assert await tuning.get_task_labels() == {}
    label = await tuning.label_task(task, name="baseline", tags=["sweep", "march", "sweep"], note="more steps, später")
    assert label == TaskLabel(name="baseline", tags=("march", "sweep"), note="more steps, später")
    assert await tuning.label_task(task, note="") == TaskLabel(name="baseline", tags=("march", "sweep"))

    async def found(**wanted):
        one = [t.id for t in await tuning.list_task(provider, **wanted)]
        everywhere = [t.id for tasks in (await tuning.list_all_tasks(**wanted)).values() for t in tasks]
        assert one == everywhere
        return one

    assert await found() == await found(name="baseline") == await found(tags=["march"]) == [task]
    assert await found(name="baseline", tags=("march", "sweep")) == [task]
    assert await found(name="other") == await found(tags=["april"]) == await found(tags=["march", "april"]) == []
    async with open_broker(devnet, key, tmp_path / "state") as later:  # another process of this user
        assert (await later.fine_tuning.get_task_labels())[task].name == "baseline"
    await tuning.label_task(task, name="", tags=[])
    assert await tuning.get_task_labels() == {}


async def test_labels_that_cant_be_kept_are_refused_and_a_damaged_file_isnt_overwritten(broker, task, tmp_path):
    tuning = broker.fine_tuning
    for wrong in ({"name": "x" * 3000}, {"tags": "march"}, {"tags": [""]}, {"tags": [str(n) for n in range(60)]}):
        with pytest.raises(ConfigError):
            await tuning.label_task(task, **wrong)
    await tuning.label_task(task, name="kept")
    (path,) = (tmp_path / "state" / "task-labels").iterdir()
    path.write_text('{"x": 1}')
    with pytest.raises(ConfigError, match="can't read the labels"):
        await tuning.label_task(task, name="lost")
    assert path.read_text() == '{"x": 1}'


@pytest.mark.goal("TSK-02", part="the estimate against the balance")
async def test_the_preflight_compares_what_the_task_will_cost_with_what_the_account_can_pay(
    broker, provider, dataset, devnet
):
    await broker.ledger.ensure_funded(provider, "fine-tuning", "1")
    about = {"model": MODEL, "dataset_path": dataset}
    good = await broker.fine_tuning.check_task(provider, PARAMS, **about)
    assert good.problems == ()
    assert 0 < good.estimate.low < good.estimate.likely < good.estimate.high
    assert good.estimate.method == "bytes"
    assert (await broker.fine_tuning.check_task(provider, PARAMS)).estimate is None
    devnet.control("settings", provider=0, price_per_token=10**16)
    try:
        dear = await broker.fine_tuning.check_task(provider, PARAMS, **about)
    finally:
        devnet.control("settings", provider=0, price_per_token=10**12)
    (problem,) = dear.problems
    assert format_amount(dear.estimate.high) in problem.message
    assert "ensure_funded" in problem.hint
    with pytest.raises(ConfigError, match="may cost up to"):
        dear.raise_first()
    assert await broker.fine_tuning.list_task(provider) == ()
