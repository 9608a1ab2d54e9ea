"""Runs contract code in blocks: a straight run of instructions that is reached often becomes one Python function.

Theory. py-evm spends some microseconds on each instruction, most of it on the stack. In a straight run what is on the
stack is known when it is read: pushes, duplicates and swaps vanish, constants are worked out, and the gas that doesn't
depend on anything is taken at once. A run ends at a branch, and before an instruction that looks at the gas, calls, or
does something rare; those are left to py-evm. It goes through jumps whose target is a constant.

It is exact: gas that is taken at once is what the run would have taken in the end, and it has no end before that which
leaves any. Where less gas is left than that, or the stack is too small or too large, py-evm runs the same instructions
and says what is wrong. A function's source is made of whole numbers and the templates below, nothing else.
"""

import collections
import functools
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from eth.abc import ComputationAPI, MessageAPI, StateAPI, TransactionContextAPI
from eth.exceptions import Halt, InvalidInstruction, InvalidJumpDestination
from eth.vm.computation import NO_RESULT
from eth.vm.forks.prague.computation import PragueComputation
from eth.vm.logic.invalid import InvalidOpcode

from zg_async.wire.hashing import keccak256

_MASK: Final = 2**256 - 1
_SIGN: Final = 2**255
_STACK: Final = 1024
_OFTEN: Final = 8
"""A run is made a function when it is reached for this many times; making one costs as much as running it ten times."""
_LONGEST: Final = 300
_PROGRAMS: Final = 256

_STOP: Final = 0x00
_POP: Final = 0x50
_JUMP: Final = 0x56
_JUMPI: Final = 0x57
_PC: Final = 0x58
_BRANCHES: Final = frozenset({_JUMP, _JUMPI})
_JUMPDEST: Final = 0x5B
_PUSH0: Final = 0x5F
_DUP1: Final = 0x80
_SWAP1: Final = 0x90
_LOG0: Final = 0xA0

_BINARY: Final = {
    0x01: "({a} + {b}) & M",
    0x02: "({a} * {b}) & M",
    0x03: "({a} - {b}) & M",
    0x04: "({a} // {b} if {b} else 0)",
    0x06: "({a} % {b} if {b} else 0)",
    0x0B: "signextend({a}, {b})",
    0x10: "(1 if {a} < {b} else 0)",
    0x11: "(1 if {a} > {b} else 0)",
    0x12: "(1 if ({a} ^ S) < ({b} ^ S) else 0)",
    0x13: "(1 if ({a} ^ S) > ({b} ^ S) else 0)",
    0x14: "(1 if {a} == {b} else 0)",
    0x16: "{a} & {b}",
    0x17: "{a} | {b}",
    0x18: "{a} ^ {b}",
    0x1A: "(({b} >> 8 * (31 - {a})) & 255 if {a} < 32 else 0)",
    0x1B: "(({b} << {a}) & M if {a} < 256 else 0)",
    0x1C: "({b} >> {a} if {a} < 256 else 0)",
    0x1D: "sar({a}, {b})",
}
_UNARY: Final = {0x15: "(0 if {a} else 1)", 0x19: "M - {a}"}
_TERNARY: Final = {0x08: "(({a} + {b}) % {c} if {c} else 0)", 0x09: "({a} * {b} % {c} if {c} else 0)"}
_READS: Final = {
    0x30: "number(C.msg.storage_address)",
    0x33: "number(C.msg.sender)",
    0x34: "C.msg.value",
    0x36: "len(C.msg.data)",
    0x3D: "len(C.return_data)",
}
"""What stays the same during a run."""
_LOOKS: Final = {0x20: "sha3(C, {a}, {b})", 0x35: "calldata(C, {a})", 0x51: "mload(C, {a})", 0x54: "sload(C, {a})"}
_WRITES: Final = {0x52: "mstore(C, {a}, {b})"}
_PURE: Final = _BINARY | _UNARY | _TERNARY
_TAKES: Final = (
    dict.fromkeys(_BINARY, 2)
    | dict.fromkeys(_UNARY, 1)
    | dict.fromkeys(_TERNARY, 3)
    | dict.fromkeys(_READS, 0)
    | {op: text.count("{") for op, text in (_LOOKS | _WRITES).items()}
)
_TEXT: Final = _PURE | _READS | _LOOKS | _WRITES


# --- what functions call ---------------------------------------------------------------------------------------------


def _number(data: bytes) -> int:
    return int.from_bytes(data, "big")


def _signextend(size: int, value: int) -> int:
    if size > 30:
        return value
    sign = 1 << (8 * size + 7)
    return value | (2**256 - sign) if value & sign else value & (sign - 1)


def _sar(shift: int, value: int) -> int:
    signed = value - 2**256 if value & _SIGN else value
    return (signed >> min(shift, 256)) & _MASK


def _mload(computation: Any, start: int) -> int:
    memory = computation._memory._bytes
    if start + 32 > len(memory):
        computation.extend_memory(start, 32)
        memory = computation._memory._bytes
    return int.from_bytes(memory[start : start + 32], "big")


def _mstore(computation: Any, start: int, value: int) -> None:
    memory = computation._memory._bytes
    if start + 32 > len(memory):
        computation.extend_memory(start, 32)
        memory = computation._memory._bytes
    memory[start : start + 32] = value.to_bytes(32, "big")


def _sha3(computation: Any, start: int, size: int) -> int:
    computation.extend_memory(start, size)
    computation.consume_gas(6 * ((size + 31) // 32), "SHA3: word gas cost")
    return _hash(bytes(computation._memory._bytes[start : start + size]))


@functools.lru_cache(maxsize=2**15)
def _hash(data: bytes) -> int:
    """Hash what is mostly a place in storage, asked for again by each call and estimate."""
    return int.from_bytes(keccak256(data), "big")


def _sload(computation: Any, slot: int) -> int:
    state, address = computation.state, computation.msg.storage_address
    if state.is_storage_warm(address, slot):
        computation.consume_gas(100, "SLOAD")
    else:
        state.mark_storage_warm(address, slot)
        computation.consume_gas(2100, "SLOAD")
    return int(state.get_storage(address, slot))


def _calldata(computation: Any, start: int) -> int:
    return int.from_bytes(bytes(computation.msg.data[start : start + 32]).ljust(32, b"\0"), "big")


def _misled(code: bytes, target: int) -> int:
    if target < len(code) and code[target] == _JUMPDEST:
        raise InvalidInstruction("Jump resulted in invalid instruction")
    raise InvalidJumpDestination("Invalid Jump Destination")


_NAMES: Final[Mapping[str, Any]] = {
    "M": _MASK,
    "S": _SIGN,
    "number": _number,
    "signextend": _signextend,
    "sar": _sar,
    "mload": _mload,
    "mstore": _mstore,
    "sha3": _sha3,
    "sload": _sload,
    "calldata": _calldata,
    "misled": _misled,
}


# --- making functions ------------------------------------------------------------------------------------------------


class _Block(NamedTuple):
    run: Callable[[list[Any], Any], int]
    """Takes stack and computation, returns where it goes on."""
    gas: int
    needs: int
    """Words on the stack, at least."""
    room: int
    """Words on the stack, at most."""


class _Writer:
    """Writes the function of one run."""

    def __init__(self, program: "_Program", opcodes: Mapping[int, Any]) -> None:
        self._program = program
        self._opcodes = opcodes
        self._lines: list[str] = []
        self._stack: list[str] = []
        self._depth = 0
        """How many words of the stack at the beginning have been taken over."""
        self._highest = 0
        self._count = 0
        self.gas = 0
        self.length = 0

    def write(self, pc: int) -> _Block | None:
        """Write from a place on; None: nothing there can be written."""
        ends, seen = "", set[int]()
        while self.length < _LONGEST and not ends:
            op = self._program.code[pc] if pc < len(self._program.code) else _STOP
            if op not in _WRITABLE or (op == _JUMPDEST and pc in seen):
                break
            seen.add(pc)
            self.gas += self._opcodes[op].gas_cost if op != 0x54 else 0
            self.length += 1
            pc += 1
            if op == _JUMP:
                target = self._pop()
                if target.isdecimal() and int(target) in self._program.targets:
                    pc = int(target)
                else:
                    ends = f"return {target} if {target} in T else misled(code, {target})"
            elif op == _JUMPI:
                target, condition = self._pop(), self._pop()
                inner = f"({target} if {target} in T else misled(code, {target}))"
                ends = f"return {inner} if {condition} else {pc}"
            else:
                pc = self._straight(op, pc)
        if not self.length:
            return None
        return self._made(ends or f"return {pc}")

    def _straight(self, op: int, pc: int) -> int:
        if _PUSH0 <= op <= _PUSH0 + 32:
            size = op - _PUSH0
            self._push(str(int.from_bytes(self._program.code[pc : pc + size].ljust(size, b"\0"), "big")))
            return pc + size
        if _DUP1 <= op < _SWAP1:
            self._reach(op - _DUP1 + 1)
            self._push(self._stack[-(op - _DUP1 + 1)])
        elif _SWAP1 <= op < _LOG0:
            place = -(op - _SWAP1 + 2)
            self._reach(-place)
            self._stack[-1], self._stack[place] = self._stack[place], self._stack[-1]
        elif op == _POP:
            self._pop()
        elif op == _PC:
            self._push(str(pc - 1))
        elif op != _JUMPDEST:
            self._work(op)
        return pc

    def _work(self, op: int) -> None:
        arguments = [self._pop() for _ in range(_TAKES[op])]
        text = _TEXT[op].format(**dict(zip("abc", arguments, strict=False)))
        if op in _WRITES:
            self._lines.append(text)
        elif op in _PURE and all(argument.isdecimal() for argument in arguments):
            self._push(str(eval(text, dict(_NAMES))))
        else:
            self._count += 1
            self._lines.append(f"t{self._count} = {text}")
            self._push(f"t{self._count}")

    def _reach(self, count: int) -> None:
        while len(self._stack) < count:
            self._depth += 1
            self._stack.insert(0, f"i{self._depth}")

    def _pop(self) -> str:
        self._reach(1)
        return self._stack.pop()

    def _push(self, word: str) -> None:
        self._stack.append(word)
        self._highest = max(self._highest, len(self._stack) - self._depth)

    def _made(self, ends: str) -> _Block:
        words, depth = self._stack, self._depth
        while words and words[0] == f"i{depth}":  # stays where it is
            words, depth = words[1:], depth - 1
        keeps = f"stack[-{depth}:] = ({''.join(word + ',' for word in words)})" if depth else ""
        if not depth and words:
            keeps = f"stack.extend(({''.join(word + ',' for word in words)}))"
        body = "\n    ".join(filter(None, [*self._lines, keeps, ends]))
        loads = "".join(f"    i{n} = stack[-{n}]\n" for n in range(1, self._depth + 1) if _uses(body, f"i{n}"))
        names = {**_NAMES, "T": self._program.targets, "code": self._program.code}
        exec(f"def run(stack, C):\n{loads}    {body}\n", names)
        return _Block(names["run"], self.gas, self._depth, _STACK - self._highest)


def _uses(text: str, name: str) -> bool:
    start = -1
    while (start := text.find(name, start + 1)) >= 0:
        after = text[start + len(name) : start + len(name) + 1]
        if not after.isdecimal() and not text[start - 1 : start].isalnum():
            return True
    return False


_WRITABLE: Final = frozenset(
    {_POP, _JUMP, _JUMPI, _PC, _JUMPDEST, *range(_PUSH0, _PUSH0 + 33), *range(_DUP1, _LOG0), *_TEXT}
)


class _Program:
    """One contract's code, and what has been made of it."""

    def __init__(self, code: bytes) -> None:
        self.code = code
        self.targets = _targets(code)
        self.blocks: dict[int, _Block | None] = {}
        self._reached: collections.Counter[int] = collections.Counter()

    def block(self, pc: int, opcodes: Mapping[int, Any]) -> _Block | None:
        """Return the function for a run, if there is one by now."""
        self._reached[pc] += 1
        if self._reached[pc] < _OFTEN:
            return None
        made = self.blocks[pc] = _Writer(self, opcodes).write(pc)
        return made


def _targets(code: bytes) -> frozenset[int]:
    found, pc = [], 0
    while pc < len(code):
        op = code[pc]
        if op == _JUMPDEST:
            found.append(pc)
        pc += 1 + (op - _PUSH0 if _PUSH0 < op <= _PUSH0 + 32 else 0)
    return frozenset(found)


_programs: collections.OrderedDict[bytes, _Program] = collections.OrderedDict()


def _program(code: bytes) -> _Program:
    known = _programs.get(code)
    if known is None:
        known = _programs[code] = _Program(code)
        if len(_programs) > _PROGRAMS:
            _programs.popitem(last=False)
    return known


# --- running ---------------------------------------------------------------------------------------------------------


class BlockComputation(PragueComputation):
    """A computation that runs in blocks."""

    @classmethod
    def apply_computation(
        cls,
        state: StateAPI,
        message: MessageAPI,
        transaction_context: TransactionContextAPI,
        parent_computation: ComputationAPI | None = None,
    ) -> ComputationAPI:
        """Run a message; what comes before the code is as py-evm has it."""
        with cls(state, message, transaction_context) as computation:
            if computation.is_origin_computation:
                computation.contracts_created = []
                if message.is_create:
                    cls.consume_initcode_gas_cost(computation)
            if parent_computation is not None:
                computation.contracts_created = parent_computation.contracts_created
            if message.is_create:
                computation.contracts_created.append(message.storage_address)
            precompile = computation.precompiles.get(message.code_address, NO_RESULT)
            if precompile is not NO_RESULT:
                if not message.is_delegation:
                    precompile(computation)
                return computation
            _run(computation)
        return computation


def _run(computation: Any) -> None:
    stream, stack, meter = computation.code, computation._stack.values, computation._gas_meter
    opcodes, program = computation.opcodes, _program(stream._raw_code_bytes)
    blocks, code, size, pc = program.blocks, program.code, len(program.code), 0
    while True:
        block = blocks[pc] if pc in blocks else program.block(pc, opcodes)
        if block is not None and meter.gas_remaining >= block.gas and block.needs <= len(stack) <= block.room:
            meter.gas_remaining -= block.gas
            pc = block.run(stack, computation)
            continue
        while True:  # by py-evm, up to where a run may begin
            op = code[pc] if pc < size else _STOP
            stream.program_counter = pc + 1
            try:
                (opcodes.get(op) or InvalidOpcode(op))(computation=computation)
            except Halt:
                return
            if stack and type(stack[-1]) is not int:
                stack[-1] = int.from_bytes(stack[-1], "big")
            pc = stream.program_counter
            if op in _BRANCHES or op not in _WRITABLE:
                break
