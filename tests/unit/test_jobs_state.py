import dataclasses

import pytest

from tests.unit.jobs_events import ALL, AT, PROVIDER, SPEC, WALLET
from zg_async.jobs import events as e
from zg_async.jobs.state import JobResult, JobState, JobStatus, apply, fold

HAPPY = tuple(
    event
    for event in ALL
    if not isinstance(
        event,
        e.UnknownEvent
        | e.JobFailed
        | e.JobResumed
        | e.JobCancelled
        | e.CancelRequested
        | e.CancelRefused
        | e.JobReconciled
        | e.ProviderExcluded,
    )
)


def test_a_whole_run_folds_to_its_result():
    state = fold(dataclasses.replace(event, seq=n, job_id="job-1") for n, event in enumerate(HAPPY, 1))
    assert state.status is JobStatus.SUCCEEDED
    assert state.seq == len(HAPPY)
    assert state.result == JobResult(
        job_id="job-1",
        provider=PROVIDER,
        task_id="1f6fef2b-e0f6-4d3c-9f31-0f2f4ed0a111",
        adapter_path="/out/adapter",
        files=("adapter_config.json",),
        adapter_name="ft-x",
        fee=10**16,
        gas=2**60 + 5,
        transactions=("0x" + "11" * 32, "0x" + "44" * 32),
    )


def test_a_submitted_job_is_queued_and_runs_once_a_provider_is_chosen():
    state = apply(JobState(), e.JobSubmitted(spec=SPEC, wallet=WALLET, at=AT))
    assert state.status is JobStatus.QUEUED
    assert apply(state, ALL[3]).status is JobStatus.RUNNING


def test_a_transaction_told_twice_counts_once():
    state = fold([ALL[4], ALL[4]])
    assert [p.tx_hash for p in state.paid] == ["0x" + "11" * 32]


def test_a_mined_failure_raises_the_stages_generation():
    retry = e.StageRetrying(stage="fund", attempt=1, code="reverted", message="", retry_at=AT, fresh=True)
    assert fold([retry, retry]).generations == {"fund": 2}
    assert fold([dataclasses.replace(retry, fresh=False)]).generations == {}


def test_anything_good_ends_a_row_of_retries():
    retry = e.StageRetrying(stage="train", attempt=3, code="x", message="", retry_at=AT)
    assert fold([retry]).retry == retry
    assert fold([retry, ALL[10]]).retry is None


def test_only_a_failed_job_is_resumed():
    failed = e.JobFailed(stage="train", code="x", message="")
    assert fold([ALL[3], failed, e.JobResumed()]).status is JobStatus.RUNNING
    assert fold([ALL[3], e.JobCancelled(), e.JobResumed()]).status is JobStatus.CANCELLED


@pytest.mark.parametrize(("accept", "kept"), [(False, True), (True, False)])
def test_terms_are_forgotten_only_when_changes_are_accepted(accept, kept):
    failed = e.JobFailed(stage="create_task", code="verification", message="")
    state = fold([ALL[3], failed, e.JobResumed(accept_changes=accept)])
    assert (state.terms is not None) is kept
    assert state.provider == PROVIDER


def test_an_unknown_event_marks_the_job_as_not_ours_to_drive():
    assert fold([ALL[-1]]).unknown


def test_a_cancel_request_stands_until_it_is_answered():
    assert fold([e.CancelRequested()]).cancel_requested
    assert not fold([e.CancelRequested(), e.CancelRefused(reason="late")]).cancel_requested
    assert fold([e.CancelRequested(), e.JobCancelled()]).status is JobStatus.CANCELLED
