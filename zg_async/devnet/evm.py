"""An EVM with a list of blocks on top: py-evm with what a development chain needs and without what it doesn't.

Everything here is synchronous and belongs to one thread at a time. The list `blocks` is the truth: a rewind cuts it,
and state is read through the state root of the block it belongs to. Blocks are built, never validated: nobody else
makes them.

Differences from a stock py-evm chain, each with its reason:
- two blocks may have the same timestamp, so that quick blocks don't drive the chain's clock ahead;
- a signature is checked by recovering the sender once; py-evm does it three times for legacy transactions;
- calls run with the timestamp of the block to come, so that a simulation sees what the next block will see;
- accounts and storage are kept flat (`evm_state`), so state roots are names, not Merkle roots.
"""

import sys
from collections.abc import Iterable, Mapping
from typing import Any

_limit = sys.getrecursionlimit()

import rlp  # type: ignore[import-untyped]  # noqa: E402
from eth.abc import BlockHeaderAPI, ComputationAPI, MessageAPI, SignedTransactionAPI, StateAPI  # noqa: E402
from eth.consensus.context import ConsensusContext  # noqa: E402
from eth.constants import CREATE_CONTRACT_ADDRESS  # noqa: E402
from eth.db.atomic import AtomicDB  # noqa: E402
from eth.db.backends.memory import MemoryDB  # noqa: E402
from eth.db.chain import ChainDB  # noqa: E402
from eth.exceptions import Revert, UnrecognizedTransactionType, VMError  # noqa: E402
from eth.rlp.headers import BlockHeader  # noqa: E402
from eth.vm.chain_context import ChainContext  # noqa: E402
from eth.vm.forks.london.headers import calculate_expected_base_fee_per_gas  # noqa: E402
from eth.vm.forks.prague import PragueVM  # noqa: E402
from eth.vm.forks.prague.state import PragueState, PragueTransactionExecutor  # noqa: E402
from eth.vm.spoof import SpoofTransaction  # noqa: E402
from eth_hash.auto import keccak  # noqa: E402
from eth_keys.exceptions import BadSignature  # noqa: E402
from eth_typing import BlockNumber, Hash32  # noqa: E402
from eth_utils.exceptions import ValidationError  # noqa: E402

from zg_async.devnet.evm_calls import Failure, KnownCalls, NotingComputation  # noqa: E402
from zg_async.devnet.evm_records import (  # noqa: E402
    BadTransactionError,
    CallRequest,
    EvmBlock,
    EvmLog,
    ExecutionFailedError,
    MinedTx,
    SignedTx,
    check_form,
    floor_gas,
    intrinsic_gas_of,
    revert_message,
)
from zg_async.devnet.evm_state import FlatAccounts, Reads, Store  # noqa: E402
from zg_async.logs import get_logger  # noqa: E402

# The imports raise the limit to 100,000 (py_ecc), with which a deeply nested JSON text ends the interpreter. A contract
# calling itself needs about ten Python frames a level and, with 60 million gas, gets some 400 levels deep.
_EVM_RECURSION = 12_288
sys.setrecursionlimit(max(_limit, _EVM_RECURSION))

_log = get_logger("zg_async.devnet.node")
BLOCK_GAS_LIMIT = 60_000_000
CALL_GAS_CAP = 20_000_000
"""A call that never ends runs some seconds with this much."""
INITIAL_BASE_FEE = 10**9
_ANCESTORS = 256


class _Executor(PragueTransactionExecutor):
    def validate_transaction(self, transaction: SignedTransactionAPI) -> None:
        self.vm_state.validate_transaction(transaction)  # form and signature were checked by decode()

    def build_computation(self, message: MessageAPI, transaction: SignedTransactionAPI) -> ComputationAPI:
        """Run the contracts; what they read of the state is noted where that was asked for."""
        state: Any = self.vm_state
        state.noted_by(state.reads)
        if not message.is_create:
            state.get_code_hash(transaction.to)  # the code was read before
        try:
            return super().build_computation(message, transaction)
        finally:
            state.noted_by(None)


class _State(PragueState):
    transaction_executor_class = _Executor
    account_db_class = FlatAccounts
    computation_class = NotingComputation
    reads: Reads | None = None
    """Where to note what a call's contracts read."""
    _account_db: FlatAccounts

    def noted_by(self, reads: Reads | None) -> None:
        """Begin or end noting."""
        self._account_db.reads = reads

    @property
    def timestamp(self) -> int:
        """The block's time."""
        if self.reads is not None:
            self.reads.time = True
        return super().timestamp

    @property
    def block_number(self) -> BlockNumber:
        """The block's number."""
        self._note_block()
        return super().block_number

    @property
    def mix_hash(self) -> Hash32:
        """The block's random number."""
        self._note_block()
        return super().mix_hash

    @property
    def difficulty(self) -> int:
        """The block's random number, by its former name."""
        self._note_block()
        return super().difficulty

    def get_ancestor_hash(self, block_number: int) -> Hash32:
        """Return an earlier block's hash."""
        self._note_block()
        return super().get_ancestor_hash(block_number)

    def _note_block(self) -> None:
        if self.reads is not None:
            self.reads.block = True

    def set_system_contracts(self) -> None:
        """Do nothing: there are none, and looking for them costs two trie reads a call."""


class _Db(ChainDB):
    def persist_trie_data_dict(self, trie_data_dict: dict[Any, bytes]) -> None:
        """Do nothing: transactions and receipts are read from our own records."""


class _Vm(PragueVM):
    _state_class = _State


class Evm:
    """Accounts, contracts and blocks.

    Attributes:
        blocks: All blocks, by number.
    """

    def __init__(
        self,
        balances: Mapping[bytes, int],
        *,
        timestamp: int,
        chain_id: int = 31337,
        gas_limit: int = BLOCK_GAS_LIMIT,
        base_fee: int = INITIAL_BASE_FEE,
    ) -> None:
        """Make a chain of one block.

        Args:
            balances: What each account (20 bytes) owns in the genesis, in neuron.
            timestamp: The genesis' time in unix seconds.
            chain_id: The id inside every transaction.
            gas_limit: Gas in a block.
            base_fee: The genesis' base fee per gas, in neuron.
        """
        self.chain_id = chain_id
        self.gas_limit = gas_limit
        self._context = ChainContext(chain_id)
        self._chaindb = _Db(AtomicDB(MemoryDB()))
        self._store = Store()
        self._forks = 0
        self._calls = KnownCalls(self._store)
        self.blocks: list[EvmBlock] = []
        state = self._state(BlockHeader(difficulty=0, block_number=-1, gas_limit=0))
        for address, amount in balances.items():
            state.set_balance(_address(address), amount)
        state.persist()
        header = _Vm.create_genesis_header(
            difficulty=0,
            timestamp=timestamp,
            gas_limit=gas_limit,
            state_root=state.state_root,
            base_fee_per_gas=base_fee,
            extra_data=b"zg devnet",
        )
        self.blocks.append(_block(header, (), header.state_root))

    @property
    def head(self) -> EvmBlock:
        """The newest block."""
        return self.blocks[-1]

    def next_base_fee(self) -> int:
        """Return the base fee per gas of the block to come, in neuron."""
        return int(calculate_expected_base_fee_per_gas(self.head.header))

    # --- transactions ---

    def decode(self, raw: bytes) -> SignedTx:
        """Read a signed transaction and check all that doesn't depend on state.

        Raises:
            BadTransactionError: With geth's wording.
        """
        try:
            inner = _Vm.get_transaction_builder().decode(raw)
        except UnrecognizedTransactionType as error:
            raise BadTransactionError("transaction type not supported") from error
        except (rlp.RLPException, ValidationError, ValueError, TypeError, IndexError) as error:
            raise BadTransactionError("rlp: the bytes are no signed transaction") from error
        kind = raw[0] if raw[0] < 0x80 else 0
        if kind not in (0, 1, 2):
            raise BadTransactionError("transaction type not supported")
        check_form(inner, kind, self.chain_id, self.gas_limit)
        try:
            sender = bytes(inner.sender)
        except (BadSignature, ValidationError) as error:
            raise BadTransactionError("invalid sender") from error
        return SignedTx(
            raw=raw,
            hash=keccak(raw),
            sender=sender,
            nonce=inner.nonce,
            gas=inner.gas,
            max_fee=inner.max_fee_per_gas,
            max_tip=inner.max_priority_fee_per_gas,
            value=inner.value,
            type=kind,
            to=None if inner.to == CREATE_CONTRACT_ADDRESS else bytes(inner.to),
            data=bytes(inner.data),
            inner=inner,
        )

    def build(
        self, transactions: Iterable[SignedTx], *, timestamp: int, base_fee: int | None = None
    ) -> tuple[EvmBlock, list[SignedTx]]:
        """Append a block.

        Args:
            transactions: In order. Those that don't fit are left out, those that can't run are refused.
            timestamp: At least the head's, in unix seconds.
            base_fee: Overrides the rule of EIP-1559; neuron per gas.

        Returns:
            The block, and the refused transactions.
        """
        header = self._next_header(timestamp, base_fee)
        vm = _Vm(header, self._chaindb, self._context, ConsensusContext(self._chaindb.db))
        vm._state = state = self._state(header)
        receipts: list[Any] = []
        mined: list[MinedTx] = []
        refused: list[SignedTx] = []
        log_index = 0
        halted: set[bytes] = set()  # senders whose later transactions have to wait for a later block
        for tx in transactions:
            if tx.sender in halted:
                continue
            if header.gas_used + tx.gas > header.gas_limit:
                halted.add(tx.sender)
                continue
            computation = _apply(state, tx.inner)
            if computation is None:
                halted.add(tx.sender)
                refused.append(tx)
                continue
            receipt = vm.make_receipt(header, tx.inner, computation, state)
            mined.append(_outcome(tx, receipt, computation, header, len(mined), log_index))
            log_index += len(receipt.logs)
            header = vm.add_receipt_to_header(header, receipt)
            receipts.append(receipt)
        base = _Vm.get_block_class()(header, transactions=[], uncles=[], withdrawals=[])
        filled = vm.set_block_transactions_and_withdrawals(base, header, [m.tx.inner for m in mined], receipts)
        final = vm.finalize_block(filled).block
        block = _block(final.header, tuple(mined), final.header.state_root)
        self.blocks.append(block)
        return block, refused

    def _next_header(self, timestamp: int, base_fee: int | None) -> Any:
        head = self.head
        header = _Vm.create_header_from_parent(  # pyright: ignore[reportAbstractUsage]  each fork has it
            head.header,
            timestamp=timestamp,
            gas_limit=self.gas_limit,
            difficulty=0,
            mix_hash=keccak(head.hash + self._forks.to_bytes(8, "big")),
        )
        header = header.copy(state_root=head.state_root, parent_hash=head.hash)
        return header if base_fee is None else header.copy(base_fee_per_gas=base_fee)

    def rewind(self, number: int) -> list[EvmBlock]:
        """Cut the chain after a block; what is built next differs from what was there.

        Returns:
            The removed blocks, oldest first.
        """
        removed = self.blocks[number + 1 :]
        del self.blocks[number + 1 :]
        self._forks += 1
        return removed

    # --- state ---

    def _state(self, header: BlockHeaderAPI) -> StateAPI:
        last = max(0, header.block_number)
        ancestors = [block.hash for block in reversed(self.blocks[max(0, last - _ANCESTORS) : last])]
        store: Any = self._store  # py-evm hands it on to `FlatAccounts` only
        return _Vm.build_state(store, header, self._context, ancestors)  # type: ignore[arg-type]

    def state_at(self, block: EvmBlock) -> StateAPI:
        """Return py-evm's state after a block; changes to it are lost."""
        return self._state(block.header.copy(state_root=block.state_root))

    def nonce(self, address: bytes, block: EvmBlock | None = None) -> int:
        """Return how many transactions an account has sent."""
        return self.state_at(block or self.head).get_nonce(_address(address))

    def balance(self, address: bytes, block: EvmBlock | None = None) -> int:
        """Return an account's balance in neuron."""
        return self.state_at(block or self.head).get_balance(_address(address))

    def code(self, address: bytes, block: EvmBlock | None = None) -> bytes:
        """Return a contract's code, empty for other accounts."""
        return self.state_at(block or self.head).get_code(_address(address))

    def storage(self, address: bytes, slot: int, block: EvmBlock | None = None) -> int:
        """Return a storage word."""
        return self.state_at(block or self.head).get_storage(_address(address), slot)

    def set_balance(self, address: bytes, amount: int) -> None:
        """Give an account a balance in neuron, outside of any transaction. A rewind below the head undoes it."""
        head = self.head
        state = self.state_at(head)
        state.set_balance(_address(address), amount)
        state.persist()
        self.blocks[-1] = _block(head.header, head.mined, state.state_root)

    # --- calls ---

    def call(self, request: CallRequest, block: EvmBlock, *, timestamp: int | None = None) -> bytes:
        """Run a call on the state after a block.

        Args:
            request: What to call.
            block: Whose state.
            timestamp: What the contract sees as time; None for the block's own.

        Raises:
            ExecutionFailedError: It reverted or failed.
            BadTransactionError: The sender can't pay the value.
        """
        time = block.timestamp if timestamp is None else timestamp
        outcome = self._calls.find(request, block, time)
        if outcome is None:
            reads = Reads()
            gas = min(request.gas or CALL_GAS_CAP, CALL_GAS_CAP)
            computation = self._run(request, block, gas, timestamp, reads)
            outcome = bytes(computation.output), _failure(computation)
            self._calls.keep(request, block, time, outcome, reads)
        output, failure = outcome
        if failure is not None:
            raise ExecutionFailedError(*failure)
        return output

    def estimate(self, request: CallRequest, block: EvmBlock, *, timestamp: int | None = None) -> int:
        """Find a gas limit with which a transaction succeeds, a little above what it uses.

        Raises:
            ExecutionFailedError: It fails with any.
            BadTransactionError: The sender can't pay the value, or gas for it.
        """
        floor = max(intrinsic_gas_of(request.to, request.data), floor_gas(request.data))
        most = min(request.gas or self.gas_limit, self.gas_limit)
        if request.gas_price:
            spare = self.balance(request.sender, block) - request.value
            most = min(most, max(spare, 0) // request.gas_price)
        if most < floor:
            raise BadTransactionError(f"gas required exceeds allowance ({most})")
        computation = self._run(request, block, min(most, CALL_GAS_CAP), timestamp)
        limit = min(most, CALL_GAS_CAP)
        if computation.is_error and computation.get_gas_remaining() == 0 and most > limit:
            limit = most
            computation = self._run(request, block, limit, timestamp)
        if (failure := _failure(computation)) is not None:
            raise ExecutionFailedError(*failure)
        used = max(limit - computation.get_gas_remaining(), floor)  # before refunds, which are paid at the end
        nested = used * 64 // 63 + 2_300  # a contract keeps back a part of its gas from those it calls
        attempts = (nested,) if computation.children else (used, nested)
        for attempt in (*attempts, used * 5 // 4, used * 3 // 2, used * 2):
            if attempt < most and self._run(request, block, attempt, timestamp).is_success:
                return int(attempt)
        return most

    def _run(
        self, request: CallRequest, block: EvmBlock, gas: int, timestamp: int | None, reads: Reads | None = None
    ) -> ComputationAPI:
        if gas < intrinsic_gas_of(request.to, request.data):
            raise BadTransactionError(
                f"intrinsic gas too low: have {gas}, want {intrinsic_gas_of(request.to, request.data)}"
            )
        header = block.header.copy(state_root=block.state_root, base_fee_per_gas=0)
        state: Any = self._state(header if timestamp is None else header.copy(timestamp=timestamp))
        state.reads = reads
        balance = state.get_balance(_address(request.sender))
        if balance < request.value:
            raise BadTransactionError(
                f"insufficient funds for gas * price + value: address 0x{request.sender.hex()} have {balance} "
                f"want {request.value}"
            )
        plain = _Vm.create_unsigned_transaction(
            nonce=state.get_nonce(_address(request.sender)),
            gas_price=request.gas_price,
            gas=gas,
            to=CREATE_CONTRACT_ADDRESS if request.to is None else _address(request.to),
            value=request.value,
            data=request.data,
        )
        try:
            computation: ComputationAPI = state.costless_execute_transaction(
                SpoofTransaction(plain, from_=request.sender)
            )
        except (VMError, RecursionError) as error:  # init code above its limit escapes so
            raise ExecutionFailedError(str(error), None) from error
        except ValidationError as error:
            raise BadTransactionError(str(error)) from error
        return computation


def _failure(computation: ComputationAPI) -> Failure | None:
    """Word how a call failed, as nodes do."""
    if computation.is_success:
        return None
    error = computation.error
    if isinstance(error, Revert):
        data = bytes(computation.output)
        return revert_message(data), data
    name = {"OutOfGas": "out of gas", "InvalidInstruction": "invalid opcode", "InsufficientFunds": "insufficient funds"}
    return name.get(type(error).__name__, str(error) or type(error).__name__), None


def _apply(state: StateAPI, inner: Any) -> ComputationAPI | None:
    state.lock_changes()
    before = state.snapshot()
    try:
        return state.apply_transaction(inner)
    except (ValidationError, VMError, RecursionError) as error:
        _log.warning("a transaction of %s is refused: %r", inner.sender.hex(), error)
        state.revert(before)
        return None


def _outcome(
    tx: SignedTx, receipt: Any, computation: ComputationAPI, header: Any, index: int, first_log: int
) -> MinedTx:
    logs = tuple(
        EvmLog(
            address=bytes(log.address),
            topics=tuple(topic.to_bytes(32, "big") for topic in log.topics),
            data=bytes(log.data),
            index=first_log + place,
            tx_index=index,
            tx_hash=tx.hash,
        )
        for place, log in enumerate(receipt.logs)
    )
    return MinedTx(
        tx=tx,
        index=index,
        status=0 if computation.is_error else 1,
        gas_used=receipt.gas_used - header.gas_used,
        cumulative_gas=receipt.gas_used,
        gas_price=min(tx.max_fee, tx.max_tip + header.base_fee_per_gas),
        bloom=int(receipt.bloom),
        contract=bytes(computation.msg.storage_address) if tx.to is None else None,
        logs=logs,
    )


def _block(header: Any, mined: tuple[MinedTx, ...], state_root: bytes) -> EvmBlock:
    return EvmBlock(
        number=header.block_number,
        hash=bytes(header.hash),
        timestamp=header.timestamp,
        base_fee=header.base_fee_per_gas,
        header=header,
        size=len(rlp.encode(header)) + sum(len(one.tx.raw) for one in mined),
        mined=mined,
        logs=tuple(log for one in mined for log in one.logs),
        state_root=bytes(state_root),
    )


def _address(address: bytes) -> Any:
    return address
