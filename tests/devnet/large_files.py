"""Files of gigabytes: a server that makes a model while it sends it, and programs that measure their own memory.

    python -m tests.devnet.large_files serve BYTES
    python -m tests.devnet.large_files deliver PORT FOLDER KECCAK
    python -m tests.devnet.large_files cli WORD ...

The last two print JSON: `peak` is the highest resident memory in bytes of their process, which nothing else runs in.
"""

import asyncio
import contextlib
import datetime as dt
import io
import json
import re
import resource
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.loop_probe import probing
from zg_async.cli.main import run
from zg_async.clock import SystemClock
from zg_async.managers.delivery import StorageRootHasher, decrypt_file, download_model
from zg_async.managers.provider_client import ProviderClient
from zg_async.transport.http import MIB, Http, HttpSettings
from zg_async.wire.envelope import SIGNATURE_SIZE, ModelEncryptor
from zg_async.wire.hashing import checksum_address, hex0x
from zg_async.wire.records import Deliverable, TaskId
from zg_async.wire.signing import recover_address, sign_digest

KEY, NONCE, SIGNER = b"k" * 32, b"n" * 12, b"s" * 32
USER = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"
PROVIDER = "0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC"
TASK = TaskId("11111111-2222-3333-4444-555555555555")
BLOCK = bytes(range(256)) * (MIB // 256)
"""What a model consists of, over and over."""


def signer() -> str:
    return checksum_address(recover_address(b"\x01" * 32, sign_digest(SIGNER, b"\x01" * 32)))


def sealed(size: int, encryptor: ModelEncryptor) -> Iterator[bytes]:
    for _ in range(size // MIB):
        yield from encryptor.update(BLOCK)
    yield from encryptor.finish()


def encryptor() -> ModelEncryptor:
    return ModelEncryptor(KEY, NONCE, lambda digest: sign_digest(SIGNER, digest))


def serve(size: int) -> None:
    """Answer one request with an encrypted model of `size` bytes, and print the port."""
    first = encryptor()
    length = sum(map(len, sealed(size, first)))  # the signature stands first, and is known last
    with socket.create_server(("127.0.0.1", 0)) as server:
        print(server.getsockname()[1], flush=True)
        connection, _ = server.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n".encode())
            connection.sendall(first.signature)
            skip = SIGNATURE_SIZE
            for piece in sealed(size, encryptor()):
                connection.sendall(memoryview(piece)[skip:])
                skip = max(0, skip - len(piece))


class NotedRoot(StorageRootHasher):
    """Keeps the root that a download computed; the record only has the hash that is on chain."""

    noted = b""

    def digest(self) -> bytes:
        type(self).noted = super().digest()
        return self.noted


async def deliver(port: int, folder: Path, keccak: str) -> dict[str, object]:
    """Fetch and hash the model and decrypt it, as a delivery does."""
    on_chain = Deliverable(
        id=TASK,
        model_root_hash=bytes.fromhex(keccak[2:]),
        encrypted_secret=b"",
        acknowledged=False,
        timestamp=dt.datetime(2026, 11, 20, tzinfo=dt.UTC),
        settled=False,
    )

    async def body() -> object:
        return {}

    clock = SystemClock()
    async with Http(settings=HttpSettings(allow_hosts=("127.0.0.1",)), clock=clock) as http:
        client = ProviderClient(http, f"http://127.0.0.1:{port}", PROVIDER, clock)
        with probing() as probe:
            model = await download_model(client, USER, on_chain, folder / "model", body, storage_root=NotedRoot)
            await decrypt_file(model.path, folder / "model.zip", key=KEY, expected_signer=signer())
    return {
        "size": model.size,
        "keccak256": model.root_hash,
        "storage_root": hex0x(NotedRoot.noted),
        "plain_size": (folder / "model.zip").stat().st_size,
        "plain_is_right": is_plain(folder / "model.zip"),
        "slowest_callback": probe.worst,
        "callback": probe.what,
        "waited": probe.waited,
    }


def is_plain(path: Path) -> bool:
    """Compare each 64th MiB, and so the beginning of each chunk, and the end."""
    with path.open("rb") as file:
        count = path.stat().st_size // MIB
        for number in (*range(0, count, 64), count - 1):
            file.seek(number * MIB)
            if file.read(MIB) != BLOCK:
                return False
    return True


def command_line(words: list[str]) -> dict[str, object]:
    """Run `zg`, and return what it said and its exit code."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = run(words)
    return {"exit": code, "out": out.getvalue()}


def peak() -> int:
    """Return this process's highest resident memory in bytes, without what it was forked from."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text())[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", size]:
            serve(int(size))
        case ["deliver", port, folder, keccak]:
            done = asyncio.run(deliver(int(port), Path(folder), keccak))
            print(json.dumps({**done, "peak": peak()}))
        case ["cli", *words]:
            done = command_line(words)
            print(json.dumps({**done, "peak": peak()}))
