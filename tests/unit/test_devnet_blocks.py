"""Code that runs in blocks does what py-evm does with it, to the last unit of gas, whatever code it is."""

import itertools
import random

import pytest
from eth.vm.forks.prague.computation import PragueComputation
from eth.vm.message import Message
from eth.vm.transaction_context import BaseTransactionContext

from zg_async.devnet import evm, evm_blocks
from zg_async.devnet.evm_blocks import BlockComputation

HERE, OTHER, SENDER = (bytes([number]) * 20 for number in (1, 2, 3))
CONSTANTS = (0, 1, 2, 5, 31, 32, 33, 64, 96, 255, 256, 2**128, 2**255, 2**256 - 1, 2**256 - 32)
STRAIGHT = (
    *range(0x01, 0x0C),
    *range(0x10, 0x1E),
    *(0x30, 0x33, 0x34, 0x36, 0x3D, 0x42, 0x47, 0x50, 0x58, 0x59, 0x5A, 0x5B),
    *range(0x80, 0x88),
    *range(0x90, 0x98),
)


def push(value):
    body = value.to_bytes((value.bit_length() + 7) // 8, "big")
    return bytes([0x5F + len(body)]) + body


def piece(dice, labels):
    """A few instructions; a label is written as 0xB0 and its number, to be replaced by its place."""
    match dice.randrange(16):
        case 0 | 1 | 2 | 3:
            return bytes([dice.choice(STRAIGHT)])
        case 4 | 5 | 6:
            return push(dice.choice(CONSTANTS))
        case 7:
            return push(dice.randrange(200)) + bytes([dice.choice([0x51, 0x35])])
        case 8:
            return push(dice.choice(CONSTANTS)) + push(dice.randrange(200)) + bytes([dice.choice([0x52, 0x53])])
        case 9:
            return push(dice.randrange(3)) + b"\x54"
        case 10:
            return push(dice.randrange(3)) + push(dice.randrange(3)) + b"\x55"
        case 11:
            return push(dice.randrange(100)) + push(dice.randrange(100)) + b"\x20"
        case 12 | 13 if labels:
            return b"\x61\xb0" + bytes([dice.randrange(labels)]) + bytes([dice.choice([0x56, 0x57])])
        case 14:
            target = push(int.from_bytes(dice.choice([HERE, OTHER]), "big"))
            return b"".join(map(push, (32, 0, 32, 0, dice.randrange(2)))) + target + push(3000) + b"\xf1"
        case _:
            return push(32) + push(0) + bytes([dice.choice([0xF3, 0xFD, 0xA0, 0x37, 0x3E, 0x00])])


def program(dice):
    """Code with some places to jump to."""
    labels = dice.randrange(4)
    pieces = [push(dice.choice(CONSTANTS)) for _ in range(dice.randrange(20))]
    pieces += [piece(dice, labels) for _ in range(dice.randrange(5, 60))]
    for number in range(labels):
        pieces.insert(dice.randrange(len(pieces)), bytes([0xB1, number]))
    code, places = bytearray(), {}
    for one in pieces:
        if one[0] == 0xB1:
            places[one[1]] = len(code)
            one = b"\x5b"
        code += one
    for place in range(len(code) - 2):
        if code[place : place + 2] == b"\x61\xb0" and code[place + 2] in places:
            code[place + 1 : place + 3] = places[code[place + 2]].to_bytes(2, "big")
    return bytes(code)


def outcome(kind, codes, data, gas):
    """Run a message; all that can be told of its end."""
    chain = evm.Evm({SENDER: 100}, timestamp=1000)
    setup = chain.state_at(chain.head)
    for address, code in zip((HERE, OTHER), codes, strict=True):
        setup.set_code(address, code)
        setup.set_balance(address, 5)
        setup.set_storage(address, 1, 7)
    setup.persist()
    state = chain._state(chain.head.header.copy(state_root=setup.state_root))
    message = Message(gas=gas, to=HERE, sender=SENDER, value=3, data=data, code=codes[0])
    computation = kind.apply_message(state, message, BaseTransactionContext(gas_price=1, origin=SENDER))
    words = [state.get_storage(address, slot) for address in (HERE, OTHER) for slot in range(3)]
    error = None if computation.is_success else type(computation._error).__name__
    return error, computation.get_gas_remaining(), computation.output, words, computation.get_log_entries()


@pytest.mark.parametrize("seed", range(6))
def test_any_code_ends_as_it_does_in_py_evm(seed, monkeypatch):
    monkeypatch.setattr(evm_blocks, "_OFTEN", 1)
    dice, ends = random.Random(seed), set()
    for _ in range(60):
        codes, data = (program(dice), program(dice)), dice.randbytes(70)
        expected = outcome(PragueComputation, codes, data, 40_000)
        used = 40_000 - expected[1]
        for gas in (40_000, used, used - 1, dice.randrange(used + 1)):
            wanted = outcome(PragueComputation, codes, data, gas)
            assert outcome(BlockComputation, codes, data, gas) == wanted, (codes[0].hex(), codes[1].hex(), gas)
            ends.add(wanted[0])
    assert {None, "OutOfGas", "Revert", "InsufficientStack"} <= ends


def test_a_run_becomes_a_function_only_when_it_is_reached_often():
    code = push(0x1234567) + push(1) + b"\x01\x50\x00"
    for _ in range(evm_blocks._OFTEN + 1):
        assert evm_blocks._program(code).blocks == {} or _ == evm_blocks._OFTEN
        outcome(BlockComputation, (code, b""), b"", 10_000)
    assert evm_blocks._program(code).blocks[0] is not None


@pytest.mark.parametrize("known", [True, False])
def test_every_instruction_gives_what_py_evm_s_gives_at_every_edge(monkeypatch, known):
    """Of words that are known when the function is made, and of those that are read."""
    monkeypatch.setattr(evm_blocks, "_OFTEN", 1)
    data = b"".join(constant.to_bytes(32, "big") for constant in CONSTANTS)

    def word(number):
        return push(CONSTANTS[number]) if known else push(32 * number) + b"\x35"

    dice, every = random.Random(1), range(len(CONSTANTS))
    for op, count in evm_blocks._TAKES.items():
        if op in evm_blocks._PURE:
            cases = list(itertools.product(every, repeat=count))
            code = b""
            for place, case in enumerate(cases if len(cases) < 300 else dice.sample(cases, 200)):
                code += b"".join(map(word, case)) + bytes([op]) + push(32 * place) + b"\x52"
            code += push(32 * 300) + push(0) + b"\xf3"
            expected = outcome(PragueComputation, (code, b""), data, 400_000)
            assert outcome(BlockComputation, (code, b""), data, 400_000) == expected, hex(op)
            assert expected[0] is None


@pytest.mark.parametrize("pushes", [1024, 1025])
def test_no_stack_is_too_large_for_a_run_that_isn_t_for_py_evm(monkeypatch, pushes):
    monkeypatch.setattr(evm_blocks, "_OFTEN", 1)
    code = push(1) * pushes + b"\x50" * 9 + b"\x00"
    expected = outcome(PragueComputation, (code, b""), b"", 40_000)
    assert outcome(BlockComputation, (code, b""), b"", 40_000) == expected
    assert expected[0] == (None if pushes == 1024 else "FullStack")
