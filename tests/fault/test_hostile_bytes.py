"""Bytes and addresses made to hurt: deep JSON, ABI bombs, every spelling of an address at home."""

import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest
from aiohttp import web

from tests import pythons
from tests.http_server import serving
from tests.unit.test_egress import PRIVATE
from zg_async.errors import EndpointRefusedError, ProviderError, RpcError
from zg_async.transport import egress
from zg_async.transport.http import Http, HttpSettings
from zg_async.transport.retry import RetryPolicy
from zg_async.wire import strict_json
from zg_async.wire.contracts import FineTuningContract, InferenceContract, LedgerContract

AT = "0x8F6e29af374BF397d73C3b163FB3aBff97Cd4c1C"
ID = "6b607314-88b0-4fef-91e7-43227a54de57"
MIB = 2**20

# ---- JSON

DEEP = """
import runpy, sys
sys.setrecursionlimit(100_000)  # what importing py_ecc does
strict = runpy.run_path({path!r})
for text in (b"[" * 100_000, b'{{"a":' * 100_000, b"[" * 65 + b"]" * 65, b'["\\\\\\\\[",' * 50_000):
    try:
        strict["decode_json"](text, limit=2**22)
    except strict["BadJsonError"]:
        continue
    sys.exit("accepted")
print("alive")
"""
BROKER = """
import sys
import zg_async, eth_account
from zg_async.wire.strict_json import BadJsonError, decode_json
zg_async.create_broker(private_key="0x" + "11" * 32, network="local")
try:
    decode_json(b"[" * 100_000, limit=2**22)
except BadJsonError:
    print("alive")
"""


def _run(python: str, code: str) -> str:
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=False).stdout.strip()


@pytest.mark.slow
@pytest.mark.goal("HRD-10", part="deep JSON in a child process, on each Python here")
def test_deep_json_ends_no_interpreter():
    code = DEEP.format(path=strict_json.__file__)
    for version in pythons.VERSIONS:
        if pythons.works(version):
            assert _run(f"python{version}", code) == "alive", version
    assert _run(sys.executable, code) == "alive"
    assert _run(sys.executable, BROKER) == "alive"


@pytest.mark.goal("HRD-10", part="outside text has one door")
def test_outside_json_is_read_by_the_strict_decoder_only():
    """What else calls `json.loads` reads what this package wrote, or what the user named."""
    package = Path(strict_json.__file__).parents[1]
    users = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if "json.loads(" in path.read_text() and "devnet" not in path.parts
    }
    ours = {"jobs/work.py", "jobs/spec.py", "jobs/batch.py", "jobs/delivering.py", "jobs/sqlite.py"}
    ours |= {"jobs/trackers.py"}
    ours |= {"jobs/presence.py", "cli/completing.py", "cli/controller.py"}
    ours |= {"serve/fine_tuning.py", "cli/params_file.py", "cli/demo.py", "transport/book.py", "transport/tee.py"}
    ours |= {"transport/sqlite_outbox.py", "transport/audit.py", "wire/rows.py", "wire/strict_json.py"}
    assert users - ours == set()


# ---- ABI


def word(number: int) -> bytes:
    return number.to_bytes(32, "big")


def bombs(size: int) -> dict[str, bytes]:
    """Results in which parts overlap, lie elsewhere, or are said to be very many."""
    words = size // 32
    return {
        "each offset points at the next": word(32) * words,
        "each offset points at the start": bytes(32) * words,
        "counts of everything": word(32) + word(words) * words,
        "a count beyond all": word(32) + word(2**255) + bytes(size),
        "one part many times": word(32) + word(words // 2) + word(32 * (words // 2)) * (words // 2) + word(1) * words,
    }


TUNING, SERVING, LEDGER = FineTuningContract(AT), InferenceContract(AT), LedgerContract(AT)
RESULTS = (
    TUNING.get_all_services(),
    TUNING.get_account(AT, AT),
    TUNING.get_deliverables(AT, AT),
    TUNING.get_accounts_by_user(AT, 0, 50),
    SERVING.get_account(AT, AT),
    SERVING.get_all_services(0, 50),
    LEDGER.get_ledger_providers(AT, "x"),
)
BOMBS = [(call, name) for call in RESULTS for name in bombs(32)]
BOMBS.remove((RESULTS[-1], "each offset points at the next"))  # 32 addresses and much behind them


@pytest.mark.goal("HRD-11")
@pytest.mark.parametrize(("call", "name"), BOMBS, ids=[f"{c.name}-{n}" for c, n in BOMBS])
def test_a_bomb_is_refused_at_once_and_without_memory(call, name):
    assert len(BOMBS) >= 30
    data = bombs(400_000)[name]
    best = 1.0
    for _ in range(3):
        started = time.thread_time()
        with pytest.raises(RpcError):
            call.decode(data)
        best = min(best, time.thread_time() - started)
    assert best < 0.05
    tracemalloc.start()
    with pytest.raises(RpcError):
        call.decode(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * len(data)


# ---- addresses

LOOPBACK = (
    "127.0.0.1", "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.0.0.1", "0177.0.0.1", "017700000001",
    "127.0.0.1.", "127.0.0.0x1", "0", "0x0", "\uff11\uff12\uff17.0.0.1", "1\u20e327.0.0.1", "127\u3002 0.0.1",
    "localhost", "LOCALHOST", "localhost.", "\u24db\u24de\u24d2\u24d0\u24db\u24d7\u24de\u24e2\u24e3", "user@127.0.0.1",
    "a:b@localhost", "127.0.0.1%00", "127.0.0.1%2f",
)  # fmt: skip
ADDRESSES = [a for a in PRIVATE if a and a not in ("localhost", "1.2.3", "01.1.1.1")]
SPELLINGS = [*LOOPBACK, *(f"[{a.replace('%', '%25')}]" if ":" in a else a for a in ADDRESSES)]


@pytest.mark.goal("HRD-13")
async def test_no_spelling_of_an_address_at_home_is_ever_connected_to(clock, monkeypatch):
    """The proof is a listener that hears nothing: at loopback, to which every name here is made to lead."""
    assert len(SPELLINGS) >= 60
    heard = []

    async def listener(request: web.Request) -> web.Response:
        heard.append(request.path)
        return web.Response(status=302, headers={"Location": "/on"})

    async def leads_home(_resolver, host, port=0, family=0):
        return [{"hostname": host, "host": "127.0.0.1", "port": port, "family": 2, "proto": 0, "flags": 0}]

    monkeypatch.setattr(egress.aiohttp.DefaultResolver, "resolve", leads_home)
    settings = HttpSettings(retry=RetryPolicy(attempts=1))
    async with serving(listener) as base, Http(settings=settings, clock=clock) as http:
        port = base.rpartition(":")[2]
        names = ["rebinding.example", "metadata.google.internal", "127.0.0.1.nip.example"]
        for scheme in ("http", "https"):
            for host in [*SPELLINGS, *names]:
                url = f"{scheme}://{host}:{port}/{len(heard)}"
                with pytest.raises(EndpointRefusedError):
                    await http.request("GET", url)
                with pytest.raises(EndpointRefusedError):
                    await http.request("POST", url, json={})
        allowed = HttpSettings(retry=RetryPolicy(attempts=1), allow_hosts=(f"127.0.0.1:{port}",))
        async with Http(settings=allowed, clock=clock) as other:
            for elsewhere in (
                f"http://localhost:{port}/",
                f"http://[::1]:{port}/",
                f"http://127.0.0.1:{int(port) - 1}/",
            ):
                with pytest.raises(EndpointRefusedError):
                    await other.request("GET", elsewhere)
            assert heard == []
            with pytest.raises(ProviderError):
                await other.request("POST", f"http://127.0.0.1:{port}/once", json={})
    assert heard == ["/once"]  # the listener does hear, and what has a body isn't redirected
