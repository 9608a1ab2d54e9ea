"""A sample of what `python -m tests.fuzz` runs: no parser of outside bytes raises, hangs or swells beyond its word."""

import pytest

from tests.fuzz import OverLimitError, Tally, bent, campaign, execute
from tests.fuzz_targets import TARGETS, Target

EXAMPLES, FEWER = 500, 100
NAMED = (
    "json", "quote", "event log", "report", "envelope", "wrapped key", "session token", "stream", "task log", "task",
    "additional info", "contract results", "contract logs", "storage node", "merkle proof", "zip", "safetensors",
    "journal line",
)  # fmt: skip
"""Those that the goal names; the others get a smaller sample."""


@pytest.mark.slow
@pytest.mark.goal("HRD-19")
@pytest.mark.parametrize("name", TARGETS)
def test_a_parser_raises_only_its_errors_within_time_and_memory(name):
    examples = EXAMPLES if name in NAMED else FEWER
    tally = campaign(name, examples=examples)
    assert tally.executions >= examples
    assert tally.peak > 0


def test_a_bad_parser_is_found(monkeypatch):
    def swells(data: bytes) -> None:
        if b"NaN" in data:
            bytes(100 * 2**20)

    def raises(data: bytes) -> None:
        if b"NaN" in data:
            raise KeyError

    for run, error in ((swells, OverLimitError), (raises, KeyError)):
        monkeypatch.setitem(TARGETS, "bad", Target(run, [b"[1,2,3]"], (ValueError,)))
        with pytest.raises(error):
            campaign("bad", examples=10 * EXAMPLES)
    assert set(NAMED) <= set(TARGETS)


def test_a_plan_changes_a_good_input_and_nothing_else_is_random():
    assert bent(b"", [b"seed"]) == b""
    assert bent(b"\xffraw", [b"seed"]) == b"raw"
    assert bent(bytes(16), [b"seed"]) == b"\x72eed"
    tally = Tally()
    execute("json", b"[1]", tally, measured=False)
    assert (tally.executions, tally.refused) == (1, 0)
