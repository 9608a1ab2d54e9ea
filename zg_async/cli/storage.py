"""`zg upload`, `zg download`, `zg storage`: files in 0G Storage."""

import sys
from collections.abc import Awaitable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import anyio
import cyclopts
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from zg_async.background import Background
from zg_async.cli.opening import HERE, PAYING, Paying, Where, open_broker, read_text
from zg_async.cli.output import emit
from zg_async.cli.render import size_text
from zg_async.clock import SystemClock
from zg_async.errors import ConfigError

if TYPE_CHECKING:
    from zg_async.transport.storage_settings import StorageProgress

T = TypeVar("T")
app = cyclopts.App(name="storage", help="0G Storage: roots of files.")
_REDRAW: Final = 0.1
_STAGES: Final[Mapping[str, str]] = {
    "hashing": "hashing",
    "looking": "looking for nodes",
    "paying": "paying the storage fee",
    "entry": "waiting for the nodes to see it",
    "sending": "sending",
    "finality": "waiting for confirmation",
    "fetching": "fetching",
    "checking": "checking",
    "done": "done",
}


async def upload(
    *,
    data_path: Path,
    replicas: int | None = None,
    fragment_size: int | None = None,
    public: bool = False,
    encryption_key_file: Path | None = None,
    where: Paying = PAYING,
) -> int:
    """Store a file or a folder in 0G Storage.

    Parameters
    ----------
    data_path
        The file or folder.
    replicas
        How often each part must be held.
    fragment_size
        Bytes of an entry at most; larger files get several roots.
    public
        Agree that everybody can read it for ever; needed on public networks.
    encryption_key_file
        File with 32 bytes in hex to encrypt with.
    where
        Network, wallet and output.
    """
    secret = None if encryption_key_file is None else _hex_file(encryption_key_file, "encryption key")
    async with open_broker(where) as broker:
        progress = _progress()
        stored = await _shown(
            broker.storage.upload(
                data_path,
                public=public,
                replicas=replicas,
                fragment_size=fragment_size,
                encryption_key=secret,
                progress=progress,
            ),
            progress,
        )
    _note(f"{size_text(stored.size)} held by {len(stored.nodes)} nodes")
    emit(where, "stored", stored.to_json(), lambda: stored.roots)
    return 0


async def download(
    *,
    data_path: Path,
    data_root: str,
    size: int | None = None,
    folder: bool = False,
    encryption_key_file: Path | None = None,
    where: Where = HERE,
) -> int:
    """Fetch a file from 0G Storage and prove it.

    Parameters
    ----------
    data_path
        Where it goes; nothing is overwritten.
    data_root
        Its root; for a file in fragments all roots, joined by commas.
    size
        Bytes it must have, if known.
    folder
        The root is a folder's.
    encryption_key_file
        File with the 32 bytes in hex that it was encrypted with.
    where
        Network, wallet and output.
    """
    secret = None if encryption_key_file is None else _hex_file(encryption_key_file, "encryption key")
    async with open_broker(where, wallet=False) as broker:
        progress = _progress()
        work = (
            broker.storage.download_directory(data_root, data_path, progress=progress)
            if folder
            else broker.storage.download(data_root, data_path, size=size, encryption_key=secret, progress=progress)
        )
        fetched = await _shown(work, progress)
    _note(f"{size_text(fetched.size)} proved")
    emit(where, "fetched", fetched.to_json(), lambda: str(fetched.path))
    return 0


@app.command
async def root(file: Path, *, where: Where = HERE) -> int:
    """Compute a file's storage root. Asks nobody.

    Parameters
    ----------
    file
        The file.
    where
        Network, wallet and output.
    """
    from zg_async.transport.file_tree import hash_file

    progress = _progress()
    tree = await _shown(hash_file(file, progress=progress), progress)
    emit(where, "root", {"root": tree.root_hash, "size": tree.size}, lambda: tree.root_hash)
    return 0


# --- what they share --------------------------------------------------------------------------------------------------


def _progress() -> "StorageProgress":
    from zg_async.transport.storage_settings import StorageProgress

    return StorageProgress()


def _hex_file(path: Path, what: str) -> bytes:
    try:
        return bytes.fromhex(read_text(path, what).strip().removeprefix("0x"))
    except ValueError:
        raise ConfigError(f"the {what}'s file isn't hex") from None


async def _shown(work: Awaitable[T], state: Any) -> T:
    """Show a bar on standard error while something goes on; nothing if that is no terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        return await work
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    background = Background()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(_STAGES["hashing"], total=None)

        async def redraw() -> None:
            clock = SystemClock()
            while True:
                text = _STAGES[state.stage]
                bar.update(task, description=text, completed=state.bytes_done, total=state.bytes_total)
                await clock.sleep(_REDRAW)

        background.start(redraw(), name="progress bar")
        try:
            return await work
        finally:
            with anyio.CancelScope(shield=True):
                await background.aclose()


def _note(text: str) -> None:
    print(text, file=sys.stderr)
