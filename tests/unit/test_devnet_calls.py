"""The embedded chain runs a call again only when it could end differently."""

import random

import pytest
from eth_utils import keccak

from tests.clock import FakeClock
from tests.devnet.node_kit import OTHER, OWNER, sign
from zg_async.devnet import evm_calls
from zg_async.devnet.evm import Evm
from zg_async.devnet.evm_records import CallRequest, ExecutionFailedError
from zg_async.devnet.node_chain import NodeChain

COIN = 10**18
STRANGER = bytes.fromhex("5a" * 20)
PUSH_STRANGER = "73" + STRANGER.hex()
READERS = {
    "slot": "5f54",
    "time": "42",
    "number": "43",
    "random": "44",
    "earlier hash": "600140",
    "own balance": "47",
    "its balance": PUSH_STRANGER + "31",
    "sender's balance": "3331",
    "its code hash": PUSH_STRANGER + "3f",
    "its code size": PUSH_STRANGER + "3b",
    "sender": "33",
    "gas": "5a",
    "base fee": "48",
    "constant": "6007",
    "calls with money": f"5f5f5f5f6005{PUSH_STRANGER}61fffff1",
    "makes a contract": "5f5f5ff0",
    "reverts with a slot": "5f545f5260205ffd",
    "calls in turn": f"5f5f5f5f{PUSH_STRANGER}61fffffa",
}


class World:
    """A chain with a contract for each way to read; any data written to one goes into its slot."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        owner, other = (bytes.fromhex(key.address[2:]) for key in (OWNER, OTHER))
        self.evm = Evm({owner: 10 * COIN, other: 10 * COIN}, timestamp=int(clock.now()))
        self.chain = NodeChain(self.evm, clock)
        self.owner = owner
        self.contracts = {name: self.deploy(code) for name, code in READERS.items()}

    def send(self, to: bytes | None, data: str = "", value: int = 0) -> bytes | None:
        nonce = self.chain.pending_nonce(self.owner)
        target = None if to is None else "0x" + to.hex()
        fields = {"nonce": nonce, "to": target, "data": "0x" + data, "value": value, "gas": 500_000}
        self.chain.accept(bytes.fromhex(sign(OWNER, **fields)[2:]))
        return self.chain.mine().added[0].mined[0].contract

    def deploy(self, read: str) -> bytes:
        code = bytes.fromhex(read + "5f5260205ff3")
        runtime = bytes.fromhex(f"3660{5 + len(code) - 1:02x}57") + code + bytes.fromhex("5b5f355f5500")
        contract = self.send(None, f"60{len(runtime):02x}8060095f395ff3{runtime.hex()}")
        assert contract is not None
        return contract

    def request(self, name: str, **fields: object) -> CallRequest:
        return CallRequest(to=self.contracts[name], **fields)  # type: ignore[arg-type]

    def ask(self, request: CallRequest, block: int = -1, timestamp: int | None = None) -> object:
        try:
            return self.evm.call(request, self.evm.blocks[block], timestamp=timestamp)
        except ExecutionFailedError as error:
            return str(error), error.data


@pytest.fixture
def world(clock: FakeClock) -> World:
    return World(clock)


def act(world: World, chance: random.Random) -> None:
    contract = chance.choice([*world.contracts.values(), STRANGER])
    match chance.randrange(8):
        case 0:
            world.chain.mine()
        case 1:
            world.clock.advance(chance.choice([0.5, 1.0, 30.0]))
        case 2:
            world.chain.set_balance(contract, chance.choice([0, 4, 5, COIN]))
        case 3 | 4:
            world.send(contract, f"{chance.randrange(3):064x}")
        case 5:
            world.send(None, "00")
        case 6 if world.evm.head.number > 25:
            world.chain.reorg(chance.randrange(1, 4))
        case _:
            world.chain.set_balance(world.owner, chance.choice([5, 10]) * COIN)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_call_ends_as_if_it_were_run_whatever_happened_to_the_chain(
    world: World, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance, hits, find = random.Random(seed), [], evm_calls.KnownCalls.find

    def counted(*arguments: object) -> object:
        found = find(*arguments)  # type: ignore[arg-type]
        hits.append(found is not None)
        return found

    for _ in range(40):
        act(world, chance)
        block, timestamp = chance.choice([-1, -1, -1, -3]), chance.choice([None, world.chain.next_timestamp()])
        sender = chance.choice([bytes(20), world.owner])
        for name in world.contracts:
            request = world.request(name, sender=sender)
            monkeypatch.setattr(evm_calls.KnownCalls, "find", counted)
            shown = world.ask(request, block, timestamp)
            monkeypatch.setattr(evm_calls.KnownCalls, "find", lambda *_: None)
            kept = dict(world.evm._calls._known)
            assert shown == world.ask(request, block, timestamp), name
            world.evm._calls._known = kept  # the run that was only compared leaves no trace
    assert 0.2 < sum(hits) / len(hits) < 0.9


def test_what_others_did_meanwhile_does_not_run_a_call_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("slot", "constant", "its code size", "reverts with a slot")
    before = [world.ask(world.request(name)) for name in names]
    assert before[3] == ("execution reverted", bytes(32))
    world.send(world.contracts["gas"], f"{1:064x}", value=0)
    world.chain.set_balance(world.contracts["slot"], 5)
    world.clock.advance(100)
    world.chain.mine(3)
    with monkeypatch.context() as patched:
        patched.setattr(Evm, "_run", None)
        assert [world.ask(world.request(name)) for name in names] == before
    world.send(world.contracts["slot"], f"{9:064x}")
    assert world.ask(world.request("slot")) == (9).to_bytes(32, "big")


def test_only_so_many_calls_are_remembered(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evm_calls, "_MOST", 3)
    requests = [world.request("gas", gas=gas) for gas in range(50_000, 50_005)]
    for request in requests:
        world.ask(request)
    assert list(world.evm._calls._known) == requests[2:]


def test_a_contract_that_comes_to_stand_at_an_address_is_run(world: World) -> None:
    nonce = world.chain.pending_nonce(world.owner)
    address = keccak(bytes([0xD6, 0x94]) + world.owner + bytes([nonce]))[12:]
    request = CallRequest(to=address)
    world.chain.set_balance(address, 1)
    world.chain.mine()
    assert world.ask(request) == b""
    assert world.deploy("6007") == address
    assert world.ask(request) == (7).to_bytes(32, "big")
    world.chain.reorg(1)
    assert world.ask(request) == b""
