"""`zg` for tests that run it often: one process has imported it, and forks for each command.

Only the start is saved: a command has its own process, arguments, environment, folder and files as ever. The starter is
this file run as a program: `python -S -E warm_zg.py SOCKET WORDS...`.
"""

import array
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

_SIZE = 4


def main(place: str, words: list[str]) -> int:
    """Have one command run, and return its exit code."""
    files = [number for number in range(10) if _is_open(number)]
    head = {"words": words, "environment": dict(os.environ), "folder": os.getcwd(), "files": files}
    data = json.dumps(head).encode()
    with socket.socket(socket.AF_UNIX) as there:
        there.connect(place)
        rights = array.array("i", files)
        size = len(data).to_bytes(_SIZE, "big")
        there.sendmsg([size], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        there.sendall(data)
        pid = int.from_bytes(_read(there, _SIZE), "big")
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: os.kill(pid, number))
        return int.from_bytes(_read(there, _SIZE), "big")


def serve(place: str) -> None:
    """Import all that commands need, then fork for each that is asked for, until killed."""
    import importlib
    import threading

    for name in ("cli.main", "broker", "jobs.runner", "transport.rpc", "transport.signer"):
        importlib.import_module(f"zg_async.{name}")
    assert threading.active_count() == 1, "a process with threads mustn't fork"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(place)
        listener.listen(16)
        print("ready", flush=True)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks for them
        while True:
            here, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _command(here)
            here.close()


@contextlib.contextmanager
def started() -> Iterator[str]:
    """Start the process that forks; gives the words that run `zg` by it."""
    with tempfile.TemporaryDirectory(prefix="zg-warm-") as folder:
        place = f"{folder}/socket"
        code = f"from tests.warm_zg import serve; serve({place!r})"
        command = [sys.executable, "-c", code]
        root = Path(__file__).parents[1]
        with subprocess.Popen(command, cwd=root, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            try:
                yield f'"{sys.executable}" -S -E "{__file__}" {place}'
            finally:
                process.kill()


def _command(here: socket.socket) -> None:
    """Be the process of one command."""
    size, rights, _, _ = here.recvmsg(_SIZE, socket.CMSG_SPACE(40))
    files = array.array("i")
    for _, _, data in rights:
        files.frombytes(data)
    head = json.loads(_read(here, int.from_bytes(size, "big")))
    kept = os.dup(here.fileno())
    high = os.dup2(kept, 200)  # out of the way of what the command gets
    moved = [os.dup2(number, 100 + place) for place, number in enumerate(files)]
    for number in range(3, 100):
        if number not in moved:
            _close(number)
    for number, now in zip(head["files"], moved, strict=True):
        os.dup2(now, number, inheritable=True)
        os.close(now)
    os.environ.clear()
    os.environ.update(head["environment"])
    os.chdir(head["folder"])
    sys.argv = ["zg", *head["words"]]
    sys.stdin, sys.stdout, sys.stderr = (open(n, mode, 1, closefd=False) for n, mode in enumerate("rww"))  # noqa: SIM115
    with socket.socket(fileno=high) as there:
        there.sendall(os.getpid().to_bytes(_SIZE, "big"))
        code = 1
        try:
            from zg_async.cli.entry import entry

            entry()
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        finally:
            sys.stdout.flush()
            there.sendall(code.to_bytes(_SIZE, "big"))
            os._exit(code)


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _close(number: int) -> None:
    try:
        os.close(number)
    except OSError:
        return


def _read(there: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        if not (more := there.recv(size - len(data))):
            raise EOFError("the other side is gone")
        data += more
    return data


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
