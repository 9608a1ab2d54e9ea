"""Settlement after the user's acknowledgement or the window's end, and the clean-up (fine-tuning.md 10.2, 12.1)."""

from typing import TYPE_CHECKING, Final

import anyio.to_thread

from zg_async.devnet.provider_rules import StepError
from zg_async.devnet.provider_store import ProviderTask
from zg_async.errors import ChainUnavailableError, ZgError
from zg_async.logs import get_logger
from zg_async.wire.envelope import ecies_encrypt
from zg_async.wire.records import TERMINAL, TaskProgress
from zg_async.wire.signing import settlement_digest, sign_digest

if TYPE_CHECKING:
    from zg_async.devnet.provider import ProviderNode

_log = get_logger("zg_async.devnet.settlement")
_RETRIES: Final = 10
_DAY: Final = 86400
_LOCK_TIME_AGE: Final = 5.0


class Settlement:
    """Settles one provider's deliveries and removes what is old."""

    def __init__(self, node: "ProviderNode") -> None:
        """Settle for a provider."""
        self._node = node
        self._lock_time = (0.0, 0)
        self._cleaned = node.now()

    async def round(self) -> None:
        """Look at all deliveries once: acknowledged ones first, then those whose window has ended."""
        node = self._node
        late = [task for task in node.store if task.progress is TaskProgress.DELIVERED]
        if late:
            lock_time = await self._read_lock_time()
            late = [task for task in late if not await self._acknowledged(task) and self._is_late(task, lock_time)]
        ready = [task for task in node.store if task.progress is TaskProgress.USER_ACKNOWLEDGED]
        batch = node.settings.settlement_batch_size
        for task in ready[:batch]:
            await self._try_settle(task, acknowledged=True)
        for task in late[: max(batch - len(ready), 0)]:
            await self._try_settle(task, acknowledged=False)

    async def _read_lock_time(self) -> int:
        node = self._node
        if node.faults.strikes("lock_time_unreadable"):
            return 0
        read, value = self._lock_time
        if not value or node.clock.monotonic() - read > _LOCK_TIME_AGE:
            # A broker takes a failed read for 0 here; the devnet does so only by its switch.
            value = await node.client.call(node.contract.lock_time())
            self._lock_time = (node.clock.monotonic(), value)
        return value

    def _is_late(self, task: ProviderTask, lock_time: int) -> bool:
        window = min(int(self._node.settings.ack_timeout), lock_time // 2)
        return int(self._node.now()) >= task.deliver_time + window

    async def _acknowledged(self, task: ProviderTask) -> bool:
        """Move an acknowledged task on: seen in the logs, then confirmed, because a reorg may have taken it back."""
        node = self._node
        if (node.address, task.id) not in node.watch.acknowledged:
            return False
        found = await node.client.call(node.contract.get_deliverable(task.user, node.address, task.id))
        if not found.acknowledged:
            node.watch.acknowledged.discard((node.address, task.id))
            return False
        await node.store.move(task, TaskProgress.DELIVERED, TaskProgress.USER_ACKNOWLEDGED, node.now())
        return True

    async def _try_settle(self, task: ProviderTask, *, acknowledged: bool) -> None:
        node, before = self._node, task.progress
        try:
            await self._settle(task, acknowledged=acknowledged)
        except ChainUnavailableError as error:  # costs no retry: ticks are quick here, an outage isn't
            _log.debug("settlement of %s waits for the chain: %s", task.id, error)
            return
        except (StepError, ZgError, ValueError) as error:
            await node.log(task.id, f"Error executing task {task.id}: {error}")
            task.retries["settlement"] = task.retries.get("settlement", 0) + 1
            if task.retries["settlement"] > _RETRIES:
                await node.store.move(task, before, TaskProgress.FAILED, node.now())
            return
        if await node.store.move(task, before, TaskProgress.FINISHED, node.now()):
            await node.log(task.id, f"Settle task {task.id} successfully")

    async def _settle(self, task: ProviderTask, *, acknowledged: bool) -> None:
        node = self._node
        if node.faults.strikes("fail_settlement"):
            raise StepError("settle fees: devnet fault")
        found = await node.client.call(node.contract.get_deliverable(task.user, node.address, task.id))
        if found.settled:
            return
        secret = b""
        if acknowledged:
            secret = ecies_encrypt(bytes.fromhex(task.user_public_key), bytes.fromhex(task.secret))
        root = bytes.fromhex(task.root_hash[2:])
        digest = settlement_digest(
            chain_id=await node.client.chain_id(),
            contract=node.contract.address,
            id=task.id,
            encrypted_secret=secret,
            model_root_hash=root,
            nonce=int(task.nonce),
            task_fee=task.fee,
            user=task.user,
        )
        call = node.contract.settle_fees(
            id=task.id,
            encrypted_secret=secret,
            model_root_hash=root,
            nonce=int(task.nonce),
            signature=sign_digest(node.tee_key, digest),
            task_fee=task.fee,
            user=task.user,
        )
        await node.wallet.send(call)

    # --- clean-up ---

    async def clean_up_if_due(self) -> None:
        """Run the clean-up as often as it is set."""
        if self._node.now() - self._cleaned >= self._node.settings.cleanup_interval:
            await self.clean_up()

    async def clean_up(self) -> None:
        """Remove task files by whole UTC days since creation, and datasets nobody needs."""
        node = self._node
        self._cleaned = now = node.now()
        keep_from = (now // _DAY - node.settings.data_retention_days) * _DAY
        for task in node.store:
            if task.created_at < keep_from:
                await anyio.to_thread.run_sync(node.files.clean_task, task.id)
        in_use = {
            node.files.dataset(task.user, task.dataset_hash) for task in node.store if task.progress not in TERMINAL
        }
        await anyio.to_thread.run_sync(node.files.remove_datasets, now - node.settings.file_retention, in_use)
