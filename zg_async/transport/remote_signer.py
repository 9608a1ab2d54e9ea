"""A wallet whose key lies in another program, reached by JSON-RPC in web3signer's dialect.

It is asked `eth_accounts`, `eth_signTransaction` and `eth_sign`. What comes back is never believed: a transaction has
to be exactly the one that was asked for, and every signature has to be the wallet's. The key never comes here, so
models ordered by such a wallet can't be opened (`decryption_key`).

Source: web3signer, docs/openapi-specs/eth1 (eth_sign wraps the message, EIP-191; eth_signTransaction answers the raw
transaction). Geth's `{"raw": ..., "tx": ...}` is understood, too.
"""

from types import TracebackType
from typing import Any, Self

from zg_async.clock import Clock
from zg_async.errors import ConfigError, RefusedToSignError, RpcError, SignatureMismatchError
from zg_async.transport.guard import Guard
from zg_async.transport.http import Http
from zg_async.transport.rpc import Rpc, blob
from zg_async.transport.signer import GuardSlot
from zg_async.transport.transaction import SignedTransaction, Transaction, join_signature, split_signature
from zg_async.wire.hashing import hex0x, parse_address
from zg_async.wire.records import Address
from zg_async.wire.signing import personal_hash, recover_address


class RemoteSigner:
    """One account of a JSON-RPC signer. Make it with `connect`, and close it; a broker leaves it open."""

    def __init__(self, rpc: Rpc, address: Address, *, http: Http | None = None, guard: Guard | None = None) -> None:
        """Use an account over an open connection.

        Args:
            rpc: The signer.
            address: Its account.
            http: Closed with this; None: nothing is.
            guard: What it may sign; None: no transaction until `arm`.
        """
        self._rpc = rpc
        self._address = address
        self._http = http
        self._guard = GuardSlot(guard)

    @classmethod
    async def connect(cls, url: str, address: str | None = None, *, clock: Clock | None = None) -> "RemoteSigner":
        """Connect to a signer.

        Args:
            url: Its endpoint; path and query are treated as secrets.
            address: The account; None: its only one.
            clock: The source of time, for tests.

        Raises:
            ConfigError: It has no such account, or several and none was named.
            ChainUnavailableError: It doesn't answer.
            RpcError: It answers something else than accounts.
        """
        http = Http(clock=clock)
        await http.open()
        try:
            rpc = Rpc(url, http)
            return cls(rpc, await _account(rpc, address), http=http)
        except BaseException:
            await http.aclose()
            raise

    @property
    def address(self) -> Address:
        """The account's checksummed address."""
        return self._address

    def arm(self, guard: Guard) -> None:
        """Set what may be signed, once.

        Raises:
            ConfigError: It is armed with another guard already.
        """
        self._guard.arm(guard, self._address)

    async def sign_personal(self, message: bytes) -> bytes:
        """Have an Ethereum personal message signed; the signer wraps it, and the signature is checked.

        Raises:
            SignatureMismatchError: It isn't this account's signature of the wrapped message.
            ChainUnavailableError: No answer.
            RpcError: It refuses.
        """
        signature = blob(await self._ask("eth_sign", [self._address, hex0x(message)]))
        if len(signature) == 65:
            signature = signature[:64] + bytes((27 + signature[64] % 27,))
        if recover_address(personal_hash(message), signature) != self._address:
            raise SignatureMismatchError(f"the signer at {self._rpc.host} signed something else, or for another wallet")
        return signature

    async def sign_transaction(self, transaction: Transaction) -> SignedTransaction:
        """Have a type 2 transaction signed that the guard lets pass; what comes back has to be that transaction.

        Raises:
            RefusedToSignError: The guard doesn't know it, there is no guard, or another transaction came back.
            ChainUnavailableError: No answer.
            RpcError: The signer refuses.
        """
        digest = self._guard.check(transaction, self._address)
        answer = await self._ask("eth_signTransaction", [_fields(transaction, self._address)])
        raw = blob(answer.get("raw") if isinstance(answer, dict) else answer)
        try:
            signature = split_signature(transaction, raw)
        except ValueError:
            raise RefusedToSignError(
                f"the signer at {self._rpc.host} sent back another transaction than it was asked for",
                hint="Nothing was sent. Is it set to the chain's id, and does it take EIP-1559 transactions?",
            ) from None
        if recover_address(digest, signature) != self._address:
            raise RefusedToSignError(
                f"the signer at {self._rpc.host} signed for another wallet", hint="Nothing was sent"
            )
        return join_signature(transaction, signature)

    async def aclose(self) -> None:
        """Close the connection. Idempotent."""
        if self._http is not None:
            await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<RemoteSigner {self._address} at {self._rpc.host}>"

    async def _ask(self, method: str, params: list[Any]) -> Any:
        return await self._rpc.request(method, params, what=f"{method} of the signer")


async def _account(rpc: Rpc, address: str | None) -> Address:
    answer = await rpc.request("eth_accounts", what="eth_accounts of the signer")
    if not isinstance(answer, list):
        raise RpcError(f"{rpc.host} doesn't answer with accounts", hint="Is this the URL of a signer?")
    accounts = [parse_address(str(one), what="signer's account") for one in answer]
    if address is not None:
        wanted = parse_address(address, what="wallet")
        if wanted not in accounts:
            raise ConfigError(f"the signer at {rpc.host} has no account {wanted}", hint="Load its key there")
        return wanted
    if len(accounts) != 1:
        raise ConfigError(f"the signer at {rpc.host} has {len(accounts)} accounts", hint="Name one by its address")
    return accounts[0]


def _fields(transaction: Transaction, sender: Address) -> dict[str, str]:
    return {
        "from": sender,
        "to": transaction.to,
        "gas": hex(transaction.gas),
        "maxFeePerGas": hex(transaction.max_fee_per_gas),
        "maxPriorityFeePerGas": hex(transaction.max_priority_fee_per_gas),
        "value": hex(transaction.value),
        "data": hex0x(transaction.data),
        "nonce": hex(transaction.account_nonce),
        "chainId": hex(transaction.chain_id),
    }
