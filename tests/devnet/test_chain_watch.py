"""All providers of a devnet share one look at the chain."""

import itertools

import pytest
from eth_abi.abi import encode

from zg_async.devnet.accounts import dev_account
from zg_async.devnet.chain_client import ChainClient
from zg_async.devnet.chain_watch import ChainWatch
from zg_async.networks import NETWORKS
from zg_async.wire.contracts import TOPIC

CONTRACT = NETWORKS["local"].fine_tuning
USER, PROVIDER = dev_account(1).address, dev_account(2).address


class Chain:
    """A chain whose blocks hold acknowledgements, by task id."""

    def __init__(self, clock) -> None:
        self.clock = clock
        self.blocks: list[tuple[int, list[str]]] = []
        self.asked: list[str] = []
        self._numbers = itertools.count()

    def mine(self, *ids: str) -> int:
        self.blocks.append((next(self._numbers), list(ids)))
        return len(self.blocks) - 1

    async def __call__(self, method, *params):
        self.asked.append(method)
        if method == "eth_getBlockByNumber":
            number = len(self.blocks) - 1
            return {"number": hex(number), "hash": self._hash(number), "timestamp": hex(int(self.clock.now()))}
        assert method == "eth_getLogs"
        first, last = (int(params[0][key], 16) for key in ("fromBlock", "toBlock"))
        return [self._log(number, task) for number in range(first, last + 1) for task in self.blocks[number][1]]

    def _hash(self, number):
        return f"0x{self.blocks[number][0]:064x}"

    def _log(self, number, task):
        padded = ["0x" + "00" * 12 + address[2:].lower() for address in (USER, PROVIDER)]
        return {
            "address": CONTRACT,
            "topics": ["0x" + TOPIC["DeliverableAcknowledged"].hex(), *padded],
            "data": "0x" + encode(("string", "uint256"), (task, 1_800_000_000)).hex(),
            "blockNumber": hex(number),
            "blockHash": self._hash(number),
            "transactionHash": "0x" + "11" * 32,
            "logIndex": "0x0",
        }


@pytest.fixture
def chain(clock):
    chain = Chain(clock)
    for _ in range(10):
        chain.mine()
    return chain


@pytest.fixture
def watch(chain, clock):
    return ChainWatch(ChainClient(chain, clock), (CONTRACT,))


async def ids(watch, first, last):
    return [event.id for event in await watch.acknowledgements(first, last)]


async def test_what_was_seen_is_read_without_asking_the_chain(watch, chain):
    await watch.round()
    first, second = chain.mine("a"), chain.mine("b", "c")
    await watch.round()
    chain.asked.clear()
    assert await watch.block_number() == second
    assert [await ids(watch, first, second), await ids(watch, second, second)] == [["a", "b", "c"], ["b", "c"]]
    assert await ids(watch, second + 1, second + 5) == []
    assert chain.asked == []
    await watch.round()
    assert chain.asked == ["eth_getBlockByNumber"]


async def test_what_was_before_the_first_look_is_asked_for(watch, chain):
    block = chain.mine("early")
    chain.mine()
    await watch.round()
    assert await ids(watch, 0, block) == ["early"]


async def test_a_reorganisation_replaces_what_its_blocks_held(watch, chain):
    await watch.round()
    kept = chain.mine("kept")
    chain.mine("lost"), chain.mine("twice")
    await watch.round()
    del chain.blocks[-2:]
    head = chain.mine("twice")
    await watch.round()
    assert await ids(watch, kept, head) == ["kept", "twice"]
    assert [await watch.block_number(), await ids(watch, head, head)] == [head, ["twice"]]


async def test_blocks_that_were_leapt_over_are_asked_for(watch, chain, monkeypatch):
    monkeypatch.setattr("zg_async.devnet.chain_watch._SPAN", 5)
    await watch.round()
    block = chain.mine("leapt over")
    for _ in range(9):
        head = chain.mine()
    await watch.round()
    assert await ids(watch, block, head) == ["leapt over"]
