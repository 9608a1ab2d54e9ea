"""Task logs: both trainers' figures, Docker frames, long lines."""

import datetime as dt
import math
import tracemalloc

import pytest

from zg_async.wire.provider_api import LogParser, failure_reason, parse_log
from zg_async.wire.task_log import LINE_LIMIT, TrainSummary

FRAME = b"\x01\x00\x00\x00\x00\x00\x00"


def metrics(data: bytes | str) -> list:
    return [e.metric for e in parse_log(data) if e.metric]


def test_provider_lines_have_their_time():
    (entry,) = parse_log("[2026-01-01T01:00:00.5+01:00] creating task....\n")
    assert (entry.text, entry.time) == ("creating task....", dt.datetime(2026, 1, 1, 0, 0, 0, 500000, tzinfo=dt.UTC))


def test_brackets_that_hold_no_time_stay():
    (entry,) = parse_log("[2026-99-99T00:00:00Z] x")
    assert (entry.text, entry.time) == ("[2026-99-99T00:00:00Z] x", None)


def test_todays_trainer_prints_dicts_whose_steps_are_counted():
    log = (
        "{'loss': 2.3456, 'grad_norm': 1.25, 'learning_rate': 0.0002, 'epoch': 0.5}\n"
        "{'loss': 1.5, 'grad_norm': nan, 'learning_rate': 1e-05, 'epoch': 1.0}\n"
    )
    one, two = metrics(log)
    assert (one.step, one.loss, one.grad_norm, one.learning_rate, one.epoch) == (1, 2.3456, 1.25, 0.0002, 0.5)
    assert (two.step, two.loss, two.learning_rate) == (2, 1.5, 1e-05)
    assert math.isnan(two.grad_norm)


def test_newer_transformers_quote_their_numbers():
    (metric,) = metrics("{'loss': '2.346', 'grad_norm': '1.25', 'learning_rate': '0.0002', 'epoch': '0.5'}\n")
    assert (metric.loss, metric.epoch) == (2.346, 0.5)


def test_a_diverged_loss_is_still_a_figure():
    (metric,) = metrics("{'loss': nan, 'epoch': 0.5}")
    assert math.isnan(metric.loss)


def test_older_trainers_name_the_step():
    (metric,) = metrics("Step: 30, Logs: {'loss': 1.0, 'epoch': 0.1, 'tokens_per_second': 512.5}\n")
    assert (metric.step, metric.loss, metric.tokens_per_second) == (30, 1.0, 512.5)
    assert metrics("[ERROR] Step: 31, Error: out of memory\n") == []


def test_the_closing_summary_is_no_step():
    (entry,) = parse_log(
        "{'train_runtime': 12.5, 'train_samples_per_second': 3, 'train_steps_per_second': 0.5, "
        "'train_loss': 1.25, 'epoch': 1.0}"
    )
    assert entry.metric is None
    assert entry.summary == TrainSummary(
        loss=1.25, runtime=12.5, samples_per_second=3.0, steps_per_second=0.5, epoch=1.0
    )


def test_figures_behind_a_progress_bar_are_found():
    (metric,) = metrics(" 10%|█         | 1/10 [00:01<00:09]\r{'loss': 2.0, 'epoch': 0.1}\n")
    assert metric.loss == 2.0


def test_config_and_other_dicts_are_only_text():
    log = "Training config: {\n  \"learning_rate\": 0.0002\n}\n{'a': 'b'}\n{'loss': 1.2.3}\n"
    assert [e.metric for e in parse_log(log)] == [None] * 5


def test_docker_frames_are_dropped_even_when_their_length_is_a_line_feed():
    entries = parse_log(FRAME + b"\x0ahello lines\n\x02" + FRAME[1:] + b"\x05world\n")
    assert [e.text for e in entries] == ["hello lines", "world"]


def test_docker_frames_in_text_decoded_elsewhere_are_dropped_too():
    text = (FRAME + b"\xffhello\n").decode("utf-8", "replace")
    assert [e.text for e in parse_log(text)] == ["hello"]


def test_a_frame_cut_by_the_end_of_a_read_is_dropped():
    parser = LogParser()
    first = parser.feed(b"a\n" + FRAME[:5])
    second = parser.feed(FRAME[5:] + b"\x02b\n")
    assert [e.text for e in (*first, *second)] == ["a", "b"]


def test_long_lines_are_cut_and_the_rest_is_skipped():
    parser = LogParser()
    entries = [*parser.feed("x" * 10_000), *parser.feed("x" * 100_000), *parser.feed("x" * 5 + "\nnext\n")]
    assert [len(e.text) for e in entries] == [LINE_LIMIT, 4]
    assert len(parser._held) == 0


def test_bytes_that_are_no_text_are_replaced():
    assert parse_log(b"\xff\xfe\n")[0].text == "��"


def test_the_last_failure_is_the_reason():
    log = (
        "[2026-01-01T00:00:00Z] setup failed: first\n"
        "[2026-01-01T00:00:00Z] Error executing task de594986-253d-43d5-8ae4-6349207282db: container exited with 1\n"
    )
    assert failure_reason(log) == "container exited with 1"
    assert failure_reason("[2026-01-01T00:00:00Z] setup failed: insufficient balance\n") == "insufficient balance"
    assert failure_reason("all well") == ""


@pytest.mark.parametrize("line", [b"\n", b"\r\n"])
def test_a_flood_of_empty_lines_takes_little_memory(line):
    flood = line * (2**20 // len(line))
    tracemalloc.start()
    try:
        assert len(parse_log(flood)) == len(flood) // len(line)
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    finally:
        tracemalloc.stop()
