"""Accounts and storage of the embedded chain, kept flat: a read is one look into a dictionary, not a walk down a trie.

Theory. The newest state lies in two dictionaries. Each block's changes are kept as they were before and after, so any
other state can be read, or be made the newest one again: go from one to the other along the blocks between them. A
state is named by a hash of its parent's name and its changes, which stands where a Merkle root would; nobody asks a
development chain for proofs. So states with the same content reached in other ways have other names.

A `FlatAccounts` is py-evm's view of one state with a transaction's changes on top, which a list of what was there
before undoes. It lives as long as one piece of work with the chain: no state is made the newest meanwhile.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeVar

from eth.abc import AccountDatabaseAPI, MetaWitnessAPI
from eth.constants import BLANK_ROOT_HASH, EMPTY_SHA3
from eth.db.journal import get_next_checkpoint
from eth.db.witness import MetaWitness
from eth.typing import JournalDBCheckpoint
from eth_typing import Address, Hash32

from zg_async.wire.hashing import keccak256

_T = TypeVar("_T")
_Slot = tuple[bytes, int]
_ABSENT: Final = object()
_OVERLAYS: Final = 8


class Account(NamedTuple):
    """What an address has besides storage."""

    nonce: int = 0
    balance: int = 0
    code_hash: bytes = EMPTY_SHA3


_NOBODY: Final = Account()
_Accounts = dict[bytes, Account | None]
_Storage = dict[_Slot, int]


@dataclass(frozen=True, slots=True)
class _Step:
    """A state's changes to its parent."""

    parent: bytes
    depth: int
    accounts: _Accounts
    storage: _Storage
    old_accounts: _Accounts
    old_storage: _Storage


class Store:
    """All states of a chain."""

    def __init__(self) -> None:
        """Begin with the empty state, whose name is py-evm's empty root."""
        self.codes: dict[bytes, bytes] = {EMPTY_SHA3: b""}
        self._accounts: dict[bytes, Account] = {}
        self._storage: _Storage = {}
        self._at: bytes = BLANK_ROOT_HASH
        self._steps: dict[bytes, _Step] = {}
        self._overlays: dict[bytes, tuple[_Accounts, _Storage]] = {}
        self.with_storage: set[bytes] = set()
        """Addresses that have, or had in some state, a word of storage."""

    def has(self, root: bytes) -> bool:
        """Say whether there is a state of this name."""
        return root == BLANK_ROOT_HASH or root in self._steps

    def account(self, address: bytes) -> Account | None:
        """Read an account of the newest state."""
        return self._accounts.get(address)

    def word(self, slot: _Slot) -> int:
        """Read a word of the newest state."""
        return self._storage.get(slot, 0)

    def slots(self, address: bytes) -> list[_Slot]:
        """List an account's words that aren't zero in the newest state."""
        return [slot for slot in self._storage if slot[0] == address]

    def overlay(self, root: bytes) -> tuple[_Accounts, _Storage]:
        """Return what is different in another state than in the newest one.

        If that one isn't among the newest one's ancestors, it is made the newest itself.
        """
        if root == self._at:
            return {}, {}
        if (known := self._overlays.get(root)) is not None:
            return known
        depth, at = self._depth(root), self._at
        accounts: _Accounts = {}
        storage: _Storage = {}
        while at != root and self._depth(at) > depth:
            step = self._steps[at]
            accounts.update(step.old_accounts)
            storage.update(step.old_storage)
            at = step.parent
        if at != root:
            self.check_out(root)
            return {}, {}
        if len(self._overlays) >= _OVERLAYS:
            self._overlays.pop(next(iter(self._overlays)))
        self._overlays[root] = accounts, storage
        return accounts, storage

    def add(self, parent: bytes, accounts: _Accounts, storage: _Storage) -> bytes:
        """Add a state, make it the newest, and return its name."""
        self.check_out(parent)
        changed = {a: new for a, new in accounts.items() if new != self._accounts.get(a)}
        words = {slot: new for slot, new in storage.items() if new != self._storage.get(slot, 0)}
        if not changed and not words:
            return parent
        root = _name(parent, changed, words)
        self._steps[root] = _Step(
            parent,
            self._depth(parent) + 1,
            changed,
            words,
            {address: self._accounts.get(address) for address in changed},
            {slot: self._storage.get(slot, 0) for slot in words},
        )
        self.with_storage.update(address for address, _ in words)
        self.check_out(root)
        return root

    def check_out(self, root: bytes) -> None:
        """Make a state the newest one."""
        if root == self._at:
            return
        self._overlays.clear()
        forward: list[_Step] = []
        back, there = self._at, root
        while back != there:
            if self._depth(back) >= self._depth(there):
                step = self._steps[back]
                self._put(step.old_accounts, step.old_storage)
                back = step.parent
            else:
                forward.append(self._steps[there])
                there = self._steps[there].parent
        for step in reversed(forward):
            self._put(step.accounts, step.storage)
        self._at = root

    def _put(self, accounts: _Accounts, storage: _Storage) -> None:
        for address, account in accounts.items():
            if account is None:
                self._accounts.pop(address, None)
            else:
                self._accounts[address] = account
        for slot, value in storage.items():
            if value:
                self._storage[slot] = value
            else:
                self._storage.pop(slot, None)

    def _depth(self, root: bytes) -> int:
        return 0 if root == BLANK_ROOT_HASH else self._steps[root].depth


def _name(parent: bytes, accounts: _Accounts, storage: _Storage) -> bytes:
    return keccak256(b"".join([parent, *_pieces(accounts, storage)]))


def _pieces(accounts: _Accounts, storage: _Storage) -> Iterator[bytes]:
    for address, account in sorted(accounts.items()):
        yield address
        if account is not None:
            yield account.nonce.to_bytes(8, "big") + account.balance.to_bytes(32, "big") + account.code_hash
    for (address, slot), value in sorted(storage.items()):
        yield address + slot.to_bytes(32, "big") + value.to_bytes(32, "big")


class Reads:
    """What a call's contracts looked at. Where all of it is the same, the call ends the same."""

    def __init__(self) -> None:
        self.words: _Storage = {}
        self.parts: dict[tuple[str, bytes], Any] = {}
        """What methods of `FlatAccounts` said of addresses."""
        self.time = False
        """Whether they asked for the time."""
        self.block = False
        """Whether they asked for something else of the block."""
        self.balances = False
        """Whether what accounts own may have mattered."""
        self.wrote = False
        """Whether they changed an account: such a call is run again."""

    def hold(self, accounts: "FlatAccounts") -> bool:
        """Say whether all of it, but for time and block, is the same in another state."""
        same_words = all(accounts.get_storage(Address(key[0]), key[1]) == word for key, word in self.words.items())
        return same_words and all(
            getattr(accounts, name)(key) == said
            for (name, key), said in self.parts.items()
            if self.balances or name != "get_balance"
        )


class FlatAccounts(AccountDatabaseAPI):
    """One state with changes on top, as py-evm wants it."""

    def __init__(self, db: Any, state_root: Hash32) -> None:
        """Open a state; `db` is its `Store`."""
        self._store: Store = db
        self._root: Hash32 = state_root
        self._old_accounts, self._old_storage = self._store.overlay(state_root)
        self._accounts: _Accounts = {}
        self._storage: _Storage = {}
        self._before: _Storage = {}
        """Words as they were when the transaction began, of those that it changed."""
        self._warm: dict[Any, bool] = {}
        self._undo: list[tuple[dict[Any, Any], Any, Any]] = []
        self._places: dict[JournalDBCheckpoint, int] = {}
        self.reads: Reads | None = None
        """Where to note what is read of the state below the changes."""

    @property
    def state_root(self) -> Hash32:
        """The name of the state as it was last persisted."""
        return self._root

    @state_root.setter
    def state_root(self, value: Hash32) -> None:
        if value != self._root:
            raise NotImplementedError("a state isn't exchanged for another one")

    def has_root(self, state_root: bytes) -> bool:
        """Say whether there is a state of this name."""
        return self._store.has(state_root)

    def _set(self, where: dict[Any, Any], key: Any, value: Any) -> None:
        if self.reads is not None and where is self._accounts:
            self.reads.wrote = True
        self._undo.append((where, key, where.get(key, _ABSENT)))
        where[key] = value

    # --- storage ---

    def get_storage(self, address: Address, slot: int, from_journal: bool = True) -> int:
        """Read a word, as it is or as it was before the transaction."""
        key = (address, slot)
        if not from_journal and (before := self._before.get(key)) is not None:
            return before
        value = self._storage.get(key)
        if value is not None:
            return value
        value = self._old_storage.get(key)
        if value is None:
            value = self._store.word(key)
        if self.reads is not None:
            self.reads.words[key] = value
        return value

    def set_storage(self, address: Address, slot: int, value: int) -> None:
        """Write a word."""
        key = (address, slot)
        if key not in self._before:
            self._before[key] = self.get_storage(address, slot)
        self._set(self._storage, key, value)

    def delete_storage(self, address: Address) -> None:
        """Clear all of an account's words."""
        if self.reads is not None:
            self.reads.wrote = True
        changed = [slot for slot in self._storage if slot[0] == address]
        if address in self._store.with_storage:
            changed += self._store.slots(address)
            changed += [slot for slot in self._old_storage if slot[0] == address]
        for key in set(changed):
            self.set_storage(address, key[1], 0)

    def is_storage_warm(self, address: Address, slot: int) -> bool:
        """Say whether the transaction has touched a word."""
        return (address, slot) in self._warm

    def mark_storage_warm(self, address: Address, slot: int) -> None:
        """Note that the transaction has touched a word."""
        if (address, slot) not in self._warm:
            self._set(self._warm, (address, slot), True)

    # --- accounts ---

    def _get(self, address: bytes) -> Account | None:
        account = self._accounts.get(address, _ABSENT)
        if account is _ABSENT:
            account = self._old_accounts.get(address, _ABSENT)
        return self._store.account(address) if account is _ABSENT else account  # type: ignore[return-value]

    def _said(self, name: str, address: bytes, value: _T) -> _T:
        if self.reads is not None:
            self.reads.parts[name, address] = value
        return value

    def get_balance(self, address: Address) -> int:
        """Read a balance."""
        return self._said("get_balance", address, (self._get(address) or _NOBODY).balance)

    def set_balance(self, address: Address, balance: int) -> None:
        """Write a balance."""
        self._set(self._accounts, address, (self._get(address) or _NOBODY)._replace(balance=balance))

    def get_nonce(self, address: Address) -> int:
        """Read a nonce."""
        return self._said("get_nonce", address, (self._get(address) or _NOBODY).nonce)

    def set_nonce(self, address: Address, nonce: int) -> None:
        """Write a nonce."""
        self._set(self._accounts, address, (self._get(address) or _NOBODY)._replace(nonce=nonce))

    def increment_nonce(self, address: Address) -> None:
        """Raise a nonce by one."""
        self.set_nonce(address, self.get_nonce(address) + 1)

    def set_code(self, address: Address, code: bytes) -> None:
        """Write code."""
        digest = keccak256(code)
        self._store.codes[digest] = code
        self._set(self._accounts, address, (self._get(address) or _NOBODY)._replace(code_hash=digest))

    def get_code(self, address: Address) -> bytes:
        """Read code."""
        return self._store.codes[self.get_code_hash(address)]

    def get_code_hash(self, address: Address) -> Hash32:
        """Read the hash of code."""
        return self._said("get_code_hash", address, Hash32((self._get(address) or _NOBODY).code_hash))

    def delete_code(self, address: Address) -> None:
        """Remove code."""
        self._set(self._accounts, address, (self._get(address) or _NOBODY)._replace(code_hash=EMPTY_SHA3))

    def account_has_code_or_nonce(self, address: Address) -> bool:
        """Say whether an address is taken."""
        account = self._get(address) or _NOBODY
        taken = account.nonce != 0 or account.code_hash != EMPTY_SHA3
        return self._said("account_has_code_or_nonce", address, taken)

    def delete_account(self, address: Address) -> None:
        """Remove an account with its storage."""
        self.delete_storage(address)
        self._set(self._accounts, address, None)

    def account_exists(self, address: Address) -> bool:
        """Say whether there is an account, even an empty one."""
        return self._said("account_exists", address, self._get(address) is not None)

    def touch_account(self, address: Address) -> None:
        """Make an account exist."""
        if not self.account_exists(address):
            self._set(self._accounts, address, _NOBODY)

    def account_is_empty(self, address: Address) -> bool:
        """Say whether an account has no nonce, balance or code."""
        return self._said("account_is_empty", address, (self._get(address) or _NOBODY) == _NOBODY)

    def is_address_warm(self, address: Address) -> bool:
        """Say whether the transaction has touched an address."""
        return address in self._warm

    def mark_address_warm(self, address: Address) -> None:
        """Note that the transaction has touched an address."""
        if address not in self._warm:
            self._set(self._warm, address, True)

    # --- ways back ---

    def record(self) -> JournalDBCheckpoint:
        """Return a place to go back to, new to all of py-evm's journals: it is used in them, too."""
        checkpoint = get_next_checkpoint()
        self._places[checkpoint] = len(self._undo)
        return checkpoint

    def discard(self, checkpoint: JournalDBCheckpoint) -> None:
        """Go back."""
        place = self._places.pop(checkpoint)
        while len(self._undo) > place:
            where, key, old = self._undo.pop()
            if old is _ABSENT:
                del where[key]
            else:
                where[key] = old

    def commit(self, checkpoint: JournalDBCheckpoint) -> None:
        """Keep what was changed since; going back further is still possible."""
        del self._places[checkpoint]

    def lock_changes(self) -> None:
        """Begin the next transaction."""
        self._before.clear()
        self._warm = {}
        self._undo.clear()

    def make_state_root(self) -> Hash32:
        """Name the state with its changes, and make it the newest."""
        self._root = Hash32(self._store.add(self._root, self._accounts, self._storage))
        self._accounts, self._storage = {}, {}
        self._old_accounts, self._old_storage = {}, {}
        self.lock_changes()
        return self._root

    def persist(self) -> MetaWitnessAPI:
        """Keep the state with its changes."""
        self.make_state_root()
        return MetaWitness(set(), {})
