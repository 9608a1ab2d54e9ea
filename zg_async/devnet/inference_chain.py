"""An inference provider's view of a chain, through the devnet's own client."""

from collections.abc import Sequence

from zg_async.devnet.chain_client import Wallet
from zg_async.devnet.chain_watch import ChainWatch
from zg_async.devnet.inference_settings import Acknowledgement, FeeSettlement, SettlementResult
from zg_async.errors import AccountNotFoundError, DeliverableNotFoundError, ServiceNotFoundError
from zg_async.wire.contracts import (
    FineTuningContract,
    InferenceContract,
    TeeSettlementResult,
    decode_log,
)
from zg_async.wire.records import Address, InferenceAccount, InferenceService, TaskId


class WalletChain:
    """`InferenceChain` over a provider's wallet."""

    def __init__(
        self,
        wallet: Wallet,
        chain_id: int,
        inference: InferenceContract,
        fine_tuning: FineTuningContract,
        watch: ChainWatch,
    ) -> None:
        """Look through a wallet, maybe shared with the fine-tuning side, and a watch shared by all."""
        self.chain_id = chain_id
        self.inference_address = inference.address
        self._wallet = wallet
        self._inference = inference
        self._fine_tuning = fine_tuning
        self._watch = watch

    async def account(self, user: Address) -> InferenceAccount | None:
        """Read a sub-account."""
        try:
            return await self._wallet.client.call(self._inference.get_account(user, self._wallet.address))
        except AccountNotFoundError:
            return None

    async def service(self) -> InferenceService | None:
        """Read the registration."""
        try:
            return await self._wallet.client.call(self._inference.get_service(self._wallet.address))
        except ServiceNotFoundError:
            return None

    async def block_number(self) -> int:
        """Read the newest block's number."""
        return await self._watch.block_number()

    async def acknowledged(self, from_block: int, to_block: int) -> Sequence[Acknowledgement]:
        """Read the acknowledgements of some blocks."""
        return [
            Acknowledgement(user=event.user, task_id=event.id)
            for event in await self._watch.acknowledgements(from_block, to_block)
            if event.provider == self._wallet.address
        ]

    async def model_root_hash(self, user: Address, task_id: TaskId) -> bytes:
        """Read a deliverable's root hash."""
        try:
            call = self._fine_tuning.get_deliverable(user, self._wallet.address, task_id)
            deliverable = await self._wallet.client.call(call)
        except (AccountNotFoundError, DeliverableNotFoundError) as error:
            raise LookupError(task_id) from error
        return deliverable.model_root_hash

    async def settle_fees(self, settlements: Sequence[FeeSettlement]) -> Sequence[SettlementResult]:
        """Settle and read the receipt."""
        rows = [
            (item.user, item.provider, item.total_fee, item.requests_hash, item.nonce, item.signature)
            for item in settlements
        ]
        receipt = await self._wallet.send(self._inference.settle_fees_with_tee(rows))
        events = (decode_log(log) for log in receipt.logs)
        return [
            SettlementResult(user=event.user, status=event.status, unsettled=event.unsettled_amount)
            for event in events
            if isinstance(event, TeeSettlementResult)
        ]
