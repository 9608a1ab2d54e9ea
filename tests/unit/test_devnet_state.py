"""The chain's flat state holds what py-evm's tries hold, through any changes, ways back, blocks and forks."""

import random

import pytest
from eth.constants import BLANK_ROOT_HASH
from eth.db.account import AccountDB
from eth.db.atomic import AtomicDB
from eth.db.backends.memory import MemoryDB
from eth.db.journal import get_next_checkpoint

from zg_async.devnet.evm_state import FlatAccounts, Store

ADDRESSES = [bytes([number]) * 20 for number in range(1, 5)]
SLOTS = (0, 1, 2**255)


def content(state, *, before=True):
    """All that can be read; with `before` also the words from before the transaction."""
    words = [
        state.get_storage(address, slot, journal)
        for address in ADDRESSES
        for slot in SLOTS
        for journal in ((True, False) if before else (True,))
    ]
    accounts = [
        (
            state.get_balance(address),
            state.get_nonce(address),
            state.get_code(address),
            state.get_code_hash(address),
            state.account_exists(address),
            state.account_is_empty(address),
            state.account_has_code_or_nonce(address),
            state.is_address_warm(address),
            state.is_storage_warm(address, 1),
        )
        for address in ADDRESSES
    ]
    return words, accounts


def change(dice, removals):
    """Something to do with both, as a name and its arguments."""
    address, slot = dice.choice(ADDRESSES), dice.choice(SLOTS)
    return dice.choice(
        [
            ("set_storage", address, slot, dice.randrange(3)),
            ("set_storage", address, slot, dice.randrange(2**256)),
            ("set_balance", address, dice.randrange(4)),
            ("set_nonce", address, dice.randrange(3)),
            ("increment_nonce", address),
            ("set_code", address, bytes([dice.randrange(3)])),
            ("delete_code", address),
            ("delete_account" if removals else "touch_account", address),
            ("touch_account", address),
            ("mark_address_warm", address),
            ("mark_storage_warm", address, slot),
        ]
    )


def transaction(dice, states, removals):
    """Do the same to all: changes with places to go back to, some of which are gone back to."""
    open_places = []
    for _ in range(dice.randrange(1, 12)):
        match dice.randrange(6):
            case 0:
                open_places.append([state.record() for state in states])
            case 1 if open_places:
                places = open_places.pop()
                for state, place in zip(states, places, strict=True):
                    state.discard(place)
            case 2 if open_places:
                places = open_places.pop()
                for state, place in zip(states, places, strict=True):
                    state.commit(place)
            case _:
                name, *arguments = change(dice, removals)
                for state in states:
                    if name == "set_storage":  # who writes storage exists
                        state.touch_account(arguments[0])
                    getattr(state, name)(*arguments)
        yield
    while open_places:
        for state, place in zip(states, open_places.pop(), strict=True):
            state.commit(place)
    for state in states:
        state.lock_changes()
    yield


@pytest.mark.parametrize("seed", range(6))
def test_it_holds_what_tries_hold_on_any_branch(seed):
    """Of a removed account py-evm forgets what its words were before the transaction; nothing asks for that."""
    removals = seed % 2 == 0
    dice, base, store = random.Random(seed), AtomicDB(MemoryDB()), Store()
    known = {(BLANK_ROOT_HASH, BLANK_ROOT_HASH): content(AccountDB(base, BLANK_ROOT_HASH))}
    for _ in range(25):
        trie_root, flat_root = dice.choice(list(known)[-3:] + list(known)[:1])
        states = AccountDB(base, trie_root), FlatAccounts(store, flat_root)
        for _ in range(dice.randrange(1, 4)):
            for _ in transaction(dice, states, removals):
                assert content(states[0], before=not removals) == content(states[1], before=not removals)
        for state in states:
            state.persist()
        roots = tuple(state.state_root for state in states)
        known[roots] = content(AccountDB(base, roots[0]))
        for (_, root), expected in dice.sample(sorted(known.items()), min(4, len(known))):
            assert store.has(root)
            assert content(FlatAccounts(store, root)) == expected


def test_nothing_changed_is_the_same_state_and_another_change_another():
    store = Store()
    one = FlatAccounts(store, BLANK_ROOT_HASH)
    one.set_balance(ADDRESSES[0], 5)
    one.persist()
    same = FlatAccounts(store, one.state_root)
    same.set_balance(ADDRESSES[0], 5)
    same.persist()
    assert same.state_root == one.state_root != BLANK_ROOT_HASH
    same.set_balance(ADDRESSES[0], 6)
    same.persist()
    assert same.state_root != one.state_root


def test_a_checkpoint_is_new_to_every_journal_of_py_evm():
    """One that was there already lets py-evm refuse a transaction, which then is never mined."""
    state = FlatAccounts(Store(), BLANK_ROOT_HASH)
    numbers = [get_next_checkpoint(), state.record(), state.record(), get_next_checkpoint()]
    assert numbers == sorted(set(numbers))
