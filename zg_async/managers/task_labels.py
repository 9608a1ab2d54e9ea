"""Names, tags and notes that a user gives tasks. They stay on this machine: providers know nothing of them."""

import dataclasses
import json
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import anyio.to_thread

from zg_async.errors import ConfigError
from zg_async.paths import write_private
from zg_async.wire.records import Address, Task, TaskId
from zg_async.wire.strict_json import BadJsonError, decode_json

_LIMIT: Final = 8 * 2**20
_MAX_TEXT: Final = 2000
_MAX_TAGS: Final = 50
_WRITING: Final = threading.Lock()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TaskLabel:
    """What a user calls a task."""

    name: str = ""
    tags: tuple[str, ...] = ()
    """In alphabetical order."""
    note: str = ""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing in it."""
        return self == TaskLabel()

    def fits(self, name: str | None, tags: Collection[str]) -> bool:
        """Say whether it has this name, if one is asked for, and all these tags."""
        return name in (None, self.name) and set(tags) <= set(self.tags)


class TaskLabels:
    """The labels of one wallet on one chain, in one small file."""

    def __init__(self, folder: Path | None, *, genesis: str, wallet: Address) -> None:
        """Open nothing yet; None: nothing can be labelled."""
        self._path = None if folder is None else folder / "task-labels" / f"{genesis[2:18]}-{wallet.lower()}.json"

    async def all(self) -> Mapping[TaskId, TaskLabel]:
        """Return the label of each task that has one.

        Raises:
            ConfigError: The file can't be read.
        """
        return await anyio.to_thread.run_sync(self._read)

    async def change(
        self, task_id: TaskId, *, name: str | None, tags: Iterable[str] | None, note: str | None
    ) -> TaskLabel:
        """Change a task's label; what is None stays as it is.

        Raises:
            ConfigError: A text is too long, or the file can't be read or written.
        """
        changes: dict[str, Any] = {"name": name, "note": note, "tags": None if tags is None else _tags(tags)}
        changes = {field: value for field, value in changes.items() if value is not None}
        for text in (changes.get("name", ""), changes.get("note", ""), *changes.get("tags", ())):
            if len(text) > _MAX_TEXT:
                raise ConfigError(f"a task's name, tags and note have at most {_MAX_TEXT} characters each")
        return await anyio.to_thread.run_sync(self._change, task_id, changes)

    def _read(self) -> dict[TaskId, TaskLabel]:
        if self._path is None or not self._path.exists():
            return {}
        try:
            with self._path.open("rb") as file:
                book = decode_json(file.read(_LIMIT + 1), limit=_LIMIT)
            return {TaskId(task): _label(fields) for task, fields in dict(book).items()}
        except (OSError, BadJsonError, TypeError, ValueError, KeyError) as error:
            raise ConfigError(f"can't read the labels in {self._path}: {error}", hint="Mend or remove it") from error

    def _change(self, task_id: TaskId, changes: Mapping[str, Any]) -> TaskLabel:
        if self._path is None:
            raise ConfigError("labels need a state folder", hint="Make the broker with create_broker")
        with _WRITING:
            labels = self._read()
            label = dataclasses.replace(labels.pop(task_id, TaskLabel()), **changes)
            if not label.is_empty:
                labels[task_id] = label
            book = {task: dataclasses.asdict(one) for task, one in labels.items()}
            data = json.dumps(book, ensure_ascii=False).encode()
            if len(data) > _LIMIT:
                raise ConfigError(f"{self._path} would grow past {_LIMIT} bytes", hint="Remove labels of old tasks")
            write_private(self._path, data, what="task labels", replace=True)
        return label


def pick(
    tasks: Sequence[Task], labels: Mapping[TaskId, TaskLabel], name: str | None, tags: Collection[str]
) -> list[Task]:
    """Return the tasks whose label has this name and all these tags."""
    return [task for task in tasks if labels.get(task.id, TaskLabel()).fits(name, tags)]


def _tags(tags: Iterable[str]) -> tuple[str, ...]:
    if isinstance(tags, str):
        raise ConfigError("tags are a list of texts, not one text", hint=f"tags=[{tags[:40]!r}]")
    found = tuple(sorted(set(tags)))
    if len(found) > _MAX_TAGS or not all(found):
        raise ConfigError(f"a task has at most {_MAX_TAGS} tags, none of them empty")
    return found


def _label(fields: Mapping[str, Any]) -> TaskLabel:
    name, note, tags = fields["name"], fields["note"], fields["tags"]
    if not all(isinstance(text, str) for text in (name, note, *tags)):
        raise TypeError("a label has name, tags and note")
    return TaskLabel(name=name, note=note, tags=_tags(tags))
