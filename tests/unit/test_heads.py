"""Waiting for the chain outlives what a node, or a gateway before it, says wrong now and then."""

import pytest

from zg_async.background import Background
from zg_async.errors import ChainUnavailableError, RpcError, WrongChainError
from zg_async.transport.heads import PATIENCE, BlockWatcher

BLOCK = {"number": "0x7", "hash": "0x" + "aa" * 32, "parentHash": "0x" + "bb" * 32, "timestamp": "0x10"}


class Node:
    """Answers each round with the next of a list, and then with its last."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = 0

    async def batch(self, asks, *, retries=True):
        answer = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        if isinstance(answer, Exception):
            raise answer
        return [answer]


@pytest.fixture
async def watcher(clock):
    background = Background()
    yield lambda *answers: BlockWatcher(Node(*answers), clock, background)
    await background.aclose()


@pytest.mark.parametrize(
    "wrong", [None, {}, "0x7", RpcError("no block"), RpcError("answered no JSON-RPC"), ChainUnavailableError("gone")]
)
async def test_one_senseless_answer_ends_nobodys_waiting(watcher, wrong):
    assert (await watcher(wrong, wrong, BLOCK).wait_next(-1)).number == 7


@pytest.mark.parametrize("wrong", [{}, RpcError("answered no JSON-RPC"), ChainUnavailableError("gone")])
async def test_a_node_that_never_makes_sense_is_given_up_in_time(watcher, clock, wrong):
    began = clock.monotonic()
    with pytest.raises((RpcError, ChainUnavailableError)):
        await watcher(wrong).wait_next(-1)
    assert PATIENCE < clock.monotonic() - began < 2 * PATIENCE


async def test_another_chain_is_told_at_once(watcher, clock):
    began = clock.monotonic()
    with pytest.raises(WrongChainError):
        await watcher(WrongChainError("another chain")).wait_next(-1)
    assert clock.monotonic() - began < 1
