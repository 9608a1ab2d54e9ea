"""Where each option's value comes from, and the files it comes from."""

import dataclasses
import json
import os
import stat

import pytest

from zg_async.cli import config, profiles
from zg_async.cli.config import OPTIONS, settle, values_of
from zg_async.cli.main import run
from zg_async.cli.opening import Where
from zg_async.errors import ConfigError

ADDRESSES = ["0x" + f"{n:02x}" * 20 for n in range(1, 5)]
KEYS = ["0x" + f"{n:02x}" * 32 for n in range(1, 4)]
SAMPLES = {
    "network": ["mainnet", "local", "testnet-dev"],
    "rpc": ["https://flag.example", "https://env.example", "https://profile.example"],
    "indexer": ["https://i-flag.example", "https://i-env.example", "https://i-profile.example"],
    "state_dir": ["/flag", "/env", "/profile"],
    "controller_endpoint": ["https://c-flag.example", "https://c-env.example", "https://c-profile.example"],
}
ORDINARY = [n for n in OPTIONS if n not in ("profile", "dev_mode", "private_key", "wallet", "signer_url", "password")]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """No variable of the outside, and a home of its own."""
    for option in OPTIONS.values():
        for variable in option.env:
            monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ZG_CONFIG", str(tmp_path / "config" / "config.json"))
    return tmp_path


def config_of(**profile):
    path = profiles.config_path({"ZG_CONFIG": "/nowhere/config.json"})
    return profiles.ConfigFile(path=path, current="work", profiles={"work": profile, "other": {}})


def decided(name, *, flag=None, env=None, kept=None):
    """The value and source of an option that is set at some of the levels."""
    option = OPTIONS[name]
    flags = {name: flag} if flag is not None else {}
    environment = {option.env[0]: env} if env is not None else {}
    settings = settle(flags, environment, config_of(**({name: kept} if kept is not None else {})))
    value = settings.network if name == "network" else settings.values.get(name)
    return (value.text, value.source) if value is not None else None


@pytest.mark.goal("CFG-01", part="precedence")
@pytest.mark.parametrize("name", ORDINARY)
def test_the_flag_beats_the_environment_that_beats_the_profile_that_beats_the_default(name):
    by_flag, by_env, by_profile = SAMPLES.get(name, ADDRESSES[:3])
    option = OPTIONS[name]
    levels = {"kept": by_profile}
    assert decided(name) == (("testnet", "default") if name == "network" else None)
    assert decided(name, **levels) == (by_profile, "profile work")
    if option.env:
        levels["env"] = by_env
        assert decided(name, **levels) == (by_env, f"environment {option.env[0]}")
    if name in {f.name for f in dataclasses.fields(Where)}:
        assert decided(name, flag=by_flag, **levels) == (by_flag, option.flag)


@pytest.mark.goal("CFG-01", part="precedence")
def test_the_nearest_wallet_wins_whatever_its_spelling():
    def kind(flags=None, environment=None, profile=None, wallets=()):
        choice = settle(flags or {}, environment or {}, config_of(**(profile or {})), wallets).wallet
        return choice and (choice.kind, choice.source, choice.key or choice.where, choice.account)

    kept, env = {"signer_url": "http://s", "wallet": ADDRESSES[0]}, {"ZG_PRIVATE_KEY": KEYS[0]}
    assert kind() is None
    assert kind(wallets=["alice"]) == ("keystore", "default: the only wallet", "alice", None)
    assert kind(wallets=["alice", "bob"]) is None
    assert kind(profile=kept) == ("signer", "profile work", "http://s", ADDRESSES[0])
    assert kind(profile={"wallet": "bob"}, wallets=["alice"]) == ("keystore", "profile work", "bob", None)
    assert kind(environment=env, profile=kept) == ("key", "environment ZG_PRIVATE_KEY", KEYS[0], None)
    assert kind(environment={"ZG_WALLET": "a"}, profile=kept) == ("keystore", "environment ZG_WALLET", "a", None)
    assert kind({"wallet": "carol"}, env, kept) == ("keystore", "--wallet", "carol", None)
    assert kind({"signer_url": "http://t"}, env, kept) == ("signer", "--signer-url", "http://t", None)
    assert kind({"private_key_file": "k"}, env, kept) == ("key file", "--private-key-file", "k", None)
    with pytest.raises(ConfigError, match="two wallets"):
        kind({"private_key_file": "k", "wallet": "a"})


@pytest.mark.goal("CFG-03", part="environment names")
@pytest.mark.parametrize(
    ("name", "variables"),
    [
        ("rpc", ["ZG_RPC_ENDPOINT", "RPC_ENDPOINT", "RPC_URL"]),
        ("network", ["NETWORK"]),
        ("ledger_ca", ["LEDGER_CA"]),
        ("inference_ca", ["INFERENCE_CA"]),
        ("fine_tuning_ca", ["FINE_TUNING_CA"]),
        ("indexer", ["ZG_INDEXER_URL"]),
    ],
)
def test_each_name_of_the_peers_is_read_and_the_first_of_several_wins(name, variables):
    samples = SAMPLES.get(name, ADDRESSES)
    environment = dict(zip(variables, samples, strict=False))
    for variable in variables:
        settings = settle({}, environment, config_of())
        value = settings.network if name == "network" else settings.values[name]
        assert (value.text, value.source) == (environment.pop(variable), f"environment {variable}")
        environment = {variable: " ", **environment}  # an empty one counts as none
    assert settle({}, environment, config_of()).network.source == "default"


@pytest.mark.goal("CFG-03", part="environment names")
def test_the_key_has_two_names_and_dev_mode_means_the_second_testnet():
    both = {"ZG_PRIVATE_KEY": KEYS[0], "PRIVATE_KEY": KEYS[1]}
    assert settle({}, both, config_of()).wallet.key == KEYS[0]
    assert settle({}, {"PRIVATE_KEY": KEYS[1]}, config_of()).wallet.key == KEYS[1]
    for text, network in (("true", "testnet-dev"), ("1", "testnet-dev"), ("false", "testnet"), ("0", "testnet")):
        assert settle({}, {"ZG_DEV_MODE": text}, config_of()).network.text == network
    on_main = settle({"network": "mainnet"}, {"ZG_DEV_MODE": "1"}, config_of())
    assert on_main.network.text == "mainnet"


@pytest.mark.parametrize(
    ("rpc", "network"),
    [
        ("https://evmrpc.0g.ai/", "mainnet"),
        ("https://evmrpc-testnet.0g.ai", "testnet"),
        ("http://localhost:8545", "local"),
        ("https://other.example", None),
    ],
)
def test_an_endpoint_tells_the_network_if_nothing_names_it(rpc, network):
    settings = settle({"rpc": rpc}, {}, config_of())
    assert (settings.network.text if settings.network else None) == network
    assert settle({"rpc": rpc, "network": "local"}, {}, config_of()).network.text == "local"
    custom = settle({}, {}, config_of(rpc=rpc, network="custom"))
    assert (custom.network.text if custom.network else None) == network


@pytest.mark.parametrize("word", ["nowhere", "Mainnet", "custom", "1"])
def test_an_unknown_network_is_an_error(word):
    with pytest.raises(ConfigError):
        settle({"network": word}, {}, config_of())
    assert config.network_of_chain(16602, is_dev=True).name == "testnet-dev"
    assert config.network_of_chain(16602, is_dev=False).name == "testnet"
    with pytest.raises(ConfigError, match="chain 1,"):
        config.network_of_chain(1, is_dev=False)


def test_a_profile_that_is_named_must_exist():
    assert settle({"profile": "other"}, {}, config_of(rpc="https://work.example")).text("rpc") is None
    for flags, environment in (({"profile": "x"}, {}), ({}, {"ZG_PROFILE": "x"})):
        with pytest.raises(ConfigError, match="no profile 'x'"):
            settle(flags, environment, config_of())


def test_no_secret_is_among_what_is_shown():
    settings = settle(
        {"rpc": "https://user:word@host.example/v1/apikey?x=1"},
        {"ZG_PRIVATE_KEY": KEYS[0], "ZG_PASSWORD": "hunter2 hunter2"},
        config_of(),
    )
    shown = repr(settings) + repr(values_of(settings))
    assert KEYS[0] not in shown
    assert "hunter2" not in shown
    assert values_of(settings)["rpc"] == ("https://host.example/…", "--rpc")


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.goal("CFG-01", part="profiles")
def test_profiles_are_made_used_shown_and_removed(home, capsys):
    assert run(["profile", "set", "work", "network=testnet", "rpc=https://a.example/secret"]) == 0
    assert run(["profile", "set", "home", "network=local", f"ledger-ca={ADDRESSES[0]}"]) == 0
    assert run(["profile", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "version": 1,
        "kind": "profiles",
        "current": "work",
        "profiles": ["home", "work"],
    }
    assert run(["profile", "use", "home"]) == 0
    assert run(["profile", "set", "home", "ledger_ca="]) == 0
    assert run(["profile", "show", "--json"]) == 0
    shown = {"version": 1, "kind": "profile", "name": "home", "options": {"network": "local"}}
    assert json.loads(capsys.readouterr().out) == shown
    assert run(["profile", "remove", "home"]) == 0
    assert run(["profile", "show"]) != 0
    assert "no current profile" in capsys.readouterr().err
    path = home / "config" / "config.json"
    assert json.loads(path.read_text())["profiles"] == {
        "work": {"network": "testnet", "rpc": "https://a.example/secret"}
    }


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["work", f"private_key={KEYS[0]}"], "wallet import"),
        (["work", "colour=red"], "can't hold 'colour'"),
        (["work", "network"], "no OPTION=VALUE"),
        (["work", "network=nowhere"], "unknown network"),
        (["work", "ledger-ca=0x12"], "ledger-ca"),
        (["../x", "network=local"], "can't name a profile"),
    ],
)
def test_what_a_profile_can_not_hold_is_refused_and_nothing_is_written(home, capsys, words, why):
    assert run(["profile", "set", *words]) != 0
    assert why in capsys.readouterr().err
    assert not (home / "config").exists()


@pytest.mark.skipif(os.name == "nt", reason="modes are of POSIX")
@pytest.mark.goal("SEC-04", part="config")
def test_the_config_is_for_its_owner_only_and_refused_otherwise(home, capsys):
    assert run(["profile", "set", "work", "network=local"]) == 0
    path = home / "config" / "config.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    path.chmod(0o644)
    before = path.read_bytes()
    for words in (["profile", "list"], ["profile", "set", "work", "network=testnet"], ["whoami"]):
        assert run(words) != 0
        assert f"chmod 600 {path}" in capsys.readouterr().err
    assert path.read_bytes() == before


@pytest.mark.parametrize("text", ["", "[]", '{"version": 2, "profiles": {}}', '{"version": 1, "profiles": {"a": 1}}'])
def test_a_damaged_config_is_told(home, capsys, text):
    path = home / "config" / "config.json"
    path.parent.mkdir()
    path.touch(0o600)
    path.write_text(text)
    assert run(["profile", "list"]) != 0
    assert str(path) in capsys.readouterr().err


@pytest.mark.goal("CFG-03", part="import")
@pytest.mark.slow
def test_the_peers_config_is_imported_on_request_and_never_changed(home, capsys, monkeypatch):
    path = home / ".0g-compute-cli" / "config.json"
    path.parent.mkdir()
    value = {
        "rpcEndpoint": "https://evmrpc-testnet.0g.ai",
        "network": "testnet",
        "privateKey": KEYS[0],
        "controllerEndpoint": "http://10.0.0.1:3000",
        "controllerEndpointSource": "custom",
        "lastUpdated": "2026-01-01T00:00:00.000Z",
    }
    path.write_text(json.dumps(value, indent=2))
    path.chmod(0o444)
    before = (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_mode)
    assert run(["profile", "import"]) != 0  # no password, no terminal
    assert "--password-fd" in capsys.readouterr().err
    assert not (home / "config").exists()
    monkeypatch.setenv("ZG_PASSWORD", "correct horse")
    assert run(["profile", "import"]) == 0
    told = capsys.readouterr()
    assert "clear text" in told.err
    assert KEYS[0][2:] not in told.out + told.err
    assert run(["profile", "show", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["options"] == {
        "rpc": value["rpcEndpoint"],
        "network": "testnet",
        "controller_endpoint": value["controllerEndpoint"],
        "wallet": "0g-compute-cli",
    }
    for file in (home / "config").rglob("*.json"):
        assert KEYS[0][2:].encode() not in file.read_bytes()
    assert (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_mode) == before
    assert run(["profile", "import", "again", "--no-key", "--from", str(path)]) == 0
    assert run(["profile", "import", "third", "--from", str(home / "none.json")]) != 0
