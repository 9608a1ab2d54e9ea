"""A provider's database: its tasks, in memory and as one JSON file each, so that a restart finds them."""

import dataclasses
import datetime as dt
import json
import os
import uuid
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread

from zg_async.wire.records import TERMINAL, Address, TaskId, TaskProgress

PENDING: Final = frozenset({TaskProgress.INIT, TaskProgress.SETTING_UP, TaskProgress.SET_UP, TaskProgress.TRAINING})
"""What counts as waiting for, or in, training."""


@dataclasses.dataclass(slots=True, kw_only=True)
class ProviderTask:
    """One row of the provider's database."""

    id: TaskId
    created_at: float
    updated_at: float
    user: Address
    user_address: str
    """As the creator spelled it."""
    model_hash: str
    dataset_hash: str
    training_params: str
    nonce: str
    signature: str
    model_type: int
    fee: int = 0
    progress: TaskProgress = TaskProgress.INIT
    deliver_time: int = 0
    user_public_key: str = ""
    """65 bytes in hex, recovered from the signature."""
    root_hash: str = ""
    secret: str = ""
    """The file's AES key in hex."""
    retries: dict[str, int] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the task as the API shows it; no root, no secret, no counters."""
        return {
            "id": self.id,
            "createdAt": _rfc3339(self.created_at),
            "updatedAt": _rfc3339(self.updated_at),
            "userAddress": self.user_address,
            "preTrainedModelHash": self.model_hash,
            "datasetHash": self.dataset_hash,
            "trainingParams": self.training_params,
            "fee": str(self.fee),
            "nonce": self.nonce,
            "signature": self.signature,
            "progress": self.progress.value,
            "deliverIndex": 0,
            "deliverTime": self.deliver_time,
            "modelType": self.model_type,
            "wait": False,
        }


def _rfc3339(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


class TaskStore:
    """All tasks of one provider, oldest first."""

    def __init__(self, folder: Path) -> None:
        """Open the tasks in a folder; it is created when the first task comes."""
        self.folder = folder
        self._changed = anyio.Event()
        self._tasks: dict[TaskId, ProviderTask] = {}
        for path in sorted(folder.glob("*/task.json")):
            fields = json.loads(path.read_bytes())
            task = ProviderTask(**fields | {"progress": TaskProgress(fields["progress"])})
            self._tasks[task.id] = task
        self._tasks = dict(sorted(self._tasks.items(), key=lambda item: item[1].created_at))

    def __iter__(self) -> Iterator[ProviderTask]:
        """Iterate over the tasks, oldest first."""
        return iter(tuple(self._tasks.values()))

    def get(self, task_id: TaskId) -> ProviderTask | None:
        """Return a task, or None."""
        return self._tasks.get(task_id)

    def of_user(self, user: Address | None) -> list[ProviderTask]:
        """Return a user's tasks, oldest first."""
        return [task for task in self._tasks.values() if task.user == user]

    def unfinished(self, user: Address) -> bool:
        """Tell whether a user has a task that is neither Finished nor Failed."""
        return any(task.progress not in TERMINAL for task in self.of_user(user))

    def pending(self) -> int:
        """Count the tasks of all users that wait for training or are in it."""
        return sum(task.progress in PENDING for task in self._tasks.values())

    def first(self, progress: TaskProgress) -> ProviderTask | None:
        """Return the oldest task in a state, or None."""
        return next((task for task in self._tasks.values() if task.progress is progress), None)

    async def wait_for(self, states: Container[TaskProgress]) -> None:
        """Wait until a task is in one of some states."""
        while not any(task.progress in states for task in self._tasks.values()):
            await self._changed.wait()

    def _tell(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    async def add(self, task: ProviderTask) -> None:
        """Insert a new task."""
        self._tasks[task.id] = task
        self._tell()
        await self.save(task)

    async def move(self, task: ProviderTask, start: TaskProgress, end: TaskProgress, now: float) -> bool:
        """Change a task's state, unless something else changed it first (a cancellation, a restart, lost state).

        Returns:
            Whether it was changed.
        """
        if self._tasks.get(task.id) is not task or task.progress is not start:
            return False
        task.progress = end
        task.updated_at = now
        self._tell()
        await self.save(task)
        return True

    async def save(self, task: ProviderTask) -> None:
        """Write a task's file."""
        text = json.dumps(dataclasses.asdict(task))
        await anyio.to_thread.run_sync(_write, self.folder / task.id, text)

    async def fail_unfinished(self, now: float) -> int:
        """Mark every task that isn't over as Failed, as a broker does when it starts; return how many."""
        failed = [task for task in self._tasks.values() if task.progress not in TERMINAL]
        for task in failed:
            task.progress = TaskProgress.FAILED
            task.updated_at = now
            await self.save(task)
        return len(failed)

    def forget(self) -> None:
        """Lose all tasks; their files stay."""
        self._tasks.clear()


def _write(folder: Path, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"task.{uuid.uuid4().hex}.part"
    part.write_text(text)
    os.replace(part, folder / "task.json")
