"""Every command of the official program with every flag, and its earlier spellings, against one devnet.

`cli_commands.json` has two tables: `commands` names each command with its flags and other spellings, `steps` runs them
in an order in which each really does its work, with what has to come out. `{name}` stands for a value of this run or of
an earlier step's `save`.
"""

import ast
import json
import os
import re
import shlex
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import cyclopts
import pytest

from tests.devnet.cli_kit import COMMAND
from tests.devnet.conftest import DATASET, MODEL, PARAMS, new_key
from tests.unit.test_cli_ends import leaves
from zg_async import Quota, cli
from zg_async.cli.main import app, run
from zg_async.devnet import accounts
from zg_async.devnet.chain_client import ChainClient, HttpRpc, Wallet
from zg_async.devnet.process import DevnetProcess
from zg_async.transport import keystore
from zg_async.transport.signer import LocalSigner
from zg_async.units import NEURON_PER_0G
from zg_async.wire.contracts import FineTuningContract

pytestmark = pytest.mark.slow
TABLE = json.loads((Path(__file__).parent / "cli_commands.json").read_text())
COMMANDS, SERVERS, STEPS = TABLE["commands"], TABLE["servers"], TABLE["steps"]


def documented(title: str) -> dict[str, set[str]]:
    """The kinds of a section of docs/json.md with their fields."""
    text = (Path(__file__).parents[2] / "docs" / "json.md").read_text().partition(f"\n## {title}\n")[2]
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\| (.*) \|$", text.partition("\n## ")[0], re.MULTILINE)
    return {kind: set(re.findall(r"`(\w+)`", fields)) for kind, fields in rows}


FIELDS, EVENTS, CHANGES = map(documented, ("Kinds", "Events of a job", "Changes of a task"))
"""What the documentation says of each kind of result, of job event and of task change."""
OF_EVENTS = {"seq", "job_id", "at"}
OF_CHANGES = {"id", "at", "source", "provider", "task_id", "cursor"}
STAKE = 100 * NEURON_PER_0G


@pytest.fixture(scope="module")
def network() -> Iterator[DevnetProcess]:
    """A devnet of its own: what is approved, removed and renamed here would be missed elsewhere."""
    with DevnetProcess("--limits", "off", "--storage-nodes", "1") as devnet:
        hash_ = "0x" + "ab" * 32
        devnet.control("settings", provider=0, models=[{"name": "house-model", "hash": hash_}])
        yield devnet


@pytest.fixture
async def values(network: DevnetProcess, tmp_path: Path) -> dict[str, str]:
    """What the steps are filled with; the wallets' keys are `key.<name>`."""
    (tmp_path / "train.jsonl").write_text(DATASET)
    (tmp_path / "params.json").write_text(json.dumps(PARAMS))
    (tmp_path / "ingress.json").write_text('{"LOG_LEVEL": "debug"}')
    (tmp_path / "root.hex").write_text(network.info["tee_root"])
    provider = network.providers[0]["address"]
    job = {"model": MODEL, "dataset": "train.jsonl", "training_params": "params.json", "output_dir": "ran"}
    matrix = {"name": "m", "models": [MODEL], "datasets": ["train.jsonl"], "params": ["params.json"]}
    (tmp_path / "job.json").write_text(json.dumps(job | {"provider": provider}))
    (tmp_path / "matrix.json").write_text(json.dumps(matrix | {"output_dir": "many", "job": {"provider": provider}}))
    (tmp_path / "peers.json").write_text(json.dumps({"network": "testnet", "rpcEndpoint": network.rpc_url}))
    trainer = new_key(network, STAKE + 10 * NEURON_PER_0G)
    async with aiohttp.ClientSession() as session:
        wallet = Wallet(ChainClient(HttpRpc(network.rpc_url, session)), bytes.fromhex(trainer[2:]))
        contract = FineTuningContract(network.info["fine_tuning"])
        quota = Quota(cpu_count=1, node_memory=1, gpu_count=1, node_storage=1, gpu_type="none")
        signer = accounts.dev_account(3).address
        await wallet.send(
            contract.add_or_update_service("http://127.0.0.1:9", quota, 1, False, [], signer, value=STAKE)
        )
    newcomer = tmp_path / "key.hex"
    newcomer.touch(mode=0o600)
    newcomer.write_text(new_key(network))
    user = new_key(network)
    return {
        "controller": network.providers[0]["controller_url"],
        "admin": LocalSigner.from_key(user).address,
        "rpc": network.rpc_url,
        "keyfile": str(newcomer),
        "provider": provider,
        "model": MODEL,
        "dataset": str(tmp_path / "train.jsonl"),
        "params": str(tmp_path / "params.json"),
        "tee_root": str(tmp_path / "root.hex"),
        "pccs": network.info["pccs_url"],
        "folder": str(tmp_path),
        "key.user": user,
        "key.newcomer": new_key(network, STAKE + 10 * NEURON_PER_0G),
        "key.trainer": trainer,
        "key.owner": accounts.owner().private_key.hex(),
        "key.provider": accounts.fine_tuning_provider(0).private_key.hex(),
    }


def fill(text: str, values: dict[str, str]) -> str:
    return re.sub(r"\{([\w.]+)\}", lambda match: values[match[1]], text)


def found(value: Any, path: str) -> list[Any]:
    """The values at a dotted path; `*` goes through a list."""
    here = [value]
    for part in path.split("."):
        number = isinstance(here[0], list) and part != "*" if here else False
        here = [item for one in here for item in (one if part == "*" else [one[int(part) if number else part]])]
    return here


def is_as_documented(value: dict[str, Any]) -> bool:
    """Whether a kind has the very fields that its row in the documentation names."""
    kind, fields = value["kind"], value.keys() - {"version", "kind"}
    return (
        fields == FIELDS.get(kind)
        or (kind in EVENTS and fields == EVENTS[kind] | OF_EVENTS)
        or (kind in CHANGES and fields == CHANGES[kind] | OF_CHANGES)
    )


def no_number_is_too_big(value: Any) -> bool:
    """Amounts are texts: a number above 2**53 loses digits in most readers."""
    if isinstance(value, dict):
        return all(map(no_number_is_too_big, value.values()))
    if isinstance(value, list):
        return all(map(no_number_is_too_big, value))
    return not isinstance(value, int) or abs(value) < 2**53


@pytest.mark.goal("CLI-01", part="every command's objects are as documented")
@pytest.mark.goal("CLI-08", part="run, plan and batch take a file")
@pytest.mark.goal("CLI-13", part="funds and verification")
@pytest.mark.goal("CLI-03", part="each does its work")
@pytest.mark.goal("PRV-01", part="all commands work")
@pytest.mark.goal("PRV-02")
def test_each_step_does_its_work_and_tells_it_as_documented(network, values, tmp_path, monkeypatch, capsys, request):
    monkeypatch.chdir(tmp_path)
    for name in [n for n in os.environ if n.startswith("ZG_") or n in ("NETWORK", "PRIVATE_KEY", "RPC_URL")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ZG_INDEXER_URL", network.info["indexer_url"])
    monkeypatch.setenv("ZG_CONFIG", str(tmp_path / "config" / "config.json"))
    monkeypatch.setenv("ZG_PASSWORD", "correct horse")
    monkeypatch.setattr(keystore, "SCRYPT_N", 4096)  # quick
    (tmp_path / "password").write_text("another\n")
    descriptor = os.open(tmp_path / "password", os.O_RDONLY)
    request.addfinalizer(lambda: os.close(descriptor))
    values["password_fd"] = str(descriptor)
    for step in STEPS:
        wallet = step.get("wallet", "user")
        if wallet == "nobody":  # what comes with it is what it saved itself
            for name in ("ZG_PRIVATE_KEY", "ZG_RPC_ENDPOINT", "NETWORK"):
                monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv("ZG_PRIVATE_KEY", values[f"key.{wallet}"])
            monkeypatch.setenv("ZG_RPC_ENDPOINT", network.rpc_url)
            monkeypatch.setenv("NETWORK", "local")
        monkeypatch.setenv("ZG_STATE_DIR", str(tmp_path / f"state-{wallet}"))
        words = [fill(word, values) for word in shlex.split(step["run"])]
        if "kind" in step and step["kind"] is None:  # it prints nothing
            assert (run(words), capsys.readouterr().out) == (0, "")
            continue
        code = run([*words, "--json"])
        told = capsys.readouterr()
        where = f"{step['id']} {step['run']}: {told.out[:2000]} {told.err[:2000]}"
        assert code == step.get("code", 0), where
        said = [json.loads(line) for line in told.out.splitlines()]
        kinds = [one["kind"] for one in said]
        if "stream" in step:
            assert set(step["stream"]) <= set(kinds), where
        else:
            assert kinds == [step["kind"]], where
        for one in said:
            assert one["version"] == 1, where
            assert is_as_documented(one), one
            assert no_number_is_too_big(one), where
        value = said if "stream" in step else said[0]
        for path, wanted in step.get("expect", {}).items():
            wanted = fill(wanted, values) if isinstance(wanted, str) else wanted
            assert wanted in found(value, path), f"{path} of {where}"
        assert fill(step.get("contains", ""), values) in told.out, where
        if "file" in step:
            assert Path(fill(step["file"], values)).stat().st_size > 0, where
        for name, path in step.get("save", {}).items():
            values[name] = found(value, path)[0]


@pytest.mark.goal("CLI-03", part="servers start and are interrupted")
@pytest.mark.parametrize("server", SERVERS, ids=lambda row: row["id"])
def test_each_server_says_where_it_is_and_ends_when_interrupted(network, values, tmp_path, server):
    environment = {
        "ZG_RPC_ENDPOINT": network.rpc_url,
        "NETWORK": "local",
        "ZG_PRIVATE_KEY": values["key.user"],
        "ZG_STATE_DIR": str(tmp_path / "state"),
        "ZG_CONFIG": str(tmp_path / "config.json"),
        "OTHER_KEY": "sk-other",
    }
    words = [fill(word, values) for word in shlex.split(server["run"])]
    with subprocess.Popen(
        [*COMMAND, *words, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        value = json.loads(line)
        url = value["url"].partition("/#")[0] + server["path"]
        asked = urllib.request.Request(url, headers={"Authorization": f"Bearer {value.get('token', '')}"})
        with urllib.request.urlopen(asked, timeout=60) as reply:
            answered = reply.status
        process.send_signal(signal.SIGINT)
        rest, told = process.communicate(timeout=60)
    assert (value["version"], value["kind"], answered, rest) == (1, server["kind"], 200, ""), line
    assert (process.returncode, "Traceback" in told) == (130, False), told


@pytest.mark.goal("CLI-01", part="every kind is documented")
def test_every_kind_that_a_command_can_print_is_documented(network):
    found = set()
    for path in (Path(cli.__file__).parent).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("emit", "print_json")
            ):
                place = node.args[node.func.id == "emit"]
                found |= {n.value for n in ast.walk(place) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    assert len(found) > 60
    assert found - {"kind"} <= FIELDS.keys()
    assert network.info["kind"] == "devnet"
    assert network.info.keys() - {"version", "kind"} == FIELDS["devnet"]


def flags_of(words: str) -> set[str]:
    """Every flag a command takes."""
    _, apps, rest = app.parse_commands(words.split())
    assert rest == [], f"there is no {words}"
    return {name for argument in apps[-1].assemble_argument_collection() for name in argument.names}


@pytest.mark.goal("CLI-03", part="all flags and spellings")
@pytest.mark.parametrize("key", COMMANDS)
def test_every_flag_of_a_command_is_accepted_in_every_spelling(key):
    row = COMMANDS[key]
    for words in (row["words"], *row["spellings"]):
        assert set(row["flags"]) <= flags_of(words), words


@pytest.mark.goal("CLI-01", part="every command's objects are as documented")
def test_each_command_has_a_step():
    ran = [app.parse_commands(shlex.split(step["run"]))[1][-1] for step in (*STEPS, *SERVERS)]
    done = {sub.default_command for sub in ran}
    left = {" ".join(words) for words, sub in leaves(app) if sub.default_command not in done}
    assert left == {"demo", "devnet up"}  # test_demo.py and the fixture above run them


def test_the_table_has_all_commands_and_the_steps_run_each():
    assert len(COMMANDS) == 65 + 4
    assert set(COMMANDS) == {step["id"] for step in (*STEPS, *SERVERS)} & set(COMMANDS)
    words = {id_: {row["words"], *row["spellings"]} for id_, row in COMMANDS.items()}
    for step in (s for s in (*STEPS, *SERVERS) if s["id"] in COMMANDS):
        assert any(step["run"].startswith(name) for name in words[step["id"]]), step["run"]


@pytest.mark.goal("CLI-12", part="unknown commands and flags")
def test_a_flag_that_isnt_there_is_named_with_the_one_that_is(capsys):
    with pytest.raises(cyclopts.CycloptsError):
        app.parse_args(["deposit", "--amout", "3"], exit_on_error=False, print_error=False)
    assert run(["deposit", "--amout", "3"]) == 2
    assert "--amount instead of --amout" in capsys.readouterr().err
