"""Counters add up, histograms keep count, sum, largest and spread."""

from zg_async.metrics import BOUNDS, Metrics


def test_a_snapshot_holds_what_happened_and_stays_as_it_is():
    metrics = Metrics()
    assert metrics.snapshot().counters == {}
    metrics.count("b")
    metrics.count("a", 5)
    before = metrics.snapshot()
    metrics.count("a", 2)
    assert (before.counters, metrics.snapshot().counters) == ({"a": 5, "b": 1}, {"a": 7, "b": 1})


def test_values_fall_into_the_bucket_whose_end_they_do_not_pass():
    metrics = Metrics()
    for value in (0.0, BOUNDS[0], BOUNDS[0] * 1.01, BOUNDS[-1], BOUNDS[-1] + 1):
        metrics.observe("x", value)
    histogram = metrics.snapshot().histograms["x"]
    assert histogram.buckets == (2, 1, *[0] * (len(BOUNDS) - 3), 1, 1)
    assert (histogram.count, histogram.largest) == (5, BOUNDS[-1] + 1)
    assert abs(histogram.mean * 5 - histogram.total) < 1e-9
