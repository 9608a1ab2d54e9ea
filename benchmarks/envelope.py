"""Fetch, hash and decrypt a model, against the raw cipher and hash: seconds, ratio, peak memory.

    python benchmarks/envelope.py [MiB]        default 1024

A server in a process of its own sends the file as fast as the loopback takes it. The floor is a process that does
nothing but decrypt, then hash, then write and sync the same bytes, 1 MiB at a time. Ours runs three times, the best
counts: the first one also pays for page cache the machine hasn't handed out yet. Aims at 1 GiB: 5 s, 96 MiB.
"""

import asyncio
import json
import os
import resource
import secrets
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from zg_async.clock import SystemClock
from zg_async.managers.delivery import KECCAK256, decrypt_file
from zg_async.transport.http import MIB, Http, HttpSettings
from zg_async.transport.transfer import download_file
from zg_async.wire.envelope import ModelDecryptor, ModelEncryptor
from zg_async.wire.hashing import Keccak256, checksum_address
from zg_async.wire.signing import recover_address, sign_digest

KEY, NONCE, SIGNER = b"k" * 32, b"n" * 12, b"s" * 32


def make(path: Path, mebibytes: int) -> None:
    """Write an encrypted model."""
    block = secrets.token_bytes(MIB)
    encryptor = ModelEncryptor(KEY, NONCE, lambda digest: sign_digest(SIGNER, digest))
    with path.open("wb") as file:
        for _ in range(mebibytes):
            file.writelines(encryptor.update(block))
        file.writelines(encryptor.finish())
        file.seek(0)
        file.write(encryptor.signature)


def serve(path: str) -> None:
    """Answer every request with the file, by sendfile, and print the port."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        print(server.getsockname()[1], flush=True)
        while True:
            connection, _ = server.accept()
            with connection, Path(path).open("rb") as file:
                connection.recv(65536)
                size = os.path.getsize(path)
                connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n".encode())
                connection.sendfile(file)


def signer() -> str:
    """Return the TEE signer's address."""
    return checksum_address(recover_address(b"\x01" * 32, sign_digest(SIGNER, b"\x01" * 32)))


async def deliver(port: int, folder: Path) -> dict[str, float]:
    """Do what `deliver` does with a file, and measure it."""
    base_memory = peak()
    settings = HttpSettings(allow_hosts=("127.0.0.1",))
    started, cpu = time.perf_counter(), time.process_time()
    async with Http(settings=settings, clock=SystemClock()) as http:

        async def body() -> object:
            return {}

        part = folder / "model.part"
        done = await download_file(http, f"http://127.0.0.1:{port}/lora", path=part, body=body)
    fetched = time.perf_counter()
    await decrypt_file(part, folder / "model.zip", key=KEY, expected_signer=signer())
    ended = time.perf_counter()
    return {
        "download_and_hash": fetched - started,
        "decrypt": ended - fetched,
        "total": ended - started,
        "cpu": time.process_time() - cpu,
        "peak_mib": peak(),
        "start_mib": base_memory,
        "bytes": done.size,
    }


def peak() -> float:
    """Return this process's highest memory in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else MIB)


def floor(path: Path) -> dict[str, float]:
    """Decrypt and hash from the page cache, nothing else."""
    result = {}
    decryptor = ModelDecryptor(KEY, expected_signer=signer())
    hasher = Keccak256()
    for name, work in (("raw_cipher", decryptor.update), (f"raw_{KECCAK256}", hasher.update)):
        spent = 0.0
        with path.open("rb", buffering=0) as file:
            while piece := file.read(MIB):
                before = time.perf_counter()
                work(piece)
                spent += time.perf_counter() - before
        result[name] = spent
    copy = path.with_suffix(".copy")
    with copy.open("wb", buffering=0) as out, path.open("rb", buffering=0) as file:
        before = time.perf_counter()
        while piece := file.read(MIB):
            out.write(piece)
        os.fsync(out.fileno())
        result["raw_write_and_sync"] = time.perf_counter() - before
    copy.unlink()
    return result


def main() -> None:
    """Run the benchmark, or one of its processes."""
    if len(sys.argv) > 2 and sys.argv[1] == "serve":
        serve(sys.argv[2])
        return
    if len(sys.argv) > 2 and sys.argv[1] == "deliver":
        print(json.dumps(asyncio.run(deliver(int(sys.argv[2]), Path(sys.argv[3])))))
        return
    if len(sys.argv) > 2 and sys.argv[1] == "floor":
        print(json.dumps(floor(Path(sys.argv[2]))))
        return
    mebibytes = int(sys.argv[1]) if len(sys.argv) > 1 else 1024
    me = [sys.executable, __file__]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "model.encrypted"
        make(path, mebibytes)
        server = subprocess.Popen([*me, "serve", str(path)], stdout=subprocess.PIPE, text=True)
        try:
            port = server.stdout.readline().strip()  # type: ignore[union-attr]
            runs = [once(me, port, folder) for _ in range(3)]
        finally:
            server.terminate()
            server.wait()
        raw = json.loads(subprocess.check_output([*me, "floor", str(path)], text=True))
    ours = min(runs, key=lambda run: run["total"])
    for key, value in {**ours, **raw}.items():
        print(f"{key:20} {value:12.2f}")
    print(f"{'total / raw cipher':20} {ours['total'] / raw['raw_cipher']:12.2f}")
    print(f"{'total / all raw':20} {ours['total'] / sum(raw.values()):12.2f}")


def once(me: list[str], port: str, folder: Path) -> dict[str, float]:
    """Deliver in a process of its own and clear up."""
    result: dict[str, float] = json.loads(subprocess.check_output([*me, "deliver", port, str(folder)], text=True))
    for name in ("model.part", "model.zip"):
        (folder / name).unlink()
    return result


if __name__ == "__main__":
    main()
