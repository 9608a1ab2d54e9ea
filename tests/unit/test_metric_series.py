"""The figures of a training as a series: both trainers, both spellings of numbers, speed, time left, bad lines."""

import json
import math

import pytest

from zg_async.wire.metric_series import MetricSeries
from zg_async.wire.task_log import LogParser

TODAY = """[2027-01-15T08:00:00Z] Container logs:
Starting training...
{'loss': 2.3456, 'grad_norm': 1.25, 'learning_rate': 0.0002, 'epoch': 0.5}
{'loss': nan, 'grad_norm': 1.5, 'learning_rate': 1e-05, 'epoch': 1.0}
{'train_runtime': 12.5, 'train_samples_per_second': 3.2, 'train_steps_per_second': 0.8, 'train_loss': 2.1, 'epoch': 1.0}
Training completed successfully!
"""
QUOTED = TODAY.replace("2.3456", "'2.346'").replace("0.0002", "'0.0002'").replace("_loss': 2.1", "_loss': '2.1'")
LIVE = (
    "Step: 10, Logs: {'loss': 3.0, 'learning_rate': '0.0002', 'epoch': 0.5, 'tokens_per_second': 512.5}\n",
    "[ERROR] Step: 15, Error: out of memory\n",
    "Step: 20, Logs: {'loss': 2.0, 'learning_rate': '1e-4', 'epoch': 1.0, 'tokens_per_second': 500}\n",
)
PARAMS = json.dumps({"num_train_epochs": 2, "max_steps": -1})


def read(*pieces, params=PARAMS, seconds=10.0):
    """Each piece comes so many seconds after the one before."""
    parser, series = LogParser(), MetricSeries()
    series.expect(params)
    for number, piece in enumerate(pieces):
        for entry in parser.feed(piece):
            series.add(entry, 1000.0 + number * seconds)
    return series


@pytest.mark.goal("WAT-07", part="today's trainer, both number spellings")
@pytest.mark.parametrize(("log", "loss"), [(TODAY, 2.3456), (QUOTED, 2.346)])
def test_todays_figures_are_a_series_with_the_closing_speed(log, loss):
    series = read(log)
    one, two = series.points
    assert (one.step, one.loss, one.learning_rate, one.epoch, one.grad_norm) == (1, loss, 0.0002, 0.5, 1.25)
    assert (two.step, two.learning_rate, two.epoch) == (2, 1e-05, 1.0)
    assert math.isnan(two.loss)
    assert (series.summary.loss, series.summary.runtime, series.steps_per_second) == (2.1, 12.5, 0.8)
    assert (series.eta, series.malformed, series.last) == (0.0, 0, two)


@pytest.mark.goal("WAT-07", part="older trainers live: speed and time left")
def test_figures_that_come_live_tell_speed_and_time_left():
    series = read(*LIVE)
    assert [(m.step, m.loss, m.learning_rate, m.tokens_per_second) for m in series.points] == [
        (10, 3.0, 0.0002, 512.5),
        (20, 2.0, 0.0001, 500.0),
    ]
    assert series.steps_per_second == pytest.approx(0.5)  # 10 steps in 20 s
    assert series.eta == pytest.approx(40.0)  # one epoch of two is left, half an epoch took 20 s
    assert read(*LIVE, params='{"max_steps": 30}').eta == pytest.approx(20.0)
    assert read(*LIVE, params='{"num_train_epochs": 2, "max_steps": 30}').eta == pytest.approx(20.0)
    assert read("".join(LIVE)).eta is None  # all at once: nothing is known of the speed
    assert read(*LIVE[:1]).eta is None
    for useless in ("", "[]", '{"num_train_epochs": "2"}', '{"num_train_epochs": true}', '{"max_steps": -1}'):
        assert read(*LIVE, params=useless).eta is None


@pytest.mark.goal("WAT-07", part="malformed lines ignored and counted")
@pytest.mark.parametrize(
    "line",
    [
        "{'loss': 1.2.3, 'epoch': 0.1}",
        "{'loss': , 'epoch': 0.1}",
        "{'loss': '1.5",
        "Step: 3, Logs: {'lo",
        "{'train_loss': x}",
    ],
)
def test_lines_that_should_hold_figures_and_dont_are_left_out_and_counted(line):
    series = read(LIVE[0], line + "\n", LIVE[2])
    assert [m.loss for m in series.points] == [3.0, 2.0]
    assert series.malformed == 1
    assert series.steps_per_second == pytest.approx(0.5)


def test_a_training_that_begins_anew_is_timed_anew():
    series = read(*LIVE, LIVE[0], LIVE[2])
    assert series.steps_per_second == pytest.approx(1.0)
    assert len(series.points) == 4


def test_a_series_without_end_stays_bounded(monkeypatch):
    monkeypatch.setattr("zg_async.wire.metric_series._MOST", 100)
    series = read(*(f"Step: {n}, Logs: {{'loss': 1.0, 'epoch': 0.1}}\n" for n in range(1, 1000)))
    assert len(series.points) <= 100
    assert (series.points[0].step, series.last.step) == (1, 999)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, '{"num_train_epochs": NaN}', "[]", "7", "", "{" * 64]
)
def test_parameters_a_provider_made_up_are_left_alone(text):
    series = MetricSeries()
    series.expect(text)
    assert (series.total_epochs, series.total_steps) == (None, None)
