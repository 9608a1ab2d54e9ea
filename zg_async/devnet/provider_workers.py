"""A provider's workers: setup and training here, delivery and settlement beside (fine-tuning.md 8.2, 10).

Each looks for work every tick and does one task at a time. A failed attempt puts the task back to the worker's start
state until its retries are used up; so progress can move backwards.
"""

import json
import math
import random
import re
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import anyio
import anyio.to_thread

from zg_async.devnet.provider_delivery import Delivery
from zg_async.devnet.provider_rules import (
    Refused,
    StepError,
    check_params,
    count_tokens,
    predefined_model,
    signature_bytes,
    task_fee,
)
from zg_async.devnet.provider_settlement import Settlement
from zg_async.devnet.provider_store import ProviderTask
from zg_async.devnet.ticks import next_tick
from zg_async.devnet.trainer import TrainingError, TrainRow, train
from zg_async.errors import ChainError, NotStoredError, ZgError
from zg_async.logs import get_logger
from zg_async.wire.records import TaskProgress
from zg_async.wire.signing import (
    eip191_hash,
    public_key_address,
    recover_public_key,
    task_create_hash,
)

if TYPE_CHECKING:
    from zg_async.devnet.provider import ProviderNode

_log = get_logger("zg_async.devnet.workers")
_RETRIES: Final[Mapping[str, int]] = {"setup": 10, "executor": 1, "finalizer": 10}
_DATASET_ROOT: Final = re.compile(r"0x([0-9a-f]{64})")
_CLEAN_UP_TICK: Final = 1.0
_CONTAINER_OUTPUT: Final = "/app/mnt/output_model"
Step = Callable[[ProviderTask], Awaitable[None]]


_FAILURES: Final = (StepError, ZgError, OSError, ValueError, TrainingError, Refused, aiohttp.ClientError)


class Workers:
    """The workers of one run of a provider."""

    def __init__(self, node: "ProviderNode") -> None:
        """Work for a provider."""
        self._node = node
        self._stop_training = threading.Event()
        self._delivery = Delivery(node)
        self.settlement = Settlement(node)

    def loops(self) -> dict[str, Coroutine[Any, Any, None]]:
        """Return the loops to run, by name."""
        return {
            "setup": self._loop(self.setup_round, TaskProgress.INIT),
            "executor": self._loop(self._training_round, TaskProgress.SET_UP),
            "finalizer": self._loop(self._delivery_round, TaskProgress.TRAINED),
            "settlement": self._loop(self.settlement.round, TaskProgress.DELIVERED, TaskProgress.USER_ACKNOWLEDGED),
            "clean-up": self._clean_up_loop(),
        }

    def stop_training(self) -> None:
        """Let a running training end before its next step."""
        self._stop_training.set()

    async def _loop(self, work: Callable[[], Awaitable[None]], *states: TaskProgress) -> None:
        """Look every tick; a tick at which no task is in one of the states is spared."""
        clock, settings = self._node.clock, self._node.settings
        while True:
            looked = clock.monotonic()
            await self._node.store.wait_for(states)
            tick = max(settings.tick, 0.001)
            await clock.sleep(tick - math.fmod(clock.monotonic() - looked, tick))
            await self._do(work)

    async def _clean_up_loop(self) -> None:
        while True:
            await next_tick(self._node.clock, max(self._node.settings.tick, _CLEAN_UP_TICK))
            await self._do(self.settlement.clean_up_if_due)

    async def _do(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except _FAILURES as error:
            _log.warning("provider %s: %s", self._node.address, error)

    async def _attempt(
        self, kind: str, step: Step, start: TaskProgress, running: TaskProgress, end: TaskProgress
    ) -> None:
        """Take the oldest task in `start` through one step."""
        node = self._node
        task = node.store.first(start)
        if task is None or not await node.store.move(task, start, running, node.now()):
            return
        try:
            await step(task)
        except _FAILURES as error:
            await self._failed(kind, task, running, start, error)
            return
        if await node.store.move(task, running, end, node.now()):
            await node.log(task.id, f"Training model for {kind} task {task.id} successfully")

    async def _failed(
        self, kind: str, task: ProviderTask, running: TaskProgress, back: TaskProgress, error: Exception
    ) -> None:
        node = self._node
        text = f"setup failed: {error}" if kind == "setup" else f"Error executing task {task.id}: {error}"
        await node.log(task.id, text)
        task.retries[kind] = task.retries.get(kind, 0) + 1
        if task.retries[kind] > _RETRIES[kind] or (isinstance(error, StepError) and error.final):
            await node.store.move(task, running, TaskProgress.FAILED, node.now())
        elif await node.store.move(task, running, back, node.now()):
            await node.log(task.id, f"Retrying task {task.id}")

    async def _delivery_round(self) -> None:
        states = TaskProgress.TRAINED, TaskProgress.DELIVERING, TaskProgress.DELIVERED
        await self._attempt("finalizer", self._delivery.deliver, *states)

    # --- setup ---

    async def setup_round(self) -> None:
        """Take the oldest new task through setup."""
        states = TaskProgress.INIT, TaskProgress.SETTING_UP, TaskProgress.SET_UP
        await self._attempt("setup", self._set_up, *states)

    async def _set_up(self, task: ProviderTask) -> None:
        node = self._node
        if node.faults.strikes("fail_setup"):
            raise StepError("download failed: devnet fault")
        await self._fetch_dataset(task)
        rows = await anyio.to_thread.run_sync(node.files.rows, task.user, task.dataset_hash)
        tokens = await anyio.to_thread.run_sync(count_tokens, rows)
        balance, threshold = await node.client.balance(node.address), node.settings.balance_threshold
        if balance < threshold:
            raise StepError(f"insufficient provider balance: expected {threshold}, got {balance}")
        epochs = int(check_params(task.training_params)["num_train_epochs"])
        task.fee = task_fee(tokens, node.settings.price_per_token, epochs, task.model_hash)
        await node.store.save(task)
        account = await node.client.call(node.contract.get_account(task.user, node.address))
        available = account.balance - account.pending_refund
        if available < task.fee:
            raise StepError(
                f"insufficient account balance after pending refund: required {task.fee}, available {available}"
            )
        if not task.nonce.isdecimal() or account.account_nonce >= int(task.nonce):
            raise StepError(f"invalid nonce: expected {account.account_nonce}, got {task.nonce}")
        service = await node.client.call(node.contract.get_service(node.address))
        if not service.tee_signer_acknowledged:
            raise StepError("service TEE signer has not been acknowledged by the 0G team")
        if not account.acknowledged:
            raise StepError("user has not acknowledged the provider's TEE signer yet")
        self._check_signature(task)

    async def _fetch_dataset(self, task: ProviderTask) -> None:
        """Get a dataset that its user didn't upload here from 0G Storage, where there is one (fine-tuning.md 6.2)."""
        node, path = self._node, self._node.files.dataset(task.user, task.dataset_hash)
        root = _DATASET_ROOT.fullmatch(task.dataset_hash)
        if node.storage is None or root is None or await anyio.Path(path).exists():
            return
        await anyio.Path(path.parent).mkdir(parents=True, exist_ok=True)
        try:
            await node.storage.fetch_file(bytes.fromhex(root[1]), path)
        except NotStoredError as error:
            raise StepError(f"download failed: {error}") from error
        await anyio.to_thread.run_sync(node.files.adopt_dataset, task.user, task.dataset_hash, node.now())

    def _check_signature(self, task: ProviderTask) -> None:
        """Check who signed the task, and keep the public key: the model's key will be wrapped for it."""
        digest = eip191_hash(task_create_hash(task.user, int(task.nonce), task.dataset_hash))
        try:
            key = recover_public_key(digest, signature_bytes(task.signature))
        except (ZgError, Refused) as error:
            raise StepError(f"invalid signature: {error}", final=True) from error
        if self._node.faults.strikes("signature_error") or public_key_address(key) != task.user:
            raise StepError("signature verification failed: address mismatch", final=True)
        task.user_public_key = key.hex()

    # --- training ---

    async def _training_round(self) -> None:
        states = TaskProgress.SET_UP, TaskProgress.TRAINING, TaskProgress.TRAINED
        await self._attempt("executor", self._train, *states)

    async def _train(self, task: ProviderTask) -> None:
        node = self._node
        await node.publish(occupied=True)
        try:
            if node.faults.strikes("fail_training"):
                await node.log(task.id, "=== Container Failed ===\ndevnet fault")
                raise StepError("container exited with code 1")
            await self._run_trainer(task)
        finally:
            with anyio.move_on_after(5, shield=True):
                await self._release()

    async def _release(self) -> None:
        try:
            await self._node.publish(occupied=False)
        except ChainError as error:
            _log.warning("provider %s stays marked occupied: %s", self._node.address, error)

    async def _run_trainer(self, task: ProviderTask) -> None:
        node = self._node
        rows = [
            TrainRow(*(str(row[column]) for column in ("instruction", "input", "output")))
            for row in await anyio.to_thread.run_sync(node.files.rows, task.user, task.dataset_hash)
        ]
        model = predefined_model(task.model_hash)
        name = model.name if model is not None else task.model_hash
        live = self._live_log(task) if node.settings.log_mode == "live" else None
        try:
            outcome = await anyio.to_thread.run_sync(
                lambda: train(
                    rows,
                    json.loads(task.training_params),
                    node.files.output(task.id),
                    base_model=name,
                    seconds=node.settings.train_seconds,
                    stop=self._stop_training,
                    live=live,
                ),
                abandon_on_cancel=True,
            )
        except TrainingError as error:
            await node.log(task.id, f"=== Container Failed ===\n{error}")
            raise
        if size := node.settings.filler_bytes:
            await anyio.Path(node.files.output(task.id) / "filler.txt").write_bytes(random.randbytes(size))
        if live is None:
            text = outcome.log_text.replace(str(node.files.output(task.id)), _CONTAINER_OUTPUT)
            await node.log(task.id, f"Container logs:\n{text.rstrip()}")

    def _live_log(self, task: ProviderTask) -> Callable[[str], None]:
        return lambda line: self._node.files.append_log(task.id, line.rstrip("\n"), None)
