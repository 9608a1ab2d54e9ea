"""Keys, passwords, tokens and signatures go where they have to, and nowhere else."""

import contextlib
import io
import json
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import warnings

import aiohttp
import anyio
import pytest
from eth_keyfile import create_keyfile_json

import zg_async
from tests.canary import SPELLINGS, Canary, Sinks, SuiteWatch, spell
from tests.devnet.conftest import DATASET, MODEL, PARAMS, devnet, faults, open_broker, provider, zg_devnet
from tests.devnet.conftest import zg_devnet_options as zg_devnet_options
from tests.unit.test_cli_config import home as home
from zg_async import (
    HttpSettings,
    JobRunner,
    JobSpec,
    LocalSigner,
    ProviderLimits,
    SystemClock,
    ZgError,
    create_broker,
)
from zg_async.cli.main import run
from zg_async.devnet.process import DevnetProcess
from zg_async.paths import SECRET_VARIABLES
from zg_async.transport import keystore
from zg_async.units import NEURON_PER_0G
from zg_async.wire import signing

__all__ = ["devnet", "faults", "provider", "zg_devnet"]

HERE = ("tests/fault/test_secrets.py", "tests/canary.py", "tests/devnet/conftest.py")
SECRET = bytes.fromhex("5ec2e7" + "c0ffee" * 9 + "1234")


# ---- the scanner itself: a leak planted in each sink is found in each spelling


def _text(planted: bytes) -> str:
    return planted.decode("utf-8", "surrogateescape")


def _value(planted: bytes) -> str | bytes:
    """What a program would hold: text, or bytes if it is none."""
    return planted.decode() if planted.isascii() else planted


def _raised(hidden: object) -> BaseException:
    try:
        raise ZgError("no secret in the message")
    except ZgError as error:
        return error


async def _plant(sink: str, planted: bytes, sinks: Sinks, folder) -> None:
    text, value = _text(planted), _value(planted)
    match sink:
        case "logs":
            logging.getLogger("aiohttp.client").debug("sent %s", text)
        case "log arguments":
            logging.getLogger("some.library").debug("sent", {"body": value})
        case "printed":
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
                stream.buffer.write(planted)
                stream.flush()
        case "shown objects":
            sinks.show({"a": [value]})
        case "errors":
            sinks.caught(ZgError(text))
        case "error fields":
            sinks.caught(zg_async.ProviderRejectedError("no", status=400, body=value))
        case "tracebacks with locals":
            sinks.caught(_raised(value))
        case "causes":
            error = ZgError("no")
            error.__cause__ = ValueError(value)
            sinks.caught(error)
        case "warnings":
            warnings.warn(text, stacklevel=1)
        case "task names":
            async with anyio.create_task_group() as group:
                group.start_soon(anyio.lowlevel.checkpoint, name=text)
        case "child arguments":
            subprocess.run([sys.executable, "-c", "", text.replace("\0", " ")], check=True)  # noqa: ASYNC221
        case "child environment":
            environment = {"A": text.replace("\0", " ")}
            subprocess.run([sys.executable, "-c", ""], env=environment, check=True)  # noqa: ASYNC221
        case "file":
            (folder / "left.part").write_bytes(b"head" + planted + b"tail")
        case "file name":
            (folder / text.replace("+", "-").replace("/", "_")[:200]).touch()
        case "journal":
            with sqlite3.connect(folder / "journal.sqlite") as journal:
                journal.execute("pragma journal_mode=wal")
                journal.execute("create table event (body)")
                journal.execute("insert into event values (?)", (planted,))
                journal.commit()
            journal.close()
        case "request to a stranger":
            async with aiohttp.ClientSession() as session:
                with pytest.raises(aiohttp.ClientError):
                    await session.post("http://127.0.0.1:1/", json={"a": text})
        case _:
            raise AssertionError(sink)


PLANTS = (
    "logs", "log arguments", "printed", "shown objects", "errors", "error fields", "tracebacks with locals", "causes",
    "warnings", "task names", "child arguments", "child environment", "file", "file name", "journal",
    "request to a stranger",
)  # fmt: skip
"""Raw bytes can't be a file's name, an argument or a JSON text as they are; there they are tried as `repr`."""
TEXT_ONLY = ("child arguments", "child environment", "file name", "request to a stranger")


@pytest.mark.goal("HRD-01", part="a planted leak is found in each of sixteen sinks")
@pytest.mark.goal("SEC-03", part="planted leaks are found")
@pytest.mark.parametrize("sink", PLANTS)
async def test_a_leak_planted_in_a_sink_is_found_in_every_spelling(sink, tmp_path, capfdbinary):
    missed = []
    ways = {w: t for w, t in spell(SECRET).items() if sink != "child environment" or w in ("hex", "split")}
    for way, texts in ways.items():
        for number, planted in enumerate(texts):
            if sink in TEXT_ONLY and not planted.isascii():
                planted = repr(planted).encode()
            folder = tmp_path / f"{way}{number}"
            folder.mkdir()
            with Sinks(folder) as sinks:
                sinks.printed = lambda: b"".join(capfdbinary.readouterr())
                await _plant(sink, planted, sinks, folder)
            if not [leak for leak in sinks.leaks(Canary(key=SECRET)) if leak[1] == "key"]:
                missed.append((way, number))
            shutil.rmtree(folder)  # the watch over the whole suite would find it, too
    assert missed == []


def test_every_spelling_is_searched():
    assert tuple(spell(SECRET)) == SPELLINGS
    canary = Canary(key=SECRET)
    for way, texts in spell(SECRET).items():
        for text in texts:
            assert canary.find(b"before " + text + b" after"), way
    assert canary.find("nothing here " + "ab" * 64) == []


@pytest.mark.goal("SEC-03", part="planted leaks are found")
def test_the_watch_over_the_whole_suite_sees_keys_and_tokens_in_any_logger(suite_watch):
    with SuiteWatch().installed() as watch:
        LocalSigner.from_key(SECRET)
        token = signing.encode_session_token("{}", bytes(64) + b"\x1b")
        logging.getLogger("zg_async.x").debug("nothing but 0x%s", "ab" * 32)
        assert watch.found == []
        logging.getLogger("zg_async.x").debug("key 0x%s", SECRET.hex().upper())
        logging.getLogger("aiohttp").warning("sent", {"Authorization": f"Bearer {token}"})
        assert [line.split(":")[0] for line in watch.found] == ["zg_async.x", "aiohttp"]
    assert suite_watch.found == watch.found
    suite_watch.found.clear()


@pytest.mark.goal("SEC-03", part="planted leaks are found")
def test_the_watch_over_the_whole_suite_sees_children_of_the_package_and_stores(suite_watch, tmp_path, monkeypatch):
    from zg_async.devnet import process

    with SuiteWatch().installed() as watch:
        watch.know(SECRET)
        environment = {"SOME_KEY": SECRET.hex()}
        subprocess.run([sys.executable, "-c", ""], env=environment, check=True)  # a test's own child
        assert watch.found == []
        monkeypatch.setattr(process, "child_environment", lambda *keep: environment)
        with pytest.raises(ZgError):
            process.DevnetProcess("--no-such-flag").start()
        assert len(watch.found) == 1
        assert watch.in_files(tmp_path) == []
        with sqlite3.connect(tmp_path / "jobs.sqlite") as journal:
            journal.execute("create table event (body)")
            journal.execute("insert into event values (?)", (json.dumps({"key": SECRET.hex()}),))
        journal.close()
        assert watch.in_files(tmp_path) == [str(tmp_path / "jobs.sqlite")]
    (tmp_path / "jobs.sqlite").unlink()
    suite_watch.found.clear()  # it may know this key from another test


@pytest.mark.goal("SEC-03", part="child environment")
def test_a_devnet_of_ones_own_gets_none_of_the_users_secrets(monkeypatch):
    from zg_async.devnet import process

    started = []

    def popen(command, **options):
        started.append(options["env"])
        raise InterruptedError

    for variable in SECRET_VARIABLES:
        monkeypatch.setenv(variable, SECRET.hex())
    monkeypatch.setattr(process.subprocess, "Popen", popen)
    with pytest.raises(InterruptedError):
        process.DevnetProcess().start()
    assert {name for name, value in started[0].items() if value == SECRET.hex()} == {"ZG_OWNER_KEY"}
    assert started[0]["PATH"] == os.environ["PATH"]


# ---- the command line


@pytest.mark.goal("SEC-03", part="the command line")
def test_no_secret_comes_out_of_the_command_line(home, secrets, tmp_path, capfdbinary, monkeypatch):
    monkeypatch.setattr(keystore, "SCRYPT_N", 4096)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    monkeypatch.setenv("ZG_STATE_DIR", str(tmp_path / "state"))
    codes = []

    def zg(*words, **given):
        with contextlib.ExitStack() as stack:
            for flag, secret in given.items():
                reader, writer = os.pipe()
                stack.callback(os.close, reader)
                os.write(writer, secret + b"\n")
                os.close(writer)
                words = (*words, f"--{flag.replace('_', '-')}", str(reader))
            codes.append(run(list(words)))

    away = ("--network", "local", "--rpc", "http://127.0.0.1:1")
    key, password = secrets.key.hex().encode(), secrets.password
    with Sinks(tmp_path) as sinks:
        sinks.printed = lambda: b"".join(capfdbinary.readouterr())
        zg("wallet", "import", "mine", key_fd=key, password_fd=password)
        zg("wallet", "import", "mine", "--debug", key_fd=key, password_fd=password)
        zg("wallet", "import", "cut", "--json", "--debug", key_fd=key[:-1], password_fd=password)
        zg("wallet", "passwd", "mine", "--debug", password_fd=password[::-1] + b"x", new_password_fd=password)
        zg("wallet", "passwd", "mine", password_fd=password, new_password_fd=password)
        zg("wallet", "list", *away)
        zg("get-account", "--wallet", "mine", *away, "--debug", password_fd=password)
        zg("whoami", "--wallet", "mine", "--network", "nowhere", password_fd=password)
        zg("profile", "set", "work", f"private_key={key.decode()}")
    assert codes == [0, 8, 8, 8, 0, 3, 3, 8, 8]
    assert sinks.leaks(secrets) == []


# ---- the whole run


@pytest.fixture
def secrets(monkeypatch):
    """Secrets known beforehand, and those made on the way: signatures of messages, and session tokens."""
    canary = Canary()
    canary.key, canary.password, canary.made = os.urandom(32), os.urandom(15).hex().encode(), 0
    canary.add("key", canary.key)
    canary.add("password", canary.password)
    sign, encode = LocalSigner.sign_personal, signing.encode_session_token

    async def signed(self, message):
        signature = await sign(self, message)
        canary.made += 1
        canary.add("signature", signature[:64])
        return signature

    def encoded(raw, signature):
        token = encode(raw, signature)
        canary.made += 1
        canary.add("token", token.encode())
        return token

    monkeypatch.setattr(LocalSigner, "sign_personal", signed)
    monkeypatch.setattr(signing, "encode_session_token", encoded)
    return canary


class Hasty(SystemClock):
    """Waits for retries don't have to be waited out here."""

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(min(seconds, 0.05))


class Trip:
    """A run with one broker, whose every result and error goes to the sinks."""

    def __init__(self, sinks: Sinks) -> None:
        self.sinks = sinks
        self.codes: list[str] = []

    async def tries(self, work) -> None:
        """Something that should go wrong, with what it raises."""
        try:
            self.sinks.show(await work if hasattr(work, "__await__") else work())
        except ZgError as error:
            self.codes.append(error.code)
            self.sinks.caught(error, beyond=HERE)


def _keystore(path, secrets, password: bytes):
    path.write_text(json.dumps(create_keyfile_json(secrets.key, password, kdf="pbkdf2", iterations=10_000)))
    path.chmod(0o600)
    return path


async def _bad_starts(trip: Trip, devnet: DevnetProcess, secrets, tmp_path) -> None:
    """Wrong keys, passwords, networks and endpoints."""
    key = secrets.key.hex()
    for wrong in (key[:-1], key + "0", f"0x{key}g", f"{key} {key}", secrets.key[:-1], secrets.key + b"1"):
        await trip.tries(lambda wrong=wrong: create_broker(wrong, "local"))
    await trip.tries(lambda: create_broker(key, "nowhere"))
    await trip.tries(lambda: create_broker(key, "local", contracts={"ledger": "0x12"}))
    await trip.tries(lambda: create_broker("0x" + "11" * 32, "local", private_keys=[key, key[:-1]]))
    store = _keystore(tmp_path / "state" / "key.json", secrets, secrets.password)
    await trip.tries(lambda: LocalSigner.from_keystore(store, secrets.password[::-1] + b"x"))
    await trip.tries(lambda: LocalSigner.from_keystore(store, secrets.password.decode()))  # type: ignore[arg-type]
    for url in ("http://127.0.0.1:1/", devnet.providers[0]["url"]):
        await trip.tries(
            create_broker(key, "local", rpc_url=url, state_dir=tmp_path / "bad", clock=Hasty()).__aenter__()
        )
    await trip.tries(open_broker(devnet, key, tmp_path / "bad", contracts={"ledger": "0x" + "12" * 20}).__aenter__())


async def _failures(trip: Trip, broker, devnet: DevnetProcess, provider: str, task: str, dataset, faults, out) -> None:
    """Refused, broken and tampered exchanges."""
    tuning, chat = broker.fine_tuning, broker.inference
    nobody = "0x000000000000000000000000000000000000dEaD"
    await trip.tries(tuning.get_account(nobody))
    await trip.tries(tuning.create_task(provider, "no-model", "0x" + "11" * 32, PARAMS))
    await trip.tries(tuning.cancel_task(provider, "00000000-0000-4000-8000-000000000000"))
    await trip.tries(broker.ledger.transfer_fund(provider, "fine-tuning", "100000"))
    await trip.tries(tuning.decrypt_model(provider, task, dataset, out / "never.zip"))
    faults(error_5xx=-1)
    await trip.tries(tuning.upload_dataset_to_tee(provider, dataset))
    await trip.tries(tuning.download_lora_from_tee(provider, task, out / "a.enc"))
    await trip.tries(tuning.cancel_task(provider, task))
    devnet.control("clear_faults")
    faults(drop=-1)
    await trip.tries(tuning.download_lora_from_tee(provider, task, out / "b.enc"))
    devnet.control("clear_faults")
    devnet.control("stop", provider=0)
    await trip.tries(tuning.upload_dataset_to_tee(provider, dataset))
    devnet.control("start", provider=0)
    await trip.tries(chat.chat(provider, "hello", model="no-such-adapter"))
    await trip.tries(chat.chat(nobody, "hello"))


@pytest.mark.slow
@pytest.mark.goal("SEC-03", part="a whole run")
async def test_no_secret_comes_out_of_a_whole_run_anywhere(devnet, provider, faults, secrets, tmp_path, capfdbinary):
    state, out = tmp_path / "state", tmp_path / "out"
    state.mkdir()
    out.mkdir()
    dataset = tmp_path / "train.jsonl"
    dataset.write_text(DATASET)
    urls = {p["url"] for p in devnet.providers} | {p["inference_url"] for p in devnet.providers}
    address = LocalSigner.from_key(secrets.key).address
    devnet.control("faucet", address=address, amount=str(100 * NEURON_PER_0G))
    with Sinks(state, out) as sinks:
        sinks.printed = lambda: b"".join(capfdbinary.readouterr())
        sinks.allowed = lambda url, secret: secret in ("signature", "token") and any(url.startswith(u) for u in urls)
        trip = Trip(sinks)
        await _bad_starts(trip, devnet, secrets, tmp_path)
        signer = LocalSigner.from_keystore(state / "key.json", secrets.password)
        http = HttpSettings(limits=ProviderLimits(rate=None))
        async with (
            open_broker(devnet, None, state, signer=signer, http=http, clock=Hasty()) as broker,
            JobRunner(broker) as runner,
        ):
            sinks.show(broker, signer, broker.ledger, broker.fine_tuning, broker.inference, broker.chain, http, runner)
            spec = JobSpec(
                model=MODEL, dataset=dataset, training_params=PARAMS, output_dir=out, deploy=True, provider=provider
            )
            job = await runner.submit(spec)
            sinks.show(spec, job)
            with anyio.fail_after(60):
                async for event in job.events():
                    sinks.show(event)
                result = await job.result()
            sinks.show(result, await job.state())
            token = await broker.inference.create_api_key(provider)
            sinks.show(token)
            sinks.show(await broker.inference.lora.chat(provider, result.adapter_name, "What colour is box 1?"))
            async with broker.fine_tuning.watch_task(provider, result.task_id) as changes:
                async for change in changes:
                    sinks.show(change)
            sinks.show(await broker.fine_tuning.get_task(provider, result.task_id))
            await _failures(trip, broker, devnet, provider, result.task_id, dataset, faults, out)
            await broker.inference.revoke_all_tokens(provider)
            sinks.show(await broker.inference.lora.chat(provider, result.adapter_name, "And box 2?"))
        async with open_broker(devnet, secrets.key.hex(), state, http=http, clock=Hasty()) as broker:
            hash_ = (await broker.fine_tuning.upload_dataset_to_tee(provider, dataset)).dataset_hash
            faults(wrong_hash=1)
            task = await broker.fine_tuning.create_task(provider, MODEL, hash_, PARAMS)
            await trip.tries(broker.fine_tuning.deliver(provider, task, out / "tampered"))
        await trip.tries(broker.fine_tuning.upload_dataset_to_tee(provider, dataset))
        await trip.tries(broker.__aenter__())
    assert secrets.made > 10
    assert len(set(trip.codes)) > 8, trip.codes
    assert sinks.leaks(secrets) == []
