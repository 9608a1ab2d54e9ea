"""The devnet as others use it: as a pytest fixture of another project, and as a process with the same controls."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFTEST = """
import pytest

pytest_plugins = ["zg_async.devnet.fixtures"]


@pytest.fixture(scope="session")
def zg_devnet_options():
    return ("--limits", "off", "--providers", "1", "--storage-nodes", "1")
"""
TEST = """
import json
import subprocess
import sys
import urllib.error
import urllib.request


def ask(url, **body):
    request = urllib.request.Request(url, json.dumps(body).encode() if body else None)
    request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, None


def call(url, method, *params):
    return ask(url, jsonrpc="2.0", id=1, method=method, params=params)


def exercise(info):
    def control(command, **arguments):
        status, answer = ask(f"{info['control_url']}/{command}", **arguments)
        assert (status, answer["ok"]) == (200, True)

    def time():
        return int(call(info["rpc_url"], "eth_getBlockByNumber", "latest", False)[1]["result"]["timestamp"], 16)

    before = time()
    control("increase_time", seconds=86400)
    assert 86400 <= time() - before < 86400 + 60

    [provider], [node] = info["providers"], info["storage_nodes"]
    models = provider["url"] + "/v1/model"
    assert ask(models)[0] == 200
    control("faults", provider=0, error_5xx=1)
    assert [ask(models)[0] for _ in range(2)] == [500, 200]
    control("restart", provider=0)
    assert ask(models)[0] == 200

    able = provider["inference_url"] + "/v1/capabilities"
    before = json.dumps(ask(able)[1])
    assert '"supports_fine_tuned_adapters": true' in before
    control("inference", provider=0, lora_enabled=False)
    assert '"supports_fine_tuned_adapters": false' in json.dumps(ask(able)[1])

    identity = call(node["url"], "zgs_getStatus")[1]["result"]["networkIdentity"]
    assert identity["flowAddress"].lower() == info["flow"].lower()
    assert node["url"] in json.dumps(call(info["indexer_url"], "indexer_getShardedNodes")[1])
    control("storage", node=0, error_5xx=1)
    assert [call(node["url"], "zgs_getStatus")[0] for _ in range(2)] == [503, 200]


def test_the_fixture(zg_devnet):
    exercise(zg_devnet.info)


def test_the_process():
    words = ["--limits", "off", "--providers", "1", "--storage-nodes", "1"]
    command = [sys.executable, "-m", "zg_async.cli.main", "devnet", "up", "--json", "--port", "0", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            exercise(json.loads(process.stdout.readline()))
        finally:
            process.terminate()
    assert process.returncode == 0
"""


@pytest.mark.slow
@pytest.mark.goal("DOC-04", part="all nodes: as a fixture and as a process")
def test_a_project_of_its_own_has_all_nodes_their_clock_and_their_faults(tmp_path):
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_downstream.py").write_text(TEST)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:asyncio"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout
