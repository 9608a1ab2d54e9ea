"""A job as one file, to go on with it on another machine: its events, and what it has sent.

The machine it leaves puts on record that it has, and doesn't drive it any more; so a job has one driver wherever its
file goes. The file holds no secret, only what the journal and the chain say. Other files stay: the dataset, which the
other machine needs only until the provider has it, and what was downloaded, which is fetched again.
"""

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any, Final

from zg_async.errors import JournalError
from zg_async.jobs.events import Event, event_from_json, event_to_json
from zg_async.jobs.state import JobState, fold
from zg_async.jobs.store import Owner
from zg_async.paths import write_private
from zg_async.transport.handover import Handover, Sent
from zg_async.wire.records import TxHash
from zg_async.wire.strict_json import BadJsonError, decode_json

_VERSION: Final = 1
_LIMIT: Final = 64 * 1024 * 1024


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MovedJob:
    """What a file tells."""

    chain_id: int
    genesis: str
    events: tuple[Event, ...]
    handover: Handover

    @property
    def state(self) -> JobState:
        """The job as it left."""
        return fold(self.events)


def write_job(path: Path, owner: Owner, events: tuple[Event, ...], handover: Handover) -> None:
    """Write a job's file, readable by its owner only. Blocks.

    Raises:
        ConfigError: It can't be written, or there is a file already.
    """
    body = {
        "version": _VERSION,
        "chain_id": owner.chain_id,
        "genesis": owner.genesis,
        "events": [event_to_json(event) for event in events],
        "sent": [dataclasses.asdict(sent) for sent in handover.sent],
        "charges": {key: str(amount) for key, amount in handover.charges.items()},
    }
    text = json.dumps(body | {"sha256": _digest(body)}, indent=1)
    write_private(path, text.encode(), what="the exported job", replace=False)


def read_job(path: Path) -> MovedJob:
    """Read a job's file. Blocks.

    Raises:
        JournalError: It can't be read, is damaged, or of a newer version.
    """
    try:
        with path.open("rb") as file:
            body: Any = decode_json(file.read(_LIMIT + 1), limit=_LIMIT)
        if not isinstance(body, dict) or body.pop("sha256", None) != _digest(body):
            raise JournalError(f"{path} is damaged, or no exported job", hint="Export the job again")
        if body["version"] != _VERSION:
            raise JournalError(f"{path} was written by a newer version", hint="Upgrade zg-async here")
        return MovedJob(
            chain_id=int(body["chain_id"]),
            genesis=str(body["genesis"]),
            events=tuple(event_from_json(event) for event in body["events"]),
            handover=Handover(
                sent=tuple(
                    Sent(key=str(s["key"]), name=str(s["name"]), tx_hash=TxHash(str(s["tx_hash"])))
                    for s in body["sent"]
                ),
                charges={str(key): int(amount) for key, amount in body["charges"].items()},
            ),
        )
    except OSError as error:
        raise JournalError(f"{path} can't be read: {error.strerror}") from error
    except (BadJsonError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise JournalError(f"{path} can't be read: {error}", hint="Export the job again") from error


def newer_events(path: Path, here: tuple[Event, ...], moved: MovedJob) -> tuple[Event, ...]:
    """Return what a file tells beyond what the journal has of the job, which has to be its beginning.

    Raises:
        JournalError: The job is driven here, or its story is another one.
    """
    if here and not fold(here).moved:
        job_id = here[0].job_id
        raise JournalError(f"job {job_id} is in this journal already", hint="Attach to it; it never left")
    if [_bare(event) for event in here] != [_bare(event) for event in moved.events[: len(here)]]:
        raise JournalError(f"{path} tells another story of the job than this journal", hint="Take its newest export")
    news = moved.events[len(here) :]
    if here and not news:
        raise JournalError(
            f"{path} is what left here", hint="Import it at another machine; to come back, export it there"
        )
    return news


def absolute(path: str | os.PathLike[str] | None) -> str | None:
    """Return a path as the journal holds it."""
    return None if path is None else str(Path(path).expanduser().absolute())


def _bare(event: Event) -> Event:
    return dataclasses.replace(event, seq=0)


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
