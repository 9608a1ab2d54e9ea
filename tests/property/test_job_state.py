"""Any events in any order: the fold never fails, never forgets, and survives the codec."""

import dataclasses
import json

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.jobs_events import ALL
from zg_async.jobs.events import ProviderExcluded, event_from_json, event_to_json
from zg_async.jobs.state import JobState, JobStatus, apply, fold

SEQUENCES = st.lists(st.sampled_from(ALL), max_size=40).map(
    lambda events: [dataclasses.replace(event, seq=n, job_id="job-1") for n, event in enumerate(events, 1)]
)
TEXT = st.text("0x1aé ", max_size=6)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda x: st.lists(x, max_size=3) | st.dictionaries(TEXT, x, max_size=3),
    max_leaves=8,
)
settings.register_profile("no_clock", deadline=None)
settings.load_profile("no_clock")


@given(SEQUENCES)
def test_any_sequence_folds(events):
    state = fold(events)
    assert state.seq == len(events)
    assert state.status in JobStatus
    assert len({paid.tx_hash for paid in state.paid}) == len(state.paid)


@given(SEQUENCES, st.integers(0, 40))
def test_folding_in_two_parts_gives_the_same_state(events, cut):
    assert fold(events[cut:], fold(events[:cut])) == fold(events)


@given(SEQUENCES)
def test_apply_leaves_its_input_alone(events):
    for n, event in enumerate(events):
        before = fold(events[:n])
        apply(before, event)
        assert before == fold(events[:n])


@given(SEQUENCES)
def test_the_journal_form_folds_to_the_same_state(events):
    again = [event_from_json(json.loads(json.dumps(event_to_json(event)))) for event in events]
    assert fold(again) == fold(events)


@given(SEQUENCES)
def test_transactions_and_facts_are_never_forgotten(events):
    state = JobState()
    for event in events:
        after = apply(state, event)
        assert {p.tx_hash for p in state.paid} <= {p.tx_hash for p in after.paid}
        if isinstance(event, ProviderExcluded):  # the job begins anew elsewhere
            assert event.provider in after.excluded
        else:
            assert after.task_id is not None or state.task_id is None
            assert after.request_nonce is not None or state.request_nonce is None
        state = after


@given(st.dictionaries(st.sampled_from(["spec", "wallet", "task_id", "transactions", "fee", "x"]), JSON))
@settings(max_examples=60)
def test_any_json_object_is_read_as_some_event(body):
    for event in ALL:
        read = event_from_json({"kind": event.kind, **body})
        assert read.kind == event.kind
