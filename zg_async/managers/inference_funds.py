"""What calls have cost, and whether a provider's sub-account can pay for more.

Money moves in `ensure_funds`, and by itself only where an `AutoFunding` policy says so, up to its cap.
"""

import collections
import contextlib
import dataclasses
import datetime as dt
import uuid
from collections.abc import AsyncGenerator
from typing import Any, Final

import anyio

from zg_async.background import Background
from zg_async.correlation import correlated
from zg_async.errors import ConfigError, ContractRevertedError, LimitError, ProviderError, ZgError
from zg_async.logs import get_logger
from zg_async.managers.context import Context
from zg_async.managers.inference_services import AutoFunded, AutoFunding, InferencePolicy
from zg_async.managers.inference_tokens import InferenceTokens
from zg_async.managers.ledger import LedgerManager
from zg_async.tracing import observed
from zg_async.transport.budget import AUTO_FUNDING
from zg_async.transport.key_book import KeyBook
from zg_async.units import format_amount, parse_amount
from zg_async.wire import billing
from zg_async.wire.hashing import parse_address
from zg_async.wire.records import Address, InferenceService, Receipt, Usage
from zg_async.wire.strict_json import BadJsonError, decode_json

BUFFER_MULTIPLIER: Final = 2
"""The peers' buffer: this many times the smallest transfer, which is also the least a provider wants to see locked
(1 0G: MIN_TRANSFER_AMOUNT of the ledger, MinimumLockedBalance of the provider)."""
_KEPT_MOVES: Final = 1000
_UNSETTLED_LIMIT: Final = 16 * 1024
_log = get_logger("zg_async.inference")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Spending:
    """What calls to a provider have used and cost, as this broker counted; the provider's bill may differ."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    fee: int = 0
    """Neuron, estimated from the registered prices."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Funds:
    """Whether a sub-account can pay; amounts in neuron."""

    provider: Address
    unsettled: int
    """Billed and not collected yet."""
    is_counted: bool
    """The provider couldn't be asked; `unsettled` is this broker's own count."""
    required: int
    """Unsettled fees and the buffer."""
    spendable: int | None
    """None: there is no sub-account."""
    needed: int
    """What would have to be moved; 0: nothing."""


@observed("inference")
class InferenceFunds(InferenceTokens):
    """Services and tokens, and the money side of calls."""

    def __init__(self, context: Context, policy: InferencePolicy | None = None, keys: KeyBook | None = None) -> None:
        """Bind to a wallet."""
        super().__init__(context, policy, keys)
        self._ledger = LedgerManager(context)
        self._spent: dict[Address, Spending] = {}
        self._owed: dict[Address, int] = {}
        self._fund_locks: dict[Address, anyio.Lock] = {}
        self._looked: dict[Address, float] = {}
        self._looked_after: set[Address] = set()
        self._policy_lock = anyio.Lock()
        self._moved = 0
        self._scope: AutoFunding | None = None
        self._auto_funded: collections.deque[AutoFunded] = collections.deque(maxlen=_KEPT_MOVES)

    # ---- what it cost

    def spending(self, provider: str) -> Spending:
        """Return what calls to a provider have used and cost since the broker was made.

        Args:
            provider: The provider's address.
        """
        return self._spent.get(parse_address(provider, what="provider"), Spending())

    def _charge(self, provider: Address, usage: Usage | None, fee: int) -> None:
        known = self._spent.get(provider, Spending())
        self._spent[provider] = Spending(
            calls=known.calls + 1,
            prompt_tokens=known.prompt_tokens + (usage.prompt_tokens if usage else 0),
            completion_tokens=known.completion_tokens + (usage.completion_tokens if usage else 0),
            fee=known.fee + fee,
        )
        self._owed[provider] = self._owed.get(provider, 0) + fee

    # ---- whether it can be paid

    async def check_funds(self, provider: str, *, buffer: int | str | None = None) -> Funds:
        """Work out whether a sub-account can pay for more calls. Moves nothing.

        Args:
            provider: The provider's address.
            buffer: What should be there beyond unsettled fees, neuron or a decimal string of 0G; None: twice the
                ledger's smallest transfer.
        """
        address = parse_address(provider, what="provider")
        account = await self._account_or_none(address)
        minimum = (await self._ledger.get_limits()).min_transfer_amount
        wanted = BUFFER_MULTIPLIER * minimum if buffer is None else parse_amount(buffer)
        told = None if account is None else await self._unsettled(address)
        if told is not None:
            self._owed[address] = told
        unsettled = self._owed.get(address, 0)
        spendable = account.spendable if account else None
        return Funds(
            provider=address,
            unsettled=unsettled,
            is_counted=told is None,
            required=unsettled + wanted,
            spendable=spendable,
            needed=billing.funding_needed(unsettled=unsettled, buffer=wanted, spendable=spendable, minimum=minimum),
        )

    async def _unsettled(self, provider: Address) -> int | None:
        """Ask what the provider has billed; None if it doesn't say."""
        service = await self.recent_service(provider)
        with contextlib.suppress(ProviderError, BadJsonError):
            reply = await self._ctx.http.request(
                "GET",
                f"{service.url.rstrip('/')}/v1/user/{self._ctx.wallet}/unsettledfee",
                headers=await self.get_request_headers(provider),
                limit=_UNSETTLED_LIMIT,
                provider=provider,
                signed=True,
            )
            value: Any = decode_json(reply.body, limit=_UNSETTLED_LIMIT)
            fee = value.get("unsettledFee") if isinstance(value, dict) else None
            if isinstance(fee, str) and fee.isascii() and fee.isdigit() and len(fee) <= 78:
                return int(fee)
            if type(fee) is int and fee >= 0:
                return fee
        return None

    async def ensure_funds(
        self, provider: str, *, cap: int | str, buffer: int | str | None = None, key: str | None = None
    ) -> Receipt | None:
        """Move what is missing from the ledger to a provider's sub-account; many at once move it once.

        Args:
            provider: The provider's address.
            cap: The most that may be moved, neuron or a decimal string of 0G.
            buffer: See `check_funds`.
            key: Names the effect: the same key is never paid twice.

        Returns:
            The transfer; None when there was enough.

        Raises:
            LimitError: More than `cap` is missing, or the ledger hasn't got it; nothing was moved.
            LedgerNotFoundError: There is no ledger.
        """
        address, most = parse_address(provider, what="provider"), parse_amount(cap)
        async with self._fund_locks.setdefault(address, anyio.Lock()):
            funds = await self.check_funds(address, buffer=buffer)
            if not funds.needed:
                return None
            if funds.needed > most:
                raise LimitError(
                    f"{address} needs {format_amount(funds.needed)} more for inference, above the cap of "
                    f"{format_amount(most)}",
                    hint="Raise the cap, or call ledger.transfer_fund yourself",
                )
            async with self._ctx.funding.lock.held():
                receipt = await self._ledger.transfer_fund(address, "inference", funds.needed, key=key)
            self._owed[address] = 0
            return receipt

    async def _fund_beside(self, provider: Address, background: Background) -> None:
        """Look after a sub-account while a request is under way; only a provider's first requests wait for it."""
        policy = self._scope or self.policy.funding
        if policy is None:
            return
        if provider not in self._looked_after:
            await self._fund_by_policy(provider)
            self._looked_after.add(provider)
        elif self._ctx.clock.monotonic() - self._looked.get(provider, 0.0) >= policy.interval:
            background.start(self._look_after(provider), name=f"zg funds at {provider}")

    async def _look_after(self, provider: Address) -> None:
        await self._fund_by_policy(provider)

    async def _fund_by_policy(self, provider: Address, *, refused: bool = False) -> bool:
        """Top a sub-account up if the policy allows it and a look is due; returns whether money moved.

        Args:
            provider: The provider's address.
            refused: It has just refused a request for want of money: look now, and raise what stands in the way.
        """
        policy = self._scope or self.policy.funding
        if policy is None:
            return False
        async with self._policy_lock:
            at, last = self._ctx.clock.monotonic(), self._looked.get(provider)
            if not refused and last is not None and at - last < policy.interval:
                return False
            self._looked[provider] = at
            try:
                return await self._fund_within(policy, provider)
            except ZgError as error:
                if refused:
                    raise
                _log.warning("the inference account at %s can't be topped up: %s", provider, error)
                return False

    async def _fund_within(self, policy: AutoFunding, provider: Address) -> bool:
        funds = await self.check_funds(provider, buffer=policy.buffer)
        if not funds.needed:
            return False
        left = None if policy.cap is None else policy.cap - self._moved
        if left is not None and funds.needed > left:
            raise LimitError(
                f"{provider} needs {format_amount(funds.needed)} more for inference; of the cap of "
                f"{format_amount(policy.cap or 0)} for automatic funding {format_amount(left)} are left",
                hint="Raise AutoFunding.cap, or call ledger.transfer_fund yourself",
            )
        self._moved += funds.needed  # from now on until it is certain that it wasn't sent
        receipt, key = None, f"{AUTO_FUNDING}/{uuid.uuid4()}"
        try:
            receipt = await self.ensure_funds(provider, cap=funds.needed, buffer=policy.buffer, key=key)
        except (LimitError, ContractRevertedError):
            self._moved -= funds.needed
            raise
        if receipt is None:
            self._moved -= funds.needed
            return False
        at = dt.datetime.fromtimestamp(self._ctx.clock.now(), dt.UTC)
        self._auto_funded.append(AutoFunded(provider=provider, amount=funds.needed, tx_hash=receipt.tx_hash, at=at))
        _log.warning("automatic funding moved %s to %s for inference", format_amount(funds.needed), provider)
        return True

    @property
    def auto_funded(self) -> tuple[AutoFunded, ...]:
        """What was moved by itself for this wallet while the broker lives, oldest first; the last thousand moves.

        Each is a warning in the log, too, and in the audit log a transaction whose key begins with `auto-funding/`.
        """
        return tuple(self._auto_funded)

    @contextlib.asynccontextmanager
    async def auto_funding(self, *providers: str, funding: AutoFunding) -> AsyncGenerator[None, None]:
        """Keep the inference sub-accounts at some providers topped up while the block lasts, and not a moment longer.

        Args:
            providers: Looked at every `funding.interval` seconds; calls to others are paid for as they need it.
            funding: The bounds.

        Raises:
            ConfigError: Automatic funding is on already, for this wallet or another one of the broker.
        """
        addresses, budget = [parse_address(p, what="provider") for p in providers], self._ctx.chain.budget
        if budget.auto_funding:
            raise ConfigError("automatic funding is on already", hint="One policy or block at a time has the say")
        budget.allow_auto_funding(True, per_hour=funding.per_hour)
        self._scope, self._moved, background = funding, 0, Background()
        try:
            for address in addresses:
                background.start(self._keep_funded(address, funding.interval), name=f"zg funds at {address}")
            yield
        finally:
            self._scope = None
            budget.allow_auto_funding(False)
            await background.aclose()

    async def _keep_funded(self, provider: Address, interval: float) -> None:
        with correlated(provider=provider):
            while True:
                await self._fund_by_policy(provider)
                await self._ctx.clock.sleep(interval)


def fee_of_chat(service: InferenceService, usage: Usage | None, prompt: str, answer: str) -> int:
    """Estimate a chat's fee; without usage by words, as providers then bill."""
    counted = usage or Usage(prompt_tokens=len(prompt.split()), completion_tokens=len(answer.split()))
    return billing.fee_of_usage(service, counted)


def is_short_of_funds(text: str) -> bool:
    """Return whether a refusal means that the sub-account is missing or too small."""
    lower = text.lower()
    return "insufficient balance" in lower or "account not exist" in lower
