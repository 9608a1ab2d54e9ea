"""Requests that wait for a turn go together; nobody's answer, error or cancellation is another's."""

import anyio
import anyio.lowlevel
import pytest

from zg_async.errors import ChainUnavailableError
from zg_async.transport.merging import Merger


class Side:
    """The other side: each exchange waits until it is let go, and answers ten times what was asked."""

    def __init__(self):
        self.exchanges: list[list[int]] = []
        self.gates: list[anyio.Event] = []
        self.error: Exception | None = None

    async def send(self, asks):
        gate = anyio.Event()
        self.exchanges.append(list(asks))
        self.gates.append(gate)
        await gate.wait()
        if self.error is not None:
            raise self.error
        return [10 * ask for ask in asks]

    async def let_go(self, *numbers):
        for number in numbers:
            self.gates[number].set()
        await anyio.wait_all_tasks_blocked()


@pytest.fixture
def side():
    return Side()


class Asked:
    """What askers got, by name."""

    def __init__(self, side, group, **options):
        self.merger = Merger(side.send, **options)
        self.group = group
        self.got: dict[str, object] = {}
        self.scopes: dict[str, anyio.CancelScope] = {}

    async def begin(self, **askers):
        for name, asks in askers.items():
            self.group.start_soon(self._ask, name, asks)
            await anyio.wait_all_tasks_blocked()

    async def _ask(self, name, asks):
        with anyio.CancelScope() as scope:
            self.scopes[name] = scope
            try:
                self.got[name] = await self.merger.ask(asks)
            except ChainUnavailableError as error:
                self.got[name] = f"raised {error.message}"


async def test_below_the_limit_every_request_goes_at_once_and_alone(side):
    async with anyio.create_task_group() as group:
        asked = Asked(side, group, at_once=2, most=10)
        await asked.begin(a=[1], b=[2, 3])
        assert side.exchanges == [[1], [2, 3]]
        await side.let_go(0, 1)
    assert asked.got == {"a": [10], "b": [20, 30]}


async def test_what_waits_goes_together_in_order_and_no_more_than_allowed(side):
    async with anyio.create_task_group() as group:
        asked = Asked(side, group, at_once=1, most=4)
        await asked.begin(a=[1], b=[2], c=[3, 4], d=[5, 6], e=[7])
        assert side.exchanges == [[1]]
        await side.let_go(0)
        assert side.exchanges == [[1], [2, 3, 4]]
        await side.let_go(1)
        assert side.exchanges == [[1], [2, 3, 4], [5, 6, 7]]
        await asked.begin(f=[8])
        await side.let_go(2)
        await side.let_go(3)
        await asked.begin(g=[9])
        await side.let_go(4)
    assert side.exchanges[3:] == [[8], [9]]
    assert asked.got == {"a": [10], "b": [20], "c": [30, 40], "d": [50, 60], "e": [70], "f": [80], "g": [90]}


async def test_an_error_is_raised_for_one_and_told_to_each_of_several(side):
    side.error = ChainUnavailableError("gone")
    async with anyio.create_task_group() as group:
        asked = Asked(side, group, at_once=1, most=4)
        await asked.begin(a=[1], b=[2], c=[3])
        await side.let_go(0)
        await side.let_go(1)
    assert asked.got == {"a": "raised gone", "b": side.error, "c": side.error}


@pytest.mark.parametrize("cancelled", ["a", "b", "c"])
async def test_a_cancelled_request_takes_nobody_with_it(side, cancelled):
    """Under way, waiting first in line, waiting further back: the turn goes on."""
    async with anyio.create_task_group() as group:
        asked = Asked(side, group, at_once=1, most=4)
        await asked.begin(a=[1], b=[2], c=[3])
        asked.scopes[cancelled].cancel()
        await anyio.wait_all_tasks_blocked()
        for number in range(2):
            if number < len(side.gates):
                await side.let_go(number)
        await asked.begin(d=[4])
        await side.let_go(len(side.gates) - 1)
    expected = {"a": [10], "b": [20], "c": [30], "d": [40]}
    del expected[cancelled]
    assert asked.got == expected


async def test_whoever_goes_with_a_cancelled_request_is_told_to_ask_alone(side):
    async with anyio.create_task_group() as group:
        asked = Asked(side, group, at_once=1, most=4)
        await asked.begin(a=[1], b=[2], c=[3])
        await side.let_go(0)
        asked.scopes["b"].cancel()
        await anyio.wait_all_tasks_blocked()
        await asked.begin(d=[4])
        await side.let_go(2)
    assert asked.got == {"a": [10], "c": None, "d": [40]}


async def test_a_turn_given_to_one_that_is_cancelled_at_that_moment_goes_to_the_next(side):
    async with anyio.create_task_group() as group:
        asked = Asked(side, group, at_once=1, most=4)
        await asked.begin(a=[1], b=[2], c=[3])
        side.gates[0].set()
        asked.scopes["a"].shield = True  # it ends by itself, and gives b the turn; b is cancelled before it runs
        while not asked.got:
            await anyio.lowlevel.checkpoint()
        asked.scopes["b"].cancel()
        await anyio.wait_all_tasks_blocked()
        await side.let_go(len(side.gates) - 1)
        await asked.begin(d=[4])
        await side.let_go(len(side.gates) - 1)
    assert asked.got["d"] == [40]
    assert asked.got["c"] in ([30], None)


async def test_one_that_goes_with_another_is_cancelled_under_way_and_the_other_has_its_answer(side):
    async with anyio.create_task_group() as group:
        asked = Asked(side, group, at_once=1, most=4)
        await asked.begin(a=[1], b=[2], c=[3])
        await side.let_go(0)
        assert side.exchanges[1] == [2, 3]
        asked.scopes["c"].cancel()
        await anyio.wait_all_tasks_blocked()
        await side.let_go(1)
    assert asked.got == {"a": [10], "b": [20]}
