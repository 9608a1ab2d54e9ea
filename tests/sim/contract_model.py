"""The ledger and the serving contracts in Python: the same results, errors and events as the Solidity ones.

`tests/sim/test_chain_model.py` holds it to the real contracts with random calls. Each method has its ABI name and takes
the decoded arguments; `RevertError` undoes everything, because a caller works on a copy of the state.
"""

import dataclasses
from typing import Any, Final

from zg_async.devnet.deploy import FINE_TUNING_NAME, INFERENCE_NAME
from zg_async.errors import SignatureMismatchError
from zg_async.units import NEURON_PER_0G
from zg_async.wire import contract_abi as abi_of
from zg_async.wire.contract_tables import FINE_TUNING, INFERENCE, LEDGER
from zg_async.wire.hashing import keccak256
from zg_async.wire.signing import recover_address, settlement_digest

NOBODY: Final = "0x" + "00" * 20
STAKE: Final = 100 * NEURON_PER_0G
_RING: Final = 20
_REFUNDS: Final = 5
_PAGE: Final = 50


class RevertError(Exception):
    """A call that a contract refuses, with its revert data."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data.hex())
        self.data = data


def text_revert(text: str) -> RevertError:
    body = text.encode()
    padded = body.ljust(-(-len(body) // 32) * 32, b"\0")
    return RevertError(bytes.fromhex("08c379a0") + _word(32) + _word(len(body)) + padded)


def _word(number: int) -> bytes:
    return number.to_bytes(32, "big")


@dataclasses.dataclass(slots=True)
class Context:
    """One call from outside: who, with what, when, and what it logs."""

    sender: str
    value: int
    timestamp: int
    state: "State"
    logs: list[tuple[str, tuple[bytes, ...], bytes]] = dataclasses.field(default_factory=list)


class State:
    """All that a block's state root stands for."""

    def __init__(self, *, chain_id: int, ledger: str, fine_tuning: str, inference: str, owner: str) -> None:
        self.balances: dict[str, int] = {}
        self.nonces: dict[str, int] = {}
        self.burnt = 0
        self.ledger = Ledger(ledger, owner)
        self.fine_tuning = FineTuning(fine_tuning, owner, ledger, chain_id)
        self.inference = Serving(inference, owner, ledger)

    @property
    def contracts(self) -> "dict[str, Contract]":
        return {one.address: one for one in (self.ledger, self.fine_tuning, self.inference)}

    def pay(self, sender: str, to: str, amount: int) -> None:
        if amount:
            self.balances[sender] = self.balances.get(sender, 0) - amount
            self.balances[to] = self.balances.get(to, 0) + amount


class Contract:
    """What they share: an owner, errors and events by name."""

    NAME: str

    def __init__(self, address: str, owner: str) -> None:
        self.address = address
        self.own = owner

    def refuse(self, error: str, *arguments: Any) -> RevertError:
        abi = next(entry for entry in abi_of.contract_abi(self.NAME).errors if entry.name == error)
        return RevertError(abi.selector + abi_of.encode(abi.inputs, arguments))

    def emit(self, ctx: Context, event: str, *arguments: Any) -> None:
        abi = next(entry for entry in abi_of.contract_abi(self.NAME).events if entry.name == event)
        pairs = list(zip(abi.inputs, arguments, strict=True))
        topics = [abi_of.encode((param,), (value,)) for param, value in pairs if param.indexed]
        rest = [(param, value) for param, value in pairs if not param.indexed]
        data = abi_of.encode([param for param, _ in rest], [value for _, value in rest])
        ctx.logs.append((self.address, (abi.topic, *topics), data))

    def require_owner(self, ctx: Context) -> None:
        if ctx.sender != self.own:
            raise text_revert("Ownable: caller is not the owner")

    def owner(self, _: Context) -> Any:
        return (self.own,)

    def initialized(self, _: Context) -> Any:
        return (True,)


@dataclasses.dataclass(slots=True)
class Purse:
    """A user's ledger."""

    available: int
    total: int
    info: str
    providers: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    """By the service's address, in the contract's order."""


class Ledger(Contract):
    NAME = LEDGER

    def __init__(self, address: str, owner: str) -> None:
        super().__init__(address, owner)
        self.purses: dict[str, Purse] = {}
        self.users: list[str] = []
        self.services: dict[str, str] = {}
        """Address by full name."""
        self.least = 3 * NEURON_PER_0G
        self.least_transfer = NEURON_PER_0G

    # --- money

    def addLedger(self, ctx: Context, info: str) -> Any:
        self._require_minimum(ctx.value)
        self._check_info(info)
        if ctx.sender in self.purses:
            raise self.refuse("LedgerExists", ctx.sender)
        self._open(ctx, ctx.sender, info)
        return ctx.value, 0

    def depositFund(self, ctx: Context) -> Any:
        self._deposit(ctx, ctx.sender)

    def depositFundFor(self, ctx: Context, recipient: str) -> Any:
        if recipient == NOBODY:
            raise self.refuse("ZeroAddressNotAllowed")
        self._deposit(ctx, recipient)

    def updateAdditionalInfo(self, ctx: Context, info: str) -> Any:
        self._check_info(info)
        self._purse(ctx.sender).info = info
        self.emit(ctx, "LedgerInfoUpdated", ctx.sender, info)

    def refund(self, ctx: Context, amount: int) -> Any:
        purse = self._purse(ctx.sender)
        if purse.available < amount:
            raise self.refuse("InsufficientBalance", ctx.sender)
        if purse.available != amount:
            self._require_minimum(purse.available - amount)
        purse.available -= amount
        purse.total -= amount
        if not purse.total:
            self._close(ctx, ctx.sender)
        ctx.state.pay(self.address, ctx.sender, amount)

    def transferFund(self, ctx: Context, provider: str, name: str, amount: int) -> Any:
        purse, service = self._purse(ctx.sender), self._service(ctx, name)
        known = purse.providers.setdefault(service.address, [])
        leaving = amount
        if provider in known:
            cancelled = min(service.account(ctx.sender, provider).pending, amount)
            leaving -= cancelled
        else:
            cancelled = 0
            if amount < self.least_transfer:
                raise self.refuse("MinimumDepositRequired", amount, self.least_transfer)
            if len(known) >= 50:
                raise self.refuse("TooManyProvidersForService", len(known), 50)
        if purse.available < leaving:
            raise self.refuse("InsufficientAvailableBalance", purse.available, leaving)
        purse.available -= leaving
        ctx.state.pay(self.address, service.address, leaving)
        inner = dataclasses.replace(ctx, sender=self.address, value=leaving)
        try:
            if provider in known:
                service.depositFund(inner, ctx.sender, provider, cancelled)
            else:
                known.append(provider)
                service.addAccount(inner, ctx.sender, provider, purse.info)
        except RevertError:
            raise self.refuse("CallFailed") from None

    def retrieveFund(self, ctx: Context, providers: Any, name: str) -> Any:
        if len(providers) > 20:
            raise self.refuse("TooManyProviders", len(providers), 20)
        service, purse = self._service(ctx, name), self._purse(ctx.sender)
        inner = dataclasses.replace(ctx, sender=self.address, value=0)
        for provider in providers:
            if provider in purse.providers.get(service.address, ()):
                purse.available += service.processRefund(inner, ctx.sender, provider)[0]
                service.requestRefundAll(inner, ctx.sender, provider)

    def deleteLedger(self, ctx: Context) -> Any:
        total = self._purse(ctx.sender).total
        if total:
            raise self.refuse("MustWithdrawAllFundsFirst", total)
        self._close(ctx, ctx.sender)

    def spendFund(self, ctx: Context, user: str, amount: int) -> Any:
        if ctx.sender not in self.services.values():
            raise self.refuse("CallerNotRegisteredService", ctx.sender)
        purse = self._purse(user)
        if purse.total - purse.available < amount:
            raise self.refuse("InsufficientAvailableBalance", purse.total - purse.available, amount)
        purse.total -= amount
        self.emit(ctx, "FundSpent", user, ctx.sender, amount)

    # --- views

    def MIN_ACCOUNT_BALANCE(self, _: Context) -> Any:
        return (self.least,)

    def MIN_TRANSFER_AMOUNT(self, _: Context) -> Any:
        return (self.least_transfer,)

    def MAX_PROVIDERS_PER_BATCH(self, _: Context) -> Any:
        return (20,)

    def MAX_PROVIDERS_PER_USER_PER_SERVICE(self, _: Context) -> Any:
        return (50,)

    def MAX_SERVICES(self, _: Context) -> Any:
        return (500,)

    def MAX_ADDITIONAL_INFO_LENGTH(self, _: Context) -> Any:
        return (4096,)

    def getLedger(self, _: Context, user: str) -> Any:
        return (self._row(user, self._purse(user)),)

    def getAllLedgers(self, _: Context, offset: int, limit: int) -> Any:
        page = self.users[offset : offset + (limit or _PAGE)]
        return [self._row(user, self.purses[user]) for user in page], len(self.users)

    def getLedgerProviders(self, ctx: Context, user: str, name: str) -> Any:
        service, purse = self._service(ctx, name), self.purses.get(user)
        return (list(purse.providers.get(service.address, ())) if purse else [],)

    def getServiceAddressByName(self, _: Context, name: str) -> Any:
        return (self.services.get(name, NOBODY),)

    def getRecommendedService(self, _: Context, kind: str) -> Any:
        if f"{kind}-v1.0" not in self.services:
            raise self.refuse("NoRecommendedService", kind)
        return "v1.0", self.services[f"{kind}-v1.0"]

    def getAllActiveServices(self, _: Context) -> Any:
        return ([self._info(name) for name in self.services],)

    def getServiceInfo(self, _: Context, address: str) -> Any:
        name = next((name for name, known in self.services.items() if known == address), None)
        return (self._info(name) if name else (NOBODY, NOBODY, "", "", "", "", False, 0),)

    def _info(self, name: str) -> Any:
        kind, version = name.rsplit("-", 1)
        address = self.services[name]
        return address, address, kind, version, name, "", True, 1

    # --- inside

    def _row(self, user: str, purse: Purse) -> Any:
        return user, purse.available, purse.total, purse.info

    def _purse(self, user: str) -> Purse:
        if user not in self.purses:
            raise self.refuse("LedgerNotExists", user)
        return self.purses[user]

    def _service(self, ctx: Context, name: str) -> "Serving":
        if name not in self.services:
            raise self.refuse("ServiceNotFound", NOBODY)
        return {INFERENCE_NAME: ctx.state.inference, FINE_TUNING_NAME: ctx.state.fine_tuning}[name]

    def _deposit(self, ctx: Context, user: str) -> None:
        if not ctx.value:
            raise self.refuse("ZeroAmountNotAllowed")
        if user in self.purses:
            self.purses[user].available += ctx.value
            self.purses[user].total += ctx.value
        else:
            self._require_minimum(ctx.value)
            self._open(ctx, user, "")

    def _open(self, ctx: Context, user: str, info: str) -> None:
        self.users.append(user)
        self.purses[user] = Purse(ctx.value, ctx.value, info)

    def _close(self, ctx: Context, user: str) -> None:
        inner = dataclasses.replace(ctx, sender=self.address, value=0)
        for service in (ctx.state.inference, ctx.state.fine_tuning):
            known = self.purses[user].providers.get(service.address, [])
            while known:
                provider = known[0]
                _swap_out(known, provider)
                service.deleteAccount(inner, user, provider)
        _swap_out(self.users, user)
        del self.purses[user]

    def _require_minimum(self, amount: int) -> None:
        if amount < self.least:
            raise self.refuse("MinimumDepositRequired", amount, self.least)

    def _check_info(self, info: str) -> None:
        if len(info.encode()) > 4096:
            raise self.refuse("AdditionalInfoTooLong", len(info.encode()), 4096)


def _swap_out(words: list[Any], word: Any) -> None:
    """Remove as the contract's set does: the last word moves into the gap."""
    place = words.index(word)
    words[place] = words[-1]
    words.pop()


@dataclasses.dataclass(slots=True)
class Delivered:
    root: bytes
    timestamp: int
    secret: bytes = b""
    acknowledged: bool = False
    settled: bool = False


@dataclasses.dataclass(slots=True)
class SubAccount:
    nonce: int = 0
    balance: int = 0
    pending: int = 0
    live: int = 0
    refunds: list[list[int]] = dataclasses.field(default_factory=list)
    """Amount and time; what is behind `live` is stale."""
    info: str = ""
    acknowledged: bool = False
    head: int = 0
    ids: list[str] = dataclasses.field(default_factory=list)
    """By place; the oldest is at `head` once all are taken."""
    delivered: dict[str, Delivered] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(slots=True)
class Offer:
    url: str
    quota: Any
    price: int
    occupied: bool
    models: list[str]
    signer: str
    approved: bool
    stake: int


class Serving(Contract):
    NAME = INFERENCE

    def __init__(self, address: str, owner: str, ledger: str) -> None:
        super().__init__(address, owner)
        self.ledger = ledger
        self.lock = 86_400
        self.accounts: dict[tuple[str, str], SubAccount] = {}
        """Also deleted ones: their nonce stays."""
        self.keys: list[tuple[str, str]] = []
        self.keys_of: dict[str, list[tuple[str, str]]] = {}
        """By user, and by provider with a mark."""
        self.offers: dict[str, Offer] = {}
        self.providers: list[str] = []

    # --- for the ledger

    def addAccount(self, ctx: Context, user: str, provider: str, info: str) -> Any:
        self._require_ledger(ctx)
        if len(info.encode()) > 4096:
            raise self.refuse("AdditionalInfoTooLong")
        key = user, provider
        if key in self.keys:
            raise self.refuse("AccountExists", user, provider)
        self.keys.append(key)
        self.keys_of.setdefault(user, []).append(key)
        self.keys_of.setdefault(f"p{provider}", []).append(key)
        account = self.accounts.setdefault(key, SubAccount())
        account.balance, account.info, account.acknowledged = ctx.value, info, True
        self.emit(ctx, "BalanceUpdated", user, provider, ctx.value, 0)

    def depositFund(self, ctx: Context, user: str, provider: str, cancelled: int) -> Any:
        self._require_ledger(ctx)
        account = self.account(user, provider)
        self._unrequest(account, cancelled)
        account.balance += ctx.value
        account.acknowledged = True
        self.emit(ctx, "BalanceUpdated", user, provider, account.balance, account.pending)

    def requestRefundAll(self, ctx: Context, user: str, provider: str) -> Any:
        self._require_ledger(ctx)
        account = self.account(user, provider)
        amount = account.balance - account.pending
        if amount:
            if account.live >= _REFUNDS:
                raise self.refuse("TooManyRefunds", user, provider)
            if account.live == len(account.refunds):
                account.refunds.append([0, 0])
            account.refunds[account.live] = [amount, ctx.timestamp]
            account.live += 1
            account.pending += amount
        if account.live:
            self.emit(ctx, "RefundRequested", user, provider, account.live - 1, ctx.timestamp)

    def processRefund(self, ctx: Context, user: str, provider: str) -> Any:
        self._require_ledger(ctx)
        account = self.account(user, provider)
        taken = kept = 0
        for place in range(account.live):
            amount, created = account.refunds[place]
            if ctx.timestamp >= created + self.lock:
                taken += amount
            else:
                account.refunds[kept] = [amount, created]
                kept += 1
        account.live = kept
        if taken:
            account.balance -= taken
            account.pending -= taken
            self.emit(ctx, "BalanceUpdated", user, provider, account.balance, account.pending)
            ctx.state.pay(self.address, self.ledger, taken)
        return taken, account.balance, account.pending

    def deleteAccount(self, ctx: Context, user: str, provider: str) -> Any:
        self._require_ledger(ctx)
        key = user, provider
        for words in (self.keys, self.keys_of.get(user, []), self.keys_of.get(f"p{provider}", [])):
            if key in words:
                _swap_out(words, key)
        old = self.accounts.get(key, SubAccount())
        self.accounts[key] = SubAccount(nonce=old.nonce)
        self.emit(ctx, "AccountDeleted", user, provider, old.balance)

    # --- for users and the owner

    def acknowledgeTEESigner(self, ctx: Context, provider: str, acknowledged: bool) -> Any:
        account = self.account(ctx.sender, provider)
        if not acknowledged and account.acknowledged and account.balance:
            raise self.refuse("CannotRevokeWithNonZeroBalance", ctx.sender, provider, account.balance)
        account.acknowledged = acknowledged

    def acknowledgeTEESignerByOwner(self, ctx: Context, provider: str) -> Any:
        self._approve(ctx, provider, True)

    def revokeTEESignerAcknowledgement(self, ctx: Context, provider: str) -> Any:
        self._approve(ctx, provider, False)

    def updateLockTime(self, ctx: Context, seconds: int) -> Any:
        self.require_owner(ctx)
        if not 3600 <= seconds <= 604_800:
            raise self.refuse("LockTimeOutOfRange", seconds)
        former, self.lock = self.lock, seconds
        if former != seconds:
            self.emit(ctx, "LockTimeUpdated", former, seconds)

    # --- views

    def accountExists(self, _: Context, user: str, provider: str) -> Any:
        return ((user, provider) in self.keys,)

    def getPendingRefund(self, _: Context, user: str, provider: str) -> Any:
        return (self.account(user, provider).pending,)

    def lockTime(self, _: Context) -> Any:
        return (self.lock,)

    def MIN_LOCKTIME(self, _: Context) -> Any:
        return (3600,)

    def MAX_LOCKTIME(self, _: Context) -> Any:
        return (604_800,)

    def MIN_PROVIDER_STAKE(self, _: Context) -> Any:
        return (STAKE,)

    def ledgerAddress(self, _: Context) -> Any:
        return (self.ledger,)

    def getAllServices(self, _: Context, *__: int) -> Any:
        return [], 0

    def getAccountsByUser(self, _: Context, user: str, offset: int, limit: int) -> Any:
        keys = self.keys_of.get(user, [])
        return self._page(keys, offset, limit)

    # --- inside

    def account(self, user: str, provider: str) -> SubAccount:
        if (user, provider) not in self.keys:
            raise self.refuse("AccountNotExists", user, provider)
        return self.accounts[user, provider]

    def _page(self, keys: list[Any], offset: int, limit: int) -> Any:
        if limit > _PAGE:
            raise self.refuse("LimitTooLarge", limit)
        return [self._summary(key) for key in keys[offset : offset + (limit or _PAGE)]], len(keys)

    def _summary(self, key: tuple[str, str]) -> Any:
        user, provider = key
        account = self.accounts[key]
        return user, provider, account.nonce, account.balance, account.pending, [], account.info, True, 0, 0, 0

    def _require_ledger(self, ctx: Context) -> None:
        if ctx.sender != self.ledger:
            raise self.refuse("CallerNotLedger")

    def require_provider(self, provider: str) -> Offer:
        if provider not in self.offers:
            raise self.refuse("ServiceNotExist", provider)
        return self.offers[provider]

    def _approve(self, ctx: Context, provider: str, approved: bool) -> None:
        self.require_owner(ctx)
        offer = self.require_provider(provider)
        offer.approved = approved
        self.emit(ctx, "ProviderTEESignerAcknowledged", provider, offer.signer, approved)

    def _unrequest(self, account: SubAccount, amount: int) -> None:
        amount = min(amount, account.pending)
        account.pending -= amount
        while amount:
            entry = account.refunds[account.live - 1]
            if entry[0] > amount:
                entry[0] -= amount
                break
            amount -= entry[0]
            entry[0] = 0
            account.live -= 1


class FineTuning(Serving):
    NAME = FINE_TUNING

    def __init__(self, address: str, owner: str, ledger: str, chain_id: int) -> None:
        super().__init__(address, owner, ledger)
        self.penalty = 30
        self.chain_id = chain_id

    # --- services

    def addOrUpdateService(
        self, ctx: Context, url: str, quota: Any, price: int, occupied: bool, models: Any, signer: str
    ) -> Any:
        sender = ctx.sender
        old = self.offers.get(sender)
        if old is not None:
            if ctx.value:
                raise self.refuse("CannotAddStakeWhenUpdating")
            approved, stake = old.approved and old.signer == signer, old.stake
        else:
            if ctx.value < STAKE:
                raise self.refuse("InsufficientStake", ctx.value, STAKE)
            approved, stake = False, ctx.value
            self.providers.append(sender)
            self.emit(ctx, "ProviderStaked", sender, stake)
        self.offers[sender] = Offer(url, quota, price, occupied, list(models), signer, approved, stake)
        self.emit(ctx, "ServiceUpdated", sender, url, quota, price, signer, occupied)

    def removeService(self, ctx: Context) -> Any:
        stake = self.require_provider(ctx.sender).stake
        _swap_out(self.providers, ctx.sender)
        del self.offers[ctx.sender]
        ctx.state.pay(self.address, ctx.sender, stake)
        self.emit(ctx, "ProviderStakeReturned", ctx.sender, stake)
        self.emit(ctx, "ServiceRemoved", ctx.sender)

    def getService(self, _: Context, provider: str) -> Any:
        self.require_provider(provider)
        return (self._offer(provider),)

    def getAllServices(self, _: Context, *__: int) -> Any:
        return ([self._offer(provider) for provider in self.providers],)

    def _offer(self, provider: str) -> Any:
        o = self.offers[provider]
        return provider, o.url, o.quota, o.price, o.occupied, o.models, o.signer, o.approved

    # --- accounts

    def getAccount(self, _: Context, user: str, provider: str) -> Any:
        account = self.account(user, provider)
        refunds = [(number, *entry, False) for number, entry in enumerate(account.refunds)]
        row = (
            user,
            provider,
            account.nonce,
            account.balance,
            account.pending,
            refunds,
            account.info,
            self._list(account),
            account.live,
            account.head,
            len(account.ids),
            account.acknowledged,
        )
        return (row,)

    def getAllAccounts(self, _: Context, offset: int, limit: int) -> Any:
        return self._page(self.keys, offset, limit)

    def getAccountsByProvider(self, _: Context, provider: str, offset: int, limit: int) -> Any:
        return self._page(self.keys_of.get(f"p{provider}", []), offset, limit)

    def getBatchAccountsByUsers(self, ctx: Context, users: Any) -> Any:
        if len(users) > 50:
            raise self.refuse("BatchSizeTooLarge", len(users), 50)
        nothing = (NOBODY, NOBODY, 0, 0, 0, "", 0, 0, False)
        keys = [(user, ctx.sender) for user in users]
        return ([self._summary(key) if key in self.keys else nothing for key in keys],)

    def penaltyPercentage(self, _: Context) -> Any:
        return (self.penalty,)

    def updatePenaltyPercentage(self, ctx: Context, percentage: int) -> Any:
        self.require_owner(ctx)
        if percentage > 100:
            raise self.refuse("PenaltyPercentageTooHigh", percentage)
        self.penalty = percentage

    def _summary(self, key: tuple[str, str]) -> Any:
        a = self.accounts[key]
        return *key, a.nonce, a.balance, a.pending, a.info, a.live, len(a.ids), a.acknowledged

    # --- deliverables

    def addDeliverable(self, ctx: Context, user: str, task_id: str, root: bytes) -> Any:
        self._check_id(task_id)
        account = self.account(user, ctx.sender)
        if task_id in account.delivered:
            raise self.refuse("DeliverableAlreadyExists", task_id)
        count = len(account.ids)
        if count:
            newest = account.ids[(account.head + count - 1) % _RING]
            if not account.delivered[newest].acknowledged:
                raise self.refuse("PreviousDeliverableNotAcknowledged", newest)
        if count == _RING:
            oldest = account.ids[account.head]
            if not account.delivered[oldest].settled:
                raise self.refuse("CannotEvictUnsettledDeliverable", oldest)
            del account.delivered[oldest]
            self.emit(ctx, "DeliverableEvicted", ctx.sender, user, oldest, task_id, ctx.timestamp)
            account.ids[account.head] = task_id
            account.head = (account.head + 1) % _RING
        else:
            account.ids.append(task_id)
        account.delivered[task_id] = Delivered(root, ctx.timestamp)
        self.emit(ctx, "DeliverableAdded", user, ctx.sender, task_id, root, ctx.timestamp)

    def acknowledgeDeliverable(self, ctx: Context, provider: str, task_id: str) -> Any:
        delivered = self._delivered(ctx.sender, provider, task_id)
        if delivered.settled:
            raise self.refuse("CannotAcknowledgeSettledDeliverable", task_id)
        delivered.acknowledged = True
        self.emit(ctx, "DeliverableAcknowledged", ctx.sender, provider, task_id, ctx.timestamp)

    def abandonDeliverable(self, ctx: Context, user: str, task_id: str) -> Any:
        delivered = self._delivered(user, ctx.sender, task_id)
        if delivered.settled:
            raise self.refuse("CannotAbandonSettledDeliverable", task_id)
        delivered.acknowledged = delivered.settled = True
        self.emit(ctx, "DeliverableAbandoned", user, ctx.sender, task_id, ctx.timestamp)

    def getDeliverable(self, _: Context, user: str, provider: str, task_id: str) -> Any:
        return (self._shown(task_id, self._delivered(user, provider, task_id)),)

    def getDeliverables(self, _: Context, user: str, provider: str) -> Any:
        return (self._list(self.account(user, provider)),)

    def _list(self, account: SubAccount) -> Any:
        count = len(account.ids)
        ids = [account.ids[(account.head + place) % _RING] for place in range(count)]
        return [self._shown(one, account.delivered[one]) for one in ids]

    def _shown(self, task_id: str, delivered: Delivered) -> Any:
        d = delivered
        return task_id, d.root, d.secret, d.acknowledged, d.timestamp, d.settled

    def _delivered(self, user: str, provider: str, task_id: str) -> Delivered:
        found = self.account(user, provider).delivered.get(task_id)
        if found is None:
            raise self.refuse("DeliverableNotExists", task_id)
        return found

    def _check_id(self, task_id: str) -> None:
        if not 0 < len(task_id.encode()) <= 256:
            raise self.refuse("DeliverableIdInvalidLength", len(task_id.encode()))

    # --- settlement

    def settleFees(self, ctx: Context, settlement: Any) -> Any:
        task_id, secret, root, nonce, signature, fee, user = settlement
        account = self.account(user, ctx.sender)
        offer = self.require_provider(ctx.sender)
        if not account.acknowledged or not offer.approved or offer.signer == NOBODY:
            raise self.refuse("InvalidVerifierInput", "TEE signer not acknowledged")
        if account.nonce >= nonce:
            raise self.refuse("InvalidVerifierInput", "nonce should larger than the current nonce")
        if account.balance < fee:
            raise self.refuse("InvalidVerifierInput", "insufficient balance")
        delivered = self._delivered(user, ctx.sender, task_id)
        if delivered.settled:
            raise self.refuse("DeliverableAlreadySettled", task_id)
        if keccak256(delivered.root) != keccak256(root):
            raise self.refuse("InvalidVerifierInput", "model root hash mismatch")
        self._check_id(task_id)
        digest = settlement_digest(
            chain_id=self.chain_id,
            contract=self.address,
            id=task_id,
            encrypted_secret=secret,
            model_root_hash=root,
            nonce=nonce,
            task_fee=fee,
            user=user,
        )
        if not _is_by(offer.signer, digest, signature):
            raise self.refuse("InvalidVerifierInput", "TEE settlement validation failed")
        if delivered.acknowledged:
            if not secret:
                raise self.refuse("SecretShouldNotBeEmpty")
            delivered.secret = secret
        else:
            if secret:
                raise self.refuse("SecretShouldBeEmpty")
            fee = fee * self.penalty // 100
        delivered.settled = True
        account.nonce = nonce
        self.emit(ctx, "FeesSettled", user, ctx.sender, task_id, fee, delivered.acknowledged, nonce)
        free = account.balance - account.pending
        if fee > free:
            self._unrequest(account, fee - free)
        account.balance -= fee
        ctx.state.ledger.spendFund(dataclasses.replace(ctx, sender=self.address, value=0), user, fee)
        self.emit(ctx, "BalanceUpdated", user, ctx.sender, account.balance, account.pending)
        ctx.state.pay(self.address, ctx.sender, fee)


def _is_by(signer: str, digest: bytes, signature: bytes) -> bool:
    if len(signature) != 65 or signature[64] not in (27, 28):
        return False
    try:
        return recover_address(digest, signature) == signer
    except SignatureMismatchError:
        return False
