"""One read for all who ask at the same time, and no answer that is older than its question."""

import anyio
import anyio.lowlevel
import pytest

from zg_async.errors import ChainUnavailableError
from zg_async.managers.services import Together


class Side:
    """Answers the number of the read; each waits until it is let go."""

    def __init__(self):
        self.gates = []
        self.error = None

    async def read(self):
        gate = anyio.Event()
        self.gates.append(gate)
        number = len(self.gates)
        await gate.wait()
        if self.error is not None:
            raise self.error
        return number

    async def let_go(self):
        self.gates[-1].set()
        await anyio.wait_all_tasks_blocked()


async def ask(together, got, name):
    try:
        got[name] = await together.get()
    except ChainUnavailableError:
        got[name] = "failed"


async def begin(group, together, got, *names):
    for name in names:
        group.start_soon(ask, together, got, name)
    await anyio.wait_all_tasks_blocked()


async def test_who_asks_while_a_read_is_under_way_shares_the_next():
    side, got = Side(), {}
    together = Together(side.read)
    async with anyio.create_task_group() as group:
        await begin(group, together, got, "a")
        await begin(group, together, got, "b", "c", "d")
        await side.let_go()
        assert got == {"a": 1}
        await begin(group, together, got, "e")
        await side.let_go()
        assert got == {"a": 1, "b": 2, "c": 2, "d": 2}
        await side.let_go()
    assert got["e"] == 3
    async with anyio.create_task_group() as group:
        await begin(group, together, got, "f")
        await side.let_go()
    assert got["f"] == 4


@pytest.mark.parametrize("how", ["fails", "is cancelled"])
async def test_a_read_that_comes_to_nothing_is_nobody_else_s(how):
    side, got, scope = Side(), {}, anyio.CancelScope()
    together = Together(side.read)

    async def first():
        with scope:
            await ask(together, got, "a")

    async with anyio.create_task_group() as group:
        group.start_soon(first)
        await anyio.wait_all_tasks_blocked()
        await begin(group, together, got, "b", "c")
        if how == "fails":
            side.error = ChainUnavailableError("gone")
            side.gates[-1].set()
            while "a" not in got:
                await anyio.lowlevel.checkpoint()
            side.error = None
        else:
            scope.cancel()
        await anyio.wait_all_tasks_blocked()
        await side.let_go()
    assert (got.get("a"), got["b"], got["c"]) == ("failed" if how == "fails" else None, 2, 2)
