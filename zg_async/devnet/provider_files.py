"""A provider's disk: datasets, logs, trained models, encrypted files. Everything blocks: call it in a thread."""

import contextlib
import datetime as dt
import json
import os
import secrets
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from zg_async.devnet.provider_rules import check_lines, convert_rows
from zg_async.wire.envelope import ModelEncryptor
from zg_async.wire.hashing import Keccak256, hex0x
from zg_async.wire.records import Address

PIECE: Final = 2**20


class ProviderFiles:
    """Where things are."""

    def __init__(self, folder: Path) -> None:
        """Use a folder; it is created when something is written."""
        self.folder = folder
        self.tasks = folder / "tasks"

    # --- datasets ---

    def dataset(self, user: Address, dataset_hash: str) -> Path:
        """Return where a user's upload lies, whatever the address's spelling was."""
        return self.folder / "datasets" / user.lower() / dataset_hash

    def save_dataset(self, user: Address, part: Path, now: float) -> str:
        """Check an uploaded file, store it under its hash and try to convert it.

        Returns:
            The hash of the raw bytes.

        Raises:
            Refused: A line is no JSON object.
        """
        hasher = Keccak256()
        with part.open("rb") as file:
            while piece := file.read(PIECE):
                hasher.update(piece)
            file.seek(0)
            check_lines(file)
        dataset_hash = hex0x(hasher.digest())
        path = self.dataset(user, dataset_hash)
        path.parent.mkdir(parents=True, exist_ok=True)
        part.replace(path)
        os.utime(path, (now, now))  # retention counts by the provider's clock
        with contextlib.suppress(ValueError, RecursionError):  # only logged by a broker: setup fails later
            self._convert(path)
        return dataset_hash

    def adopt_dataset(self, user: Address, dataset_hash: str, now: float) -> None:
        """Convert a dataset that was fetched to its place from 0G Storage; text rows keep their text there.

        Raises:
            ValueError: It is no JSONL; a saved DatasetDict in a ZIP is more than this trainer reads.
        """
        path = self.dataset(user, dataset_hash)
        os.utime(path, (now, now))
        self._convert(path, text=True)

    def _convert(self, path: Path, *, text: bool = False) -> None:
        rows = path.with_name(f"{path.name}_rows")
        part = path.with_name(f"{path.name}_rows.part")
        with path.open("rb") as lines, part.open("w") as out:
            for row in convert_rows(lines, text=text):
                out.write(json.dumps(row) + "\n")
        part.replace(rows)

    def rows(self, user: Address, dataset_hash: str) -> list[dict[str, Any]]:
        """Read a converted dataset.

        Raises:
            FileNotFoundError: It was never uploaded by this user, or couldn't be converted, or was removed.
        """
        path = self.dataset(user, dataset_hash)
        with path.with_name(f"{path.name}_rows").open() as lines:
            return [json.loads(line) for line in lines]

    def remove_datasets(self, older_than: float, in_use: set[Path]) -> int:
        """Remove uploads last written before a time, except those in use; return how many."""
        count = 0
        for path in self.folder.glob("datasets/*/0x*"):
            if not path.name.endswith("_rows") and path not in in_use and path.stat().st_mtime < older_than:
                path.with_name(f"{path.name}_rows").unlink(missing_ok=True)
                path.unlink()
                count += 1
        return count

    # --- tasks ---

    def task(self, task_id: str) -> Path:
        """Return a task's folder."""
        return self.tasks / task_id

    def log_path(self, task_id: str) -> Path:
        """Return where a task's log is."""
        return self.task(task_id) / "progress.log"

    def append_log(self, task_id: str, text: str, now: float | None) -> None:
        """Append to a task's log; with a time the text gets the broker's prefix."""
        path = self.log_path(task_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        stamp = "" if now is None else f"[{dt.datetime.fromtimestamp(now, dt.UTC).isoformat(timespec='seconds')}] "
        with path.open("a") as file:
            file.write(f"{stamp.replace('+00:00', 'Z')}{text}\n")

    def output(self, task_id: str) -> Path:
        """Return where the trainer writes."""
        return self.task(task_id) / "output_model"

    def encrypted(self, task_id: str) -> Path:
        """Return where the file for download is."""
        return self.task(task_id) / "output_model_encrypted.data"

    def clean_task(self, task_id: str) -> None:
        """Remove what retention removes: everything but the log and the row."""
        shutil.rmtree(self.output(task_id), ignore_errors=True)
        self.encrypted(task_id).unlink(missing_ok=True)

    def encrypt_output(self, task_id: str, sign: Callable[[bytes], bytes]) -> tuple[bytes, bytes]:
        """Zip what the trainer wrote and encrypt the zip.

        Args:
            task_id: Whose output.
            sign: Signs the hash of the tags; 65 bytes whose v is kept as 0 or 1.

        Returns:
            The AES key and keccak of the encrypted file.
        """
        plain = self.task(task_id) / "output_model.zip"
        _zip_folder(self.output(task_id), plain)
        key = secrets.token_bytes(32)
        target = self.encrypted(task_id)
        part = target.with_suffix(".part")
        _encrypt(plain, part, key, sign)
        plain.unlink()
        digest = hash_file(part)
        part.replace(target)
        return key, digest


def _zip_folder(folder: Path, target: Path) -> None:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            archive.write(path, f"output_model/{path.relative_to(folder).as_posix()}")


def hash_file(path: Path) -> bytes:
    """Return keccak of a file's bytes."""
    hasher = Keccak256()
    with path.open("rb") as file:
        for piece in _pieces(file.read):
            hasher.update(piece)
    return hasher.digest()


def _pieces(read: Callable[[int], bytes]) -> Iterator[bytes]:
    while piece := read(PIECE):
        yield piece


def _encrypt(plain: Path, target: Path, key: bytes, sign: Callable[[bytes], bytes]) -> None:
    encryptor = ModelEncryptor(key, secrets.token_bytes(12), sign)
    with plain.open("rb") as source, target.open("wb") as out:
        for piece in _pieces(source.read):
            out.writelines(encryptor.update(piece))
        out.writelines(encryptor.finish())
        out.seek(0)
        out.write(encryptor.signature)  # known last, stands first
