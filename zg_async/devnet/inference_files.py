"""Files of an inference provider: keys handed over, adapters fetched, decrypted and unpacked."""

import dataclasses
import json
import re
import shutil
import zipfile
from pathlib import Path
from typing import Final

from zg_async.devnet.model import Adapter
from zg_async.devnet.trainer import read_adapter
from zg_async.wire.archive import check_entries
from zg_async.wire.envelope import ModelDecryptor, unwrap_key
from zg_async.wire.hashing import checksum_address
from zg_async.wire.records import Address

_PIECE: Final = 2**20
_MAX_UNPACKED: Final = 2**30
_WANTED: Final = ("adapter_config.json", "adapter_model.safetensors")
_MAX_ID: Final = 128
_MAX_KEY: Final = 4096
_SAFE: Final = re.compile(r"[A-Za-z0-9._-]+")


class AdapterKeyError(Exception):
    """A key that was handed over can't be used."""

    def __init__(self, code: str, text: str) -> None:
        """Make an error with the code of inference.md 12.2."""
        super().__init__(text)
        self.code = code


@dataclasses.dataclass(frozen=True, slots=True)
class AdapterKey:
    """What opens one model file."""

    storage_hash: str
    wrapped: str
    """The AES key, encrypted to the provider's wallet; hex."""
    tee_signer: Address | None
    """Who signed the file's tags; None: this provider's own TEE signer."""


def check_key(task_id: str, storage_hash: str, wrapped: str, tee_signer: str | None) -> AdapterKey:
    """Check what the fine-tuning side hands over.

    Raises:
        AdapterKeyError: `invalid_payload`, `invalid_hash_size`, `invalid_hash_hex`, `invalid_enc_key` or
            `invalid_signer`.
    """
    if not _SAFE.fullmatch(task_id) or set(task_id) == {"."} or len(task_id) > _MAX_ID or len(storage_hash) > _MAX_ID:
        raise AdapterKeyError("invalid_payload", "taskId and storageHash are required, 128 characters at most")
    digits = storage_hash.removeprefix("0x")
    if len(digits) != 64 or not storage_hash.startswith("0x"):
        raise AdapterKeyError("invalid_hash_size", "storageHash must be 0x and 64 hex digits")
    if not re.fullmatch(r"[0-9a-fA-F]{64}", digits):
        raise AdapterKeyError("invalid_hash_hex", "storageHash is not hex")
    wrapped = wrapped.removeprefix("0x")
    if len(wrapped) > _MAX_KEY or len(wrapped) % 2 or not re.fullmatch(r"[0-9a-fA-F]+", wrapped):
        raise AdapterKeyError("invalid_enc_key", "providerEncKey is not hex")
    try:
        signer = checksum_address(tee_signer) if tee_signer else None
    except ValueError:
        raise AdapterKeyError("invalid_signer", "teeSignerAddress is not an address") from None
    return AdapterKey(storage_hash.lower(), wrapped, signer)


class AdapterFiles:
    """One provider's folder. All methods block."""

    def __init__(self, folder: Path) -> None:
        """Use a folder, created when something is written."""
        self._folder = folder

    def put_key(self, task_id: str, key: AdapterKey) -> None:
        """Keep a key; a later one for the same task replaces it."""
        path = self._key_path(task_id)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(dataclasses.asdict(key)))
        part.replace(path)

    def key(self, task_id: str) -> AdapterKey:
        """Return a task's key.

        Raises:
            OSError: There is none.
        """
        return AdapterKey(**json.loads(self._key_path(task_id).read_text()))

    def has(self, task_id: str) -> bool:
        """Return whether an adapter's files are here."""
        return all((self._adapter_path(task_id) / name).is_file() for name in _WANTED)

    def load(self, task_id: str) -> Adapter:
        """Read an unpacked adapter.

        Raises:
            ValueError: It is none of this model.
            OSError: It isn't there.
        """
        return read_adapter(self._adapter_path(task_id))

    def drop(self, task_id: str) -> None:
        """Remove an adapter's files; its key stays."""
        shutil.rmtree(self._adapter_path(task_id), ignore_errors=True)

    def size(self) -> int:
        """Return the bytes of all adapters."""
        return sum(path.stat().st_size for path in self._folder.rglob("*") if path.is_file())

    def open_model(self, task_id: str, encrypted: Path, provider_key: bytes, tee_signer: Address) -> None:
        """Decrypt a model file and unpack the adapter in it.

        Args:
            task_id: Whose.
            encrypted: The file as the fine-tuning side keeps it.
            provider_key: Unwraps the AES key.
            tee_signer: Must have signed the tags, unless the hand-over named another.

        Raises:
            VerificationError: Damaged, wrongly signed, or an archive that mustn't be unpacked.
            OSError: Something is missing.
        """
        key = self.key(task_id)
        aes_key = unwrap_key(provider_key, bytes.fromhex(key.wrapped))
        target = self._adapter_path(task_id)
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        plain = target / "model.zip"
        try:
            _decrypt(encrypted, plain, ModelDecryptor(aes_key, expected_signer=key.tee_signer or tee_signer))
            _unpack(plain, target)
        finally:
            plain.unlink(missing_ok=True)

    def _key_path(self, task_id: str) -> Path:
        return self._folder / "keys" / f"{task_id}.json"

    def _adapter_path(self, task_id: str) -> Path:
        return self._folder / "adapters" / task_id


def _decrypt(encrypted: Path, plain: Path, decryptor: ModelDecryptor) -> None:
    with encrypted.open("rb") as source, plain.open("wb") as target:
        while piece := source.read(_PIECE):
            for part in decryptor.update(piece):
                target.write(part)
        decryptor.finish()


def _unpack(plain: Path, target: Path) -> None:
    with zipfile.ZipFile(plain) as archive:
        for entry in check_entries(archive.infolist(), max_total=_MAX_UNPACKED):
            if entry.path in _WANTED:
                (target / entry.path).write_bytes(archive.read(entry.name))
