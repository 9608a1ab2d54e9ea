"""The three contracts on py-evm inside the test process: no node, no signatures, no fees, time as the test says."""

import contextlib
import copy
import dataclasses
import functools
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from eth.db.atomic import AtomicDB
from eth.rlp.headers import BlockHeader
from eth.vm.chain_context import ChainContext
from eth.vm.forks.prague import PragueVM
from eth.vm.forks.prague.state import PragueState, PragueTransactionExecutor
from eth.vm.spoof import SpoofTransaction
from eth_abi.abi import decode, encode

from zg_async.devnet.accounts import DevAccount, dev_account, owner
from zg_async.devnet.build_contracts import CONTRACTS
from zg_async.devnet.deploy import FINE_TUNING_NAME, INFERENCE_NAME, DeployTransaction, load_artifact, plan_deployment
from zg_async.wire.hashing import checksum_address, keccak256
from zg_async.wire.signing import settlement_digest, sign_digest, tee_settlement_digest

ZG = 10**18
CHAIN_ID = 31337
START = 1_800_000_000
GAS = 30_000_000


class _Executor(PragueTransactionExecutor):
    def validate_transaction(self, transaction: Any) -> None:
        """Nothing is signed here."""


class _State(PragueState):
    transaction_executor_class = _Executor


class _Vm(PragueVM):
    _state_class = _State


class RevertedError(Exception):
    """A call was refused; `name` and `arguments` are those of the error."""

    def __init__(self, data: bytes) -> None:
        self.name, self.arguments = _decode_error(data)
        super().__init__(f"{self.name}{self.arguments}")


@dataclasses.dataclass(frozen=True)
class Event:
    name: str
    address: str
    values: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Receipt:
    gas_used: int
    events: tuple[Event, ...]
    output: bytes

    def named(self, name: str) -> list[dict[str, Any]]:
        return [event.values for event in self.events if event.name == name]

    @property
    def names(self) -> list[str]:
        return [event.name for event in self.events]


@contextlib.contextmanager
def refused(name: str, *arguments: Any) -> Iterator[None]:
    """The body ends with this contract error."""
    with pytest.raises(RevertedError) as caught:
        yield
    assert (caught.value.name, caught.value.arguments) == (name, arguments)


class Machine:
    """State, a clock, and one transaction per block. `fork` is free."""

    def __init__(self) -> None:
        self.db = AtomicDB()
        self.context = ChainContext(CHAIN_ID)
        self.now = START
        self.number = 1
        self.root = BlockHeader(difficulty=0, block_number=0, gas_limit=0).state_root
        state = self._state()
        for index in range(40):
            state.set_balance(_raw(dev_account(index).address), 1_000_000 * ZG)
        state.persist()
        self.root = state.state_root

    def fork(self) -> "Machine":
        return copy.copy(self)

    def _state(self) -> Any:
        header = _Vm.create_genesis_header(
            difficulty=0, timestamp=self.now, gas_limit=2 * GAS, state_root=self.root, base_fee_per_gas=0
        )
        return _Vm.build_state(self.db, header.copy(block_number=self.number), self.context, ())

    def _run(self, state: Any, sender: str, to: str | None, data: bytes, value: int) -> Any:
        raw = _raw(sender)
        unsigned = _Vm.create_unsigned_transaction(
            nonce=state.get_nonce(raw), gas_price=0, gas=GAS, to=_raw(to) if to else b"", value=value, data=data
        )
        return state.apply_transaction(SpoofTransaction(unsigned, from_=raw))

    def send(self, sender: str, to: str | None, data: bytes, value: int = 0) -> Receipt:
        """Run a transaction in a block stamped `now`. A refused one changes nothing but raises."""
        state = self._state()
        computation = self._run(state, sender, to, data, value)
        if computation.is_error:
            raise RevertedError(computation.output)
        state.persist()
        self.root = state.state_root
        self.number += 1
        used = GAS - computation.get_gas_remaining()
        used -= min(used // 5, computation.get_gas_refund())
        events = tuple(_decode_event(*entry) for entry in computation.get_log_entries())
        return Receipt(used, events, computation.output)

    def call(self, sender: str, to: str, data: bytes, value: int = 0) -> bytes:
        computation = self._run(self._state(), sender, to, data, value)
        if computation.is_error:
            raise RevertedError(computation.output)
        return bytes(computation.output)

    def balance(self, address: str) -> int:
        return int(self._state().get_balance(_raw(address)))

    def storage(self, address: str, slot: int) -> int:
        return int(self._state().get_storage(_raw(address), slot))

    def code(self, address: str) -> bytes:
        return bytes(self._state().get_code(_raw(address)))

    def put(self, address: str, *, code: bytes | None = None, slots: dict[int, int] | None = None) -> None:
        """Write code or storage by hand."""
        state = self._state()
        if code is not None:
            state.set_code(_raw(address), code)
        for slot, value in (slots or {}).items():
            state.set_storage(_raw(address), slot, value)
        state.persist()
        self.root = state.state_root


class Contract:
    """An address with an ABI: `contract.send(account, "refund", 5)`, `contract.call("getLedger", user)`."""

    def __init__(self, world: "World", name: str, address: str) -> None:
        self._world = world
        self.address = address
        self._functions = {e["name"]: e for e in load_artifact(name)["abi"] if e["type"] == "function"}

    def data(self, name: str, *arguments: Any) -> bytes:
        entry = self._functions[name]
        types = [_type(i) for i in entry["inputs"]]
        return keccak256(f"{name}({','.join(types)})".encode())[:4] + encode(types, arguments)

    def send(self, sender: DevAccount, name: str, *arguments: Any, value: int = 0) -> Receipt:
        return self._world.machine.send(sender.address, self.address, self.data(name, *arguments), value)

    def call(self, name: str, *arguments: Any, sender: str | None = None, value: int = 0) -> Any:
        origin = sender or dev_account(39).address
        output = self._world.machine.call(origin, self.address, self.data(name, *arguments), value)
        values = self.decode(name, output)
        return values[0] if len(values) == 1 else values

    def decode(self, name: str, output: bytes) -> tuple[Any, ...]:
        outputs = self._functions[name]["outputs"]
        return tuple(_named(o, v) for o, v in zip(outputs, decode([_type(o) for o in outputs], output), strict=True))


class World:
    """Deployed contracts, and shortcuts for what most tests begin with."""

    def __init__(self, transactions: Iterable[DeployTransaction] | None = None, **options: Any) -> None:
        plan = plan_deployment(**options)
        self.machine = Machine()
        self.owner = owner()
        self.deploy_gas = [
            self.machine.send(self.owner.address, t.to, t.data, t.value).gas_used
            for t in transactions or plan.transactions
        ]
        self.ledger = Contract(self, "LedgerManager", plan.ledger)
        self.inference = Contract(self, "InferenceServing", plan.inference)
        self.fine_tuning = Contract(self, "FineTuningServing", plan.fine_tuning)

    def fork(self) -> "World":
        world = copy.copy(self)
        world.machine = self.machine.fork()
        for name in ("ledger", "inference", "fine_tuning"):
            contract = copy.copy(getattr(self, name))
            contract._world = world
            setattr(world, name, contract)
        return world

    def pass_time(self, seconds: int) -> None:
        self.machine.now += seconds

    def open_ledger(self, user: DevAccount, amount: int = 10 * ZG) -> Receipt:
        return self.ledger.send(user, "addLedger", "", value=amount)

    def transfer(self, user: DevAccount, provider: DevAccount, amount: int, name: str = FINE_TUNING_NAME) -> Receipt:
        return self.ledger.send(user, "transferFund", provider.address, name, amount)

    def retrieve(self, user: DevAccount, *providers: DevAccount, name: str = FINE_TUNING_NAME) -> Receipt:
        return self.ledger.send(user, "retrieveFund", [p.address for p in providers], name)

    def register(self, provider: DevAccount, signer: DevAccount, *, approve: bool = True) -> Receipt:
        receipt = self.fine_tuning.send(provider, "addOrUpdateService", *offer(signer), value=100 * ZG)
        if approve:
            self.fine_tuning.send(self.owner, "acknowledgeTEESignerByOwner", provider.address)
        return receipt

    def register_inference(self, provider: DevAccount, signer: DevAccount, *, approve: bool = True) -> Receipt:
        receipt = self.inference.send(provider, "addOrUpdateService", inference_offer(signer), value=100 * ZG)
        if approve:
            self.inference.send(self.owner, "acknowledgeTEESignerByOwner", provider.address)
        return receipt

    def account(self, user: DevAccount, provider: DevAccount) -> SimpleNamespace:
        return self.fine_tuning.call("getAccount", user.address, provider.address)

    def money(self, user: DevAccount) -> tuple[int, int]:
        ledger = self.ledger.call("getLedger", user.address)
        return ledger.availableBalance, ledger.totalBalance


def offer(
    signer: DevAccount, *, url: str = "http://provider.example", models: Iterable[str] = ("m",)
) -> tuple[Any, ...]:
    return (url, (8, 64, 1, 500, "H100"), 10**9, False, list(models), signer.address)


def inference_offer(signer: DevAccount, **changes: Any) -> tuple[Any, ...]:
    fields = {
        "serviceType": "chatbot",
        "url": "http://provider.example",
        "model": "m",
        "verifiability": "TeeML",
        "inputPrice": 5,
        "outputPrice": 7,
        "additionalInfo": "{}",
        "teeSignerAddress": signer.address,
    }
    return tuple((fields | changes).values())


@functools.cache
def base_world() -> World:
    """Deployed once per process; tests take forks of it."""
    return World()


def _raw(address: str) -> bytes:
    return bytes.fromhex(address[2:])


def _type(entry: dict[str, Any]) -> str:
    kind: str = entry["type"]
    if kind.startswith("tuple"):
        return "(" + ",".join(_type(c) for c in entry["components"]) + ")" + kind[5:]
    return kind


def _named(entry: dict[str, Any], value: Any) -> Any:
    """Tuples as namespaces with the ABI's names, addresses as checksummed text."""
    kind = entry["type"]
    if kind.endswith("]"):
        inner = {**entry, "type": kind[: kind.rindex("[")]}
        return [_named(inner, item) for item in value]
    if kind == "tuple":
        return SimpleNamespace(
            **{c["name"]: _named(c, item) for c, item in zip(entry["components"], value, strict=True)}
        )
    return checksum_address(value) if kind == "address" else value


def _entries(kind: str) -> Iterator[dict[str, Any]]:
    for name in CONTRACTS:
        yield from (e for e in load_artifact(name)["abi"] if e["type"] == kind)


def _hash(entry: dict[str, Any]) -> bytes:
    return keccak256(f"{entry['name']}({','.join(_type(i) for i in entry['inputs'])})".encode())


@functools.cache
def _errors() -> dict[bytes, dict[str, Any]]:
    plain = ({"name": n, "inputs": [{"type": t, "name": ""}]} for n, t in (("Error", "string"), ("Panic", "uint256")))
    return {_hash(e)[:4]: e for e in (*_entries("error"), *plain)}


@functools.cache
def _events() -> dict[tuple[bytes, int], dict[str, Any]]:
    return {(_hash(e), sum(i["indexed"] for i in e["inputs"])): e for e in _entries("event")}


def _decode_error(data: bytes) -> tuple[str, tuple[Any, ...]]:
    if not data:
        return "", ()
    entry = _errors()[data[:4]]
    values = decode([_type(i) for i in entry["inputs"]], data[4:])
    return entry["name"], tuple(_named(i, v) for i, v in zip(entry["inputs"], values, strict=True))


def _decode_event(address: bytes, topics: tuple[int, ...], data: bytes) -> Event:
    words = [topic.to_bytes(32, "big") for topic in topics]
    entry = _events()[words[0], len(words) - 1]
    indexed = [i for i in entry["inputs"] if i["indexed"]]
    plain = [i for i in entry["inputs"] if not i["indexed"]]
    values = {i["name"]: _named(i, decode([_type(i)], w)[0]) for i, w in zip(indexed, words[1:], strict=True)}
    decoded = decode([_type(i) for i in plain], data)
    values |= {i["name"]: _named(i, v) for i, v in zip(plain, decoded, strict=True)}
    return Event(entry["name"], checksum_address(address), values)


def sign_settlement(
    world: World, signer: DevAccount, user: DevAccount, **fields: Any
) -> tuple[str, bytes, bytes, int, bytes, int, str]:
    """A `VerifierInput` signed by the TEE signer; keywords replace the usual fields."""
    use = {"id": "task", "secret": b"", "root": bytes(32), "nonce": 1, "fee": ZG} | fields
    digest = settlement_digest(
        chain_id=CHAIN_ID,
        contract=world.fine_tuning.address,
        id=use["id"],
        encrypted_secret=use["secret"],
        model_root_hash=use["root"],
        nonce=use["nonce"],
        task_fee=use["fee"],
        user=user.address,
    )
    signature = use.get("signature", sign_digest(signer.private_key, digest))
    return (use["id"], use["secret"], use["root"], use["nonce"], signature, use["fee"], user.address)


def sign_tee_settlement(
    world: World, signer: DevAccount, user: DevAccount, provider: DevAccount, **fields: Any
) -> tuple[str, str, int, bytes, int, bytes]:
    """A `TEESettlementData` signed by the TEE signer."""
    use = {"fee": ZG, "requests": b"\x22" * 32, "nonce": 1} | fields
    digest = tee_settlement_digest(
        chain_id=CHAIN_ID,
        contract=world.inference.address,
        requests_hash=use["requests"],
        nonce=use["nonce"],
        provider=provider.address,
        user=user.address,
        total_fee=use["fee"],
    )
    signature = use.get("signature", sign_digest(signer.private_key, digest))
    return (user.address, provider.address, use["fee"], use["requests"], use["nonce"], signature)


def malleated(signature: bytes) -> dict[str, bytes]:
    """Other spellings of a signature, none of which a contract takes."""
    order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
    high = (order - int.from_bytes(signature[32:64], "big")).to_bytes(32, "big")
    return {
        "v of 0 or 1": signature[:64] + bytes([signature[64] - 27]),
        "high s": signature[:32] + high + bytes([55 - signature[64]]),
        "empty": b"",
        "64 bytes": signature[:64],
    }


__all__ = [
    "CHAIN_ID",
    "FINE_TUNING_NAME",
    "INFERENCE_NAME",
    "ZG",
    "Contract",
    "Event",
    "Machine",
    "Receipt",
    "RevertedError",
    "World",
    "base_world",
    "inference_offer",
    "malleated",
    "offer",
    "refused",
    "sign_settlement",
    "sign_tee_settlement",
]
