import dataclasses
import json
import typing

import pytest

from tests.unit.jobs_events import ALL, AT
from zg_async.jobs.events import Event, TaskCreated, UnknownEvent, event_from_json, event_to_json


def test_the_samples_hold_every_kind_of_event():
    assert {type(event) for event in ALL} == set(typing.get_args(Event))


@pytest.mark.parametrize("event", ALL, ids=lambda e: e.kind)
def test_an_event_is_the_same_after_json(event):
    stamped = dataclasses.replace(event, seq=7, job_id="job-1", at=AT)
    assert event_from_json(json.loads(json.dumps(event_to_json(stamped)))) == stamped


def test_amounts_and_nonces_are_decimal_strings():
    bodies = {e.kind: event_to_json(e) for e in ALL}
    assert bodies["provider_chosen"]["price_per_token"] == str(10**30)
    assert bodies["provider_funded"]["amount"] == str(10**18)
    assert bodies["task_requested"]["request_nonce"] == "17000000000000040"
    assert bodies["job_submitted"]["spec"]["budget"] == "3000000000000000000"


@pytest.mark.parametrize("value", [[], None, {"seq": [1]}, {"seq": "x"}, {"at": {"a": 1}}, {"at": "yesterday"}])
def test_a_line_without_a_place_in_the_journal_has_one_error(value):
    with pytest.raises(ValueError, match=r"event|nvalid"):
        event_from_json(value)


def test_an_unknown_kind_is_kept_whole():
    value = {"seq": 3, "job_id": "job-1", "at": None, "kind": "job_levitated", "height": "12"}
    event = event_from_json(value)
    assert isinstance(event, UnknownEvent)
    assert event_to_json(event) == value


@pytest.mark.parametrize(
    "body",
    [{}, {"task_id": 5}, {"task_id": None}],
    ids=["missing", "wrong type", "null"],
)
def test_a_known_kind_that_cannot_be_read_is_kept_as_unknown(body):
    event = event_from_json({"seq": 1, "job_id": "j", "at": None, "kind": "task_created", **body})
    assert isinstance(event, UnknownEvent)
    assert event.body == body


def test_fields_of_a_newer_version_are_left_out():
    event = event_from_json({"kind": "task_created", "task_id": "t", "colour": "red"})
    assert event == TaskCreated(task_id="t")
