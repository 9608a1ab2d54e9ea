"""0G Storage root of a file: ours with every back end, the Go client, the Python SDK, in one run; and the loop's lag.

    python benchmarks/merkle.py [MiB] [rounds]        default 256, 3

Contenders take turns and the best round counts, so that whatever else the machine does hits all alike. Others take
part when they are found: the Go client by ZG_GO_STORAGE_CLIENT (the Linux program inside the official npm package;
its gateway hashes a local file and says nothing of the network), the Python SDK when `0g-storage-sdk` is installed for
this Python or for the one ZG_PY_STORAGE names. Slow contenders get a shorter file. Aims on 2 cores: AVX2 4 times Go,
tiny-keccak 5 times the Python SDK, and the loop never held up for over 50 ms ("idle" is the loop with nothing to do).
"""

import asyncio
import contextlib
import http.server
import json
import os
import pathlib
import secrets
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator

from zg_async.transport.file_tree import hash_file
from zg_async.wire.keccak_batch import KeccakBackend, backends

MIB = 1024 * 1024
GATEWAY = "http://127.0.0.1:6789"  # the program's own choice
SLOW = {"pycryptodome": 32, "native-scalar": 128}
PY_SDK = """
import sys, time
from core.file import ZgFile
start = time.perf_counter()
file = ZgFile.from_file_path(sys.argv[1])
tree, error = file.merkle_tree()
print(time.perf_counter() - start, tree.root_hash())
"""


class Result:
    """The best of one contender's rounds."""

    def __init__(self) -> None:
        self.speed = 0.0
        self.lags: list[float] = []  # each round's worst
        self.roots: set[tuple[int, str]] = set()

    def add(self, mebibytes: int, seconds: float, root: str, lag: float = 0.0) -> None:
        self.speed = max(self.speed, mebibytes / seconds)
        self.lags.append(lag)
        self.roots.add((mebibytes, root))


async def probe(found: list[float]) -> None:
    """Note how much later than asked the loop comes back."""
    while True:
        start = time.perf_counter()
        await asyncio.sleep(0.005)
        found.append(time.perf_counter() - start - 0.005)


async def ours(path: pathlib.Path, backend: KeccakBackend) -> tuple[float, str, float]:
    """Hash in a running loop that has something else to do."""
    lags: list[float] = [0.0]
    watcher = asyncio.create_task(probe(lags))  # noqa: TID251
    await asyncio.sleep(0.02)
    lags.clear()
    start = time.perf_counter()
    tree = await hash_file(path, backend=backend)
    seconds = time.perf_counter() - start
    watcher.cancel()
    return seconds, tree.root_hash, max(lags, default=0.0)


async def idle() -> float:
    """Return the loop's worst lag of a tenth of a second without any work: what the machine itself does."""
    lags: list[float] = []
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.1):  # noqa: TID251
            await probe(lags)
    return max(lags, default=0.0)


class Node(http.server.BaseHTTPRequestHandler):
    """What the gateway asks of a storage node when it starts."""

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body = json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": {"shardId": 0, "numShard": 1}}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def go_client() -> Iterator[Callable[[pathlib.Path], tuple[float, str]] | None]:
    program = os.environ.get("ZG_GO_STORAGE_CLIENT")
    if not program:
        yield None
        return
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Node) as node:
        threading.Thread(target=node.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{node.server_port}"
        gateway = subprocess.Popen(
            [program, "gateway", "--nodes", url, "--log-level", "error"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_for_gateway()
            yield ask_gateway
        finally:
            gateway.terminate()
            gateway.wait()
            node.shutdown()


def wait_for_gateway() -> None:
    for _ in range(100):
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{GATEWAY}/local/nodes", timeout=5):
            return
        time.sleep(0.1)
    raise SystemExit("the Go client's gateway doesn't start")


def ask_gateway(path: pathlib.Path) -> tuple[float, str]:
    start = time.perf_counter()
    with urllib.request.urlopen(f"{GATEWAY}/local/file?path={path}", timeout=600) as answer:
        root = json.load(answer)["data"]["root"]
    return time.perf_counter() - start, root


def py_sdk(path: pathlib.Path) -> tuple[float, str] | None:
    python = os.environ.get("ZG_PY_STORAGE", sys.executable)
    done = subprocess.run([python, "-c", PY_SDK, str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        return None
    seconds, root = done.stdout.split()
    return float(seconds), root


def make(folder: pathlib.Path, mebibytes: int) -> pathlib.Path:
    path = folder / f"{mebibytes}.bin"
    block = secrets.token_bytes(MIB)
    with path.open("wb") as file:
        for n in range(mebibytes):
            file.write(block[n:] + block[:n])
    return path


def run(folder: pathlib.Path, mebibytes: int, rounds: int) -> dict[str, Result]:
    files: dict[int, pathlib.Path] = {}

    def file(size: int) -> tuple[int, pathlib.Path]:
        size = min(size, mebibytes)
        if size not in files:
            files[size] = make(folder, size)
        return size, files[size]

    results: dict[str, Result] = {}
    with go_client() as go:
        for _ in range(rounds):
            for backend in backends():
                size, path = file(SLOW.get(backend.name, mebibytes))
                results.setdefault("idle", Result()).lags.append(asyncio.run(idle()))
                seconds, root, lag = asyncio.run(ours(path, backend))
                results.setdefault(backend.name, Result()).add(size, seconds, root, lag)
            if go is not None:
                size, path = file(mebibytes)
                results.setdefault("go-client", Result()).add(size, *go(path))
            size, path = file(8)
            if (peer := py_sdk(path)) is not None:
                results.setdefault("py-sdk", Result()).add(size, *peer)
        size, path = file(8)
        results[backends()[0].name].roots.add((size, asyncio.run(ours(path, backends()[0]))[1]))
    return results


def main() -> None:
    mebibytes = int(sys.argv[1]) if len(sys.argv) > 1 else 256
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    with tempfile.TemporaryDirectory() as folder:
        results = run(pathlib.Path(folder), mebibytes, rounds)
    go, py = (results[name].speed if name in results else None for name in ("go-client", "py-sdk"))
    for name, result in results.items():
        speed = f"{result.speed:7.0f} MiB/s" if result.speed else 13 * " "
        ratios = [f"{result.speed / peer:6.1f} x {who}" for who, peer in (("Go", go), ("Python SDK", py)) if peer]
        lag = f"lag {statistics.median(result.lags) * 1000:5.1f} ms" if max(result.lags) else ""
        print(f"{name:16} {speed} {' '.join(ratios) if result.speed else ''}  {lag}")
    roots = [pair for result in results.values() for pair in result.roots]
    same = len(set(roots)) == len({size for size, _ in roots})
    print(
        json.dumps({"mib": mebibytes, "same_roots": same, **{n: round(r.speed) for n, r in results.items() if r.speed}})
    )
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
