"""A chain whose contracts are `contract_model`: stands in for `devnet.evm.Evm` below the devnet's real node."""

import contextvars
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Final

import rlp

from tests.sim.contract_model import Context, Contract, RevertError, State
from zg_async.devnet.evm_records import (
    BadTransactionError,
    CallRequest,
    EvmBlock,
    EvmLog,
    ExecutionFailedError,
    MinedTx,
    SignedTx,
    revert_message,
)
from zg_async.devnet.node_chain import Change, NodeChain
from zg_async.wire import contract_abi
from zg_async.wire.contract_abi import AbiDataError, FunctionAbi
from zg_async.wire.contracts import FUNCTIONS
from zg_async.wire.hashing import checksum_address, keccak256
from zg_async.wire.signing import recover_address

BASE_FEE: Final = 10**9
_NOTHING: Final = bytes(32)
behind: contextvars.ContextVar[int] = contextvars.ContextVar("behind", default=0)
"""By how many blocks the back-end that answers the present request is late."""


def gas_of(data: bytes) -> int:
    """What a transaction uses here: some number that is above what calldata alone costs."""
    return 30_000 + 50 * len(data)


class ModelEvm:
    """Accounts, contracts and blocks, as far as a node asks for them."""

    def __init__(self, state: State, *, timestamp: int, chain_id: int = 31337) -> None:
        self.chain_id = chain_id
        self.gas_limit = 60_000_000
        self.base_fee = BASE_FEE
        self._forks = 0
        self._views: dict[tuple[Any, ...], bytes | RevertError] = {}
        self._states: dict[bytes, State] = {}
        self.all_blocks: list[EvmBlock] = []
        self._append(state, timestamp, BASE_FEE, (), 0)

    @property
    def blocks(self) -> list[EvmBlock]:
        """All blocks, by number, as far as the answering back-end has them."""
        late = behind.get()
        return self.all_blocks[: max(len(self.all_blocks) - late, 1)] if late else self.all_blocks

    @property
    def head(self) -> EvmBlock:
        return self.blocks[-1]

    def next_base_fee(self) -> int:
        return self.base_fee

    @property
    def state(self) -> State:
        """The newest state."""
        return self._states[self.all_blocks[-1].state_root]

    # --- transactions

    def decode(self, raw: bytes) -> SignedTx:
        if raw[:1] != b"\x02":
            raise BadTransactionError("transaction type not supported")
        try:
            fields = rlp.decode(raw[1:])
            chain_id, nonce, tip, fee, gas, to, value, data, _, parity, r, s = fields
        except (rlp.RLPException, ValueError) as error:
            raise BadTransactionError("rlp: the bytes are no signed transaction") from error
        number = [int.from_bytes(field, "big") for field in (chain_id, nonce, tip, fee, gas, value, parity, r, s)]
        if number[0] != self.chain_id:
            raise BadTransactionError(f"invalid chain id for signer: have {number[0]} want {self.chain_id}")
        signature = r.rjust(32, b"\0") + s.rjust(32, b"\0") + bytes([27 + number[6]])
        sender = recover_address(keccak256(b"\x02" + rlp.encode(fields[:9])), signature)
        inner = SimpleNamespace(chain_id=number[0], y_parity=number[6], r=number[7], s=number[8], access_list=())
        return SignedTx(
            raw=raw,
            hash=keccak256(raw),
            sender=bytes.fromhex(sender[2:]),
            nonce=number[1],
            gas=number[4],
            max_fee=number[3],
            max_tip=number[2],
            value=number[5],
            type=2,
            to=to or None,
            data=data,
            inner=inner,
        )

    def build(
        self, transactions: Iterable[SignedTx], *, timestamp: int, base_fee: int | None = None
    ) -> tuple[EvmBlock, list[SignedTx]]:
        fee = self.base_fee if base_fee is None else base_fee
        state, mined, refused, used, logs = self.state, list[MinedTx](), list[SignedTx](), 0, 0
        halted: set[bytes] = set()
        for tx in transactions:
            if tx.sender in halted:
                continue
            done = self._apply(_copy(state), tx, timestamp, fee)
            if done is None:
                halted.add(tx.sender)
                refused.append(tx)
                continue
            state, ok, entries = done
            gas = min(gas_of(tx.data), tx.gas)
            used += gas
            mined.append(
                MinedTx(
                    tx=tx,
                    index=len(mined),
                    status=int(ok),
                    gas_used=gas,
                    cumulative_gas=used,
                    gas_price=min(tx.max_fee, fee + tx.max_tip),
                    bloom=0,
                    contract=None,
                    logs=tuple(
                        EvmLog(
                            address=bytes.fromhex(address[2:]),
                            topics=topics,
                            data=data,
                            index=logs + place,
                            tx_index=len(mined),
                            tx_hash=tx.hash,
                        )
                        for place, (address, topics, data) in enumerate(entries)
                    ),
                )
            )
            logs += len(entries)
        return self._append(state, timestamp, fee, tuple(mined), used), refused

    def _apply(self, state: State, tx: SignedTx, timestamp: int, fee: int) -> tuple[State, bool, Any] | None:
        sender = checksum_address(tx.sender)
        price = min(tx.max_fee, fee + tx.max_tip)
        gas = min(gas_of(tx.data), tx.gas)
        if state.nonces.get(sender, 0) != tx.nonce or state.balances.get(sender, 0) < tx.cost or tx.max_fee < fee:
            return None
        state.nonces[sender] = tx.nonce + 1
        state.balances[sender] -= gas * price
        state.burnt += gas * price
        if tx.gas < gas_of(tx.data):
            return state, False, ()
        tried = _copy(state)
        ctx = Context(sender, tx.value, timestamp, tried)
        try:
            _execute(ctx, "" if tx.to is None else checksum_address(tx.to), tx.data)
        except RevertError:
            return state, False, ()
        return tried, True, ctx.logs

    def _append(self, state: State, timestamp: int, fee: int, mined: tuple[MinedTx, ...], used: int) -> EvmBlock:
        number = len(self.all_blocks)
        parent = self.all_blocks[-1].hash if self.all_blocks else _NOTHING
        seed = f"{number}/{self._forks}/{timestamp}".encode() + parent + b"".join(one.tx.hash for one in mined)
        digest = keccak256(seed)
        if not mined and self.all_blocks:
            root = self.all_blocks[-1].state_root
        else:
            root = digest
            self._states[root] = state
        header = SimpleNamespace(
            parent_hash=parent,
            gas_limit=self.gas_limit,
            gas_used=used,
            state_root=root,
            **_HEADER,
        )
        block = EvmBlock(
            number=number,
            hash=digest,
            timestamp=timestamp,
            base_fee=fee,
            header=header,
            size=500,
            mined=mined,
            logs=tuple(log for one in mined for log in one.logs),
            state_root=root,
        )
        self.all_blocks.append(block)
        return block

    def rewind(self, number: int) -> list[EvmBlock]:
        removed = self.all_blocks[number + 1 :]
        del self.all_blocks[number + 1 :]
        self._forks += 1
        return removed

    # --- state

    def state_at(self, block: EvmBlock) -> Any:
        state = self._states[block.state_root]
        return SimpleNamespace(
            get_nonce=lambda who: state.nonces.get(checksum_address(who), 0),
            get_balance=lambda who: state.balances.get(checksum_address(who), 0),
        )

    def nonce(self, address: bytes, block: EvmBlock | None = None) -> int:
        return int(self.state_at(block or self.head).get_nonce(address))

    def balance(self, address: bytes, block: EvmBlock | None = None) -> int:
        return int(self.state_at(block or self.head).get_balance(address))

    def code(self, address: bytes, block: EvmBlock | None = None) -> bytes:
        return b"\x60" if checksum_address(address) in self._states[(block or self.head).state_root].contracts else b""

    def storage(self, address: bytes, slot: int, block: EvmBlock | None = None) -> int:
        raise BadTransactionError("the model has no storage")

    def set_balance(self, address: bytes, amount: int) -> None:
        self.state.balances[checksum_address(address)] = amount

    # --- calls

    def call(self, request: CallRequest, block: EvmBlock, *, timestamp: int | None = None) -> bytes:
        answer = self._run(request, block, block.timestamp if timestamp is None else timestamp)
        if isinstance(answer, RevertError):
            raise ExecutionFailedError(revert_message(answer.data), answer.data)
        return answer

    def estimate(self, request: CallRequest, block: EvmBlock, *, timestamp: int | None = None) -> int:
        self.call(request, block, timestamp=timestamp)
        return gas_of(request.data)

    def _run(self, request: CallRequest, block: EvmBlock, timestamp: int) -> bytes | RevertError:
        state = self._states[block.state_root]
        sender = checksum_address(request.sender)
        if state.balances.get(sender, 0) < request.value:
            raise BadTransactionError(
                f"insufficient funds for gas * price + value: address {sender.lower()} have "
                f"{state.balances.get(sender, 0)} want {request.value}"
            )
        to = "" if request.to is None else checksum_address(request.to)
        function = _function(state.contracts.get(to), request.data)
        is_view = function is not None and function.mutability == "view"
        key = (block.state_root, request.sender, to, request.data, request.value)
        if is_view and key in self._views:
            return self._views[key]
        ctx = Context(sender, request.value, timestamp, state if is_view else _copy(state))
        answer: bytes | RevertError
        try:
            answer = _execute(ctx, to, request.data)
        except RevertError as revert:
            answer = revert
        if is_view:
            self._views[key] = answer
        return answer


_HEADER: Final[Mapping[str, Any]] = {
    "uncles_hash": _NOTHING,
    "coinbase": bytes(20),
    "transaction_root": _NOTHING,
    "receipt_root": _NOTHING,
    "bloom": 0,
    "difficulty": 0,
    "extra_data": b"",
    "mix_hash": _NOTHING,
    "nonce": bytes(8),
    "withdrawals_root": _NOTHING,
    "blob_gas_used": 0,
    "excess_blob_gas": 0,
    "parent_beacon_block_root": _NOTHING,
    "requests_hash": _NOTHING,
}


def _copy(state: State) -> State:
    copied: State = pickle.loads(pickle.dumps(state, pickle.HIGHEST_PROTOCOL))
    return copied


def _function(contract: Contract | None, data: bytes) -> FunctionAbi | None:
    return None if contract is None else FUNCTIONS[contract.NAME].get(data[:4])


def _execute(ctx: Context, to: str, data: bytes) -> bytes:
    """Run one call; money moves with it."""
    contract = ctx.state.contracts.get(to)
    if contract is None:
        ctx.state.pay(ctx.sender, to, ctx.value)
        return b""
    function = _function(contract, data)
    method = None if function is None else getattr(contract, function.name, None)
    if function is None or (ctx.value and function.mutability != "payable"):
        raise contract.refuse("DirectDepositsDisabled") if not data else RevertError(b"")
    if method is None:
        raise NotImplementedError(f"the model lacks {contract.NAME}.{function.name}")
    try:
        arguments = contract_abi.decode(function.inputs, data[4:], limits=False)
    except AbiDataError:
        raise RevertError(b"") from None
    ctx.state.pay(ctx.sender, to, ctx.value)
    answer = method(ctx, *arguments)
    return contract_abi.encode(function.outputs, answer) if function.outputs else b""


class ModelChain(NodeChain):
    """A node's chain of which some back-ends are late."""

    saw: Callable[[SignedTx], None] = staticmethod(lambda tx: None)
    """Told of each transaction that was taken in."""

    def accept(self, raw: bytes) -> SignedTx:
        tx = super().accept(raw)
        self.saw(tx)
        return tx

    def replace(self, depth: int, loses: Callable[[Sequence[MinedTx]], Iterable[MinedTx]]) -> Change:
        """Put empty blocks in the place of the newest ones; what they held waits again, except what is lost."""
        depth = min(depth, self.head.number)
        if not depth:
            return Change()
        removed = self._rewind(self.head.number - depth)
        mined = [one for block in removed for one in block.mined]
        lost = {one.tx.hash for one in loses(mined)}
        self._restore(one.tx for one in mined if one.tx.hash not in lost)
        return Change(removed=removed, added=self.mine(depth, empty=True).added)

    def mined(self, tx_hash: bytes) -> tuple[EvmBlock, MinedTx] | None:
        found = super().mined(tx_hash)
        return found if found is not None and found[0].number <= self.evm.head.number else None


def mined_transactions(evm: ModelEvm) -> list[MinedTx]:
    """All that is on the chain, in order."""
    return [one for block in evm.all_blocks for one in block.mined]


def conserved(state: State) -> int:
    """All money there is, what was burnt included."""
    return sum(state.balances.values()) + state.burnt


def check_books(state: State) -> None:
    """The contracts' own books: what they owe is what they hold."""
    ledger, tuning = state.ledger, state.fine_tuning
    for user, purse in ledger.purses.items():
        bound = sum(account.balance for key, account in tuning.accounts.items() if key[0] == user)
        assert purse.total == purse.available + bound, (user, purse, bound)
    assert state.balances.get(ledger.address, 0) == sum(purse.available for purse in ledger.purses.values())
    held = sum(account.balance for account in tuning.accounts.values()) + sum(o.stake for o in tuning.offers.values())
    assert state.balances.get(tuning.address, 0) == held
    for account in tuning.accounts.values():
        assert account.pending == sum(amount for amount, _ in account.refunds[: account.live]) <= account.balance
