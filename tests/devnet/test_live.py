"""A job that is awaited shows where it stands all the while."""

import pytest

from tests.devnet.conftest import MODEL, PARAMS
from zg_async import JobFailedError, JobRunner, JobSpec
from zg_async.jobs.live import follow

pytestmark = pytest.mark.slow


@pytest.mark.goal("NBK-01", part="a live view during await")
async def test_the_view_changes_with_the_job_and_ends_with_its_losses(broker, dataset, tmp_path):
    params = PARAMS | {"num_train_epochs": 10, "max_steps": 40}  # so that some losses are logged
    spec = JobSpec(model=MODEL, dataset=dataset, training_params=params, output_dir=tmp_path / "out")
    shown = []
    async with JobRunner(broker, guard=False) as runner:
        job = await runner.submit(spec)
        assert str(job.id) in job._repr_html_()
        result = await follow(job, shown.append)
        assert result == await job == await job.result()
        assert job._repr_html_().count("✓") == 8
    marks = [text.count("✓") for text in shown]
    assert marks == sorted(marks)
    assert set(marks) >= {0, 1, 2, 3, 4, 6, 7, 8}  # one by one; training and its delivery may come at once
    assert "<polyline" in shown[-1]
    assert "succeeded" in shown[-1]


async def test_a_failed_job_is_shown_and_raises_as_ever(broker, dataset, tmp_path):
    out = tmp_path / "out"
    spec = JobSpec(model=MODEL, dataset=dataset, training_params=PARAMS, output_dir=out, max_spend="0.00001")
    shown = []
    async with JobRunner(broker, guard=False) as runner:
        job = await runner.submit(spec)
        with pytest.raises(JobFailedError) as caught:
            await follow(job, shown.append)
    assert caught.value.stage in shown[-1]
    assert "✗" in shown[-1]
