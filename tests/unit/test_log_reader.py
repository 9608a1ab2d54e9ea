"""The reader of logs takes nothing for a reorganisation that is none."""

from zg_async.background import Background
from zg_async.transport.heads import BlockWatcher, parse_block
from zg_async.transport.logs import LogReader


def block(number):
    return {
        "number": hex(number),
        "hash": f"0x{number:064x}",
        "parentHash": f"0x{number - 1:064x}",
        "timestamp": "0x10",
    }


class Node:
    """A chain of nine blocks without logs."""

    async def request(self, method, params, **_):
        return block(9 if params[0] == "latest" else int(params[0], 16)) if "Block" in method else []


async def test_a_question_from_before_the_first_follower_came_is_no_reorganisation(clock):
    """The reader is idle, with a round under way about an old block; who comes then begins at the newest one."""
    background = Background()
    reader = LogReader(Node(), BlockWatcher(Node(), clock, background))
    reader._restart(parse_block(block(7)))
    assert reader.asks()[0].params == ["0x7", False]
    async with reader.follow(addresses=["0x" + "11" * 20]):
        await reader.answered(parse_block(block(8)), [block(7)])
        [follower] = reader._followers
        assert not follower.events
        assert follower.at == 9
        assert reader.asks()[0].params == ["0x9", False]
        await reader.answered(parse_block(block(9)), [block(9)])
        assert not follower.events
    await background.aclose()
