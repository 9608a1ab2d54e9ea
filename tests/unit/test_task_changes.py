"""Two witnesses become one story."""

import dataclasses
import datetime as dt
import itertools
import json
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zg_async.managers.task_changes import (
    AckDeadlineNear,
    DeliveredProviderLostState,
    TaskChange,
    TaskSettled,
    TaskStateChanged,
    TaskStory,
    WatchCursor,
)
from zg_async.wire.contracts import DeliverableAcknowledged, DeliverableAdded, FeesSettled
from zg_async.wire.records import Deliverable, Log, Task, TaskProgress

USER, PROVIDER, ID = "0x" + "1" * 40, "0x" + "2" * 40, "1f6fef2b-e0f6-4a28-9ebe-86d5370b1934"
T0 = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
ROOT = bytes(range(32))


def story() -> TaskStory:
    s = TaskStory(PROVIDER, ID, lock_time=86400, penalty_percentage=30)
    s.see_block(10, "0xaa")
    return s


def task(progress: TaskProgress, text: str | None = None, **changes) -> Task:
    return Task(
        id=ID, provider=PROVIDER, user=USER, progress=progress, progress_text=text or progress.value, created_at=T0,
        updated_at=T0, model_hash="0x", dataset_hash="0x", training_params="{}", fee=0, request_nonce=1,
        deliver_time=None, **changes,
    )  # fmt: skip


def log(block: int, index: int = 0) -> Log:
    return Log(
        address=PROVIDER,
        topics=(),
        data=b"",
        block_number=block,
        block_hash=f"0x{block:x}",
        tx_hash="0x",
        log_index=index,
    )


def added(block: int = 11) -> DeliverableAdded:
    return DeliverableAdded(user=USER, provider=PROVIDER, id=ID, model_root_hash=ROOT, timestamp=T0, log=log(block))


def acknowledged(block: int = 12) -> DeliverableAcknowledged:
    return DeliverableAcknowledged(user=USER, provider=PROVIDER, id=ID, timestamp=T0, log=log(block))


def settled(block: int = 13, *, ack: bool = True) -> FeesSettled:
    return FeesSettled(user=USER, provider=PROVIDER, id=ID, fee=7, acknowledged=ack, account_nonce=1, log=log(block))


def deliverable(*, ack: bool = False, done: bool = False) -> Deliverable:
    return Deliverable(id=ID, model_root_hash=ROOT, encrypted_secret=b"", acknowledged=ack, timestamp=T0, settled=done)


def states(changes: list[TaskChange]) -> list[str]:
    return [c.state.value for c in changes if isinstance(c, TaskStateChanged)]


def test_a_state_is_told_once():
    s = story()
    assert states(s.see_task(task(TaskProgress.TRAINING))) == ["Training"]
    assert s.see_task(task(TaskProgress.TRAINING)) == []


def test_progress_may_go_back():
    s = story()
    told = [states(s.see_task(task(p))) for p in (TaskProgress.SETTING_UP, TaskProgress.INIT, TaskProgress.SETTING_UP)]
    assert told == [["SettingUp"], ["Init"], ["SettingUp"]]


def test_unknown_states_keep_the_providers_word():
    s = story()
    [change] = s.see_task(task(TaskProgress.UNKNOWN, "Warming"))
    assert (change.state, change.state_text) == (TaskProgress.UNKNOWN, "Warming")
    assert states(s.see_task(task(TaskProgress.UNKNOWN, "Cooling"))) == ["Unknown"]


def test_delivered_by_the_providers_word_alone_is_not_told():
    s = story()
    assert s.wants_chain(task(TaskProgress.DELIVERED))
    assert s.see_task(task(TaskProgress.DELIVERED)) == []


def test_the_chain_tells_the_delivery_and_its_deadline():
    s = story()
    [change] = s.see_event(added())
    assert change.state is TaskProgress.DELIVERED
    assert change.source == "chain"
    assert change.model_root_hash == ROOT
    assert change.ack_deadline == T0 + dt.timedelta(hours=6)


def test_whoever_is_second_changes_nothing():
    s = story()
    assert states(s.see_deliverable(deliverable())) == ["Delivered"]
    assert s.see_event(added()) == []
    assert s.see_task(task(TaskProgress.DELIVERED)) == []
    assert s.see_task(task(TaskProgress.DELIVERING)) == []


@pytest.mark.goal("WAT-08", part="merge")
def test_failed_after_a_chain_delivery_is_lost_state_and_told_once():
    s = story()
    s.see_event(added())
    [change] = s.see_task(task(TaskProgress.FAILED))
    assert isinstance(change, DeliveredProviderLostState)
    assert s.see_task(task(TaskProgress.FAILED)) == []
    assert not s.over


def test_failed_without_a_delivery_is_the_end():
    s = story()
    assert states(s.see_task(task(TaskProgress.FAILED))) == ["Failed"]
    assert s.over


def test_settlement_tells_fee_and_end():
    s = story()
    s.see_event(added())
    assert states(s.see_event(acknowledged())) == ["UserAcknowledged"]
    first, second = s.see_event(settled())
    assert isinstance(first, TaskSettled)
    assert (first.fee, first.acknowledged) == (7, True)
    assert second.state is TaskProgress.FINISHED
    assert s.over


def test_an_event_is_told_once_however_often_it_comes():
    s = story()
    s.see_event(added())
    assert s.see_event(added()) == []


@pytest.mark.goal("WAT-10")
def test_the_deadline_is_counted_down_at_50_80_and_95_per_cent_with_its_cost():
    s = story()
    s.see_event(added())
    hours = [(h, s.see_time(T0 + dt.timedelta(hours=h))) for h in (1, 3, 3.5, 4.8, 5.7, 6)]
    told = [(h, c.percent) for h, changes in hours for c in changes]
    assert told == [(3, 50), (4.8, 80), (5.7, 95)]
    near = hours[1][1][0]
    assert isinstance(near, AckDeadlineNear)
    assert near.cost == "30 % of the fee and the decryption key"
    assert near.ack_deadline == T0 + dt.timedelta(hours=6)


def test_no_countdown_after_the_acknowledgement():
    s = story()
    s.see_event(added())
    s.see_event(acknowledged())
    assert s.see_time(T0 + dt.timedelta(hours=5.9)) == []
    assert s.next_mark() is None


def test_the_deadline_counts_from_the_providers_own_stamp():
    s = story()
    s.see_event(added())
    s.see_task(dataclasses.replace(task(TaskProgress.DELIVERED), deliver_time=T0 - dt.timedelta(minutes=5)))
    assert s.ack_deadline == T0 + dt.timedelta(hours=6, minutes=-5)


def test_every_change_carries_id_time_source_and_cursor():
    s = story()
    changes = [
        *s.see_task(task(TaskProgress.INIT)),
        *s.see_event(added()),
        *s.see_event(acknowledged()),
        *s.see_event(settled()),
    ]
    assert len({c.id for c in changes}) == len(changes)
    assert all(c.at and c.source and WatchCursor.decode(c.cursor) for c in changes)
    assert {c.kind for c in changes} <= {
        typing.get_type_hints(t)["kind"].__args__[0] for t in typing.get_args(TaskChange)
    }


@pytest.mark.parametrize("text", ["", "{}", "x", '{"block_number":"1"}', "[1]", '{"block_number":1,"block_hash":2}'])
def test_a_cursor_that_cannot_be_read_is_none(text):
    assert WatchCursor.decode(text) is None


FACTS = [
    *[lambda s, p=p: s.see_task(task(p)) for p in TaskProgress],
    lambda s: s.see_event(added()),
    lambda s: s.see_event(acknowledged()),
    lambda s: s.see_event(settled()),
    lambda s: s.see_time(T0 + dt.timedelta(hours=5.8)),
]


@given(st.lists(st.integers(0, len(FACTS) - 1), max_size=40))
def test_any_order_of_facts_tells_no_state_twice_in_a_row_and_never_goes_back_behind_the_chain(order):
    s = story()
    changes = [c for i in order for c in FACTS[i](s)]
    told = states(changes)
    assert all(a != b or a == "Unknown" for a, b in itertools.pairwise(told))
    chain = [c for c in changes if isinstance(c, TaskStateChanged) and c.source == "chain"]
    ranks = [list(TaskProgress).index(c.state) for c in chain]
    assert ranks == sorted(ranks)
    marks = [c.percent for c in changes if isinstance(c, AckDeadlineNear)]
    assert marks == sorted(set(marks))


@given(st.lists(st.integers(0, len(FACTS) - 1), max_size=30), st.integers(0, 30))
def test_resuming_from_any_cursor_tells_the_rest_of_the_chain_once(order, cut):
    whole = story()
    first = [c for i in order[:cut] for c in FACTS[i](whole)]
    rest = story()
    cursor = WatchCursor.decode(first[-1].cursor) if first else whole.cursor
    rest.restore(cursor)
    if whole.root is not None:
        rest.recall(deliverable(ack=whole.acknowledged, done=whole.settled))
    again = [c for make in (added, acknowledged, settled) for c in rest.see_event(make())]
    once = [c.id for c in first if c.source == "chain"]
    assert not set(once) & {c.id for c in again if c.source == "chain"}


@pytest.mark.goal("WAT-04", part="the fewest seen ahead, each change once")
def test_the_number_ahead_only_goes_down_and_each_change_is_told_once():
    s = story()
    s.see_task(task(TaskProgress.INIT))
    told = [(c.ahead, c.previous) for n in (4, 4, 5, 3, 3, 6, 1) for c in s.see_pending(T0, n)]
    assert told == [(3, None), (2, 3), (0, 2)]
    again = story()
    again.restore(WatchCursor.decode(s.cursor.encode()))
    assert again.see_pending(T0, 9) == []
    s.see_task(task(TaskProgress.TRAINING))
    assert s.see_pending(T0, 1) == []


@pytest.mark.goal("TSK-05", part="going back and forth is no progress")
def test_a_state_that_lasts_too_long_is_told_once_however_the_task_goes_back_and_forth():
    s, limits = story(), {TaskProgress.SETTING_UP: 60.0, TaskProgress.TRAINING: 600.0}
    s.see_task(task(TaskProgress.INIT))
    assert s.stuck_at(limits) is None
    for minute in range(3):
        at = T0 + dt.timedelta(seconds=30 * minute)
        s.see_task(dataclasses.replace(task(TaskProgress.SETTING_UP), updated_at=at))
        s.see_task(dataclasses.replace(task(TaskProgress.INIT), updated_at=at))
    assert s.stuck_at(limits) == T0 + dt.timedelta(seconds=60)
    log = "[2027-01-15T08:00:00Z] setup failed: download failed: gone\n[2027-01-15T08:00:01Z] Retrying task 1\n\n"
    (told,) = s.see_stuck(T0 + dt.timedelta(seconds=61), log)
    assert (told.state, told.seconds, told.reason) == (TaskProgress.SETTING_UP, 61.0, "download failed: gone")
    assert told.log_line.endswith("Retrying task 1")
    assert s.stuck_at(limits) is None
    s.see_task(dataclasses.replace(task(TaskProgress.TRAINING), updated_at=T0 + dt.timedelta(hours=1)))
    assert s.stuck_at(limits) == T0 + dt.timedelta(hours=1, seconds=600)


def test_a_cursor_of_a_release_that_told_less_is_still_good():
    old = {"block_number": 7, "block_hash": "0xaa", "log_index": -1, "state": None, "state_text": "", "marks": 0}
    assert WatchCursor.decode(json.dumps(old | {"lost": False})) == WatchCursor(block_number=7, block_hash="0xaa")
    assert WatchCursor.decode(json.dumps(old)) is None
    assert WatchCursor.decode("[]") is None
