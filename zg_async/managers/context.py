"""What every manager of one wallet works with."""

import dataclasses
from pathlib import Path
from typing import Any

from zg_async.clock import Clock
from zg_async.errors import ConfigError
from zg_async.managers.funding_line import FundingLine
from zg_async.managers.services import ServiceDirectory
from zg_async.managers.storage import StorageManager
from zg_async.managers.verification import Verifier
from zg_async.managers.verification_record import Kind
from zg_async.transport.chain import Chain
from zg_async.transport.http import Http
from zg_async.transport.signer import DecryptionKey, Signer, decryption_key
from zg_async.wire.contracts import Call
from zg_async.wire.records import Address, Receipt
from zg_async.wire.signing import personal_hash


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """One wallet on one network; without a signer it only reads."""

    chain: Chain
    http: Http
    services: ServiceDirectory
    clock: Clock
    funding: FundingLine
    """Who waits for money of this wallet, and the lock under which it is planned and moved."""
    signer: Signer | None = None
    storage: StorageManager | None = None
    state_dir: Path | None = None
    """Where this user's small books lie; None: nothing is kept."""
    verifier: Verifier | None = None
    verified_only: bool = False
    """Whether nothing is paid, sent or acknowledged to providers that aren't verified."""

    @property
    def wallet(self) -> Address:
        """The wallet's address.

        Raises:
            ConfigError: The broker was made without a key.
        """
        return self.require_signer().address

    def require_signer(self) -> Signer:
        """Return the signer.

        Raises:
            ConfigError: The broker was made without a key.
        """
        if self.signer is None:
            raise ConfigError(
                "this needs a wallet, and the broker is read-only", hint="Pass private_key= to create_broker"
            )
        return self.signer

    async def sign(self, message: bytes, *, purpose: str, provider: Address | None = None) -> bytes:
        """Sign a message, wrapped as a personal one (EIP-191), and write to the audit log that it was.

        Args:
            message: An inner hash of `wire.signing`.
            purpose: What for, for the log.
            provider: Who will get it.

        Returns:
            65 bytes r, s, v.

        Raises:
            ConfigError: The broker was made without a key.
            JournalError: The log can't be written. Nothing was signed.
        """
        signer = self.require_signer()
        await self.chain.note_signature(signer.address, personal_hash(message), purpose=purpose, provider=provider)
        return await signer.sign_personal(message)

    def require_verifier(self) -> Verifier:
        """Return what verifies providers.

        Raises:
            ConfigError: There is none.
        """
        if self.verifier is None:
            raise ConfigError("providers can't be verified here", hint="Make the broker with create_broker")
        return self.verifier

    async def require_verified_provider(self, provider: str, kind: Kind) -> None:
        """Do nothing, unless only verified providers will do; then make sure that this one is.

        Raises:
            AttestationError: It isn't.
            ConfigError: The extra `tee` isn't installed.
        """
        if self.verified_only:
            await self.require_verifier().require(kind, provider)

    def require_key(self) -> DecryptionKey:
        """Return the key that opens wrapped file keys.

        Raises:
            ConfigError: The signer can't decrypt; nothing was paid yet.
        """
        return decryption_key(self.require_signer())

    async def write(self, call: Call[Any], *, key: str | None = None) -> Receipt:
        """Send a transaction of this wallet through the outbox and wait until it is mined.

        Args:
            call: The contract call.
            key: Names the effect: the same key is the same transaction, in any process. None: a new one.

        Returns:
            Its receipt.
        """
        return await self.chain.write(call, wallet=self.wallet, key=key)
