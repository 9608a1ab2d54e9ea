"""Wallets are keystore files, and their password comes from a terminal, a file descriptor or the environment."""

import contextlib
import io
import json
import os
import select
import stat
import subprocess
import sys

import pytest
from eth_account import Account

from tests.unit.test_cli_config import KEYS
from tests.unit.test_cli_config import home as home
from zg_async.cli.main import run
from zg_async.transport import keystore as keystore_module
from zg_async.transport.signer import LocalSigner

ADDRESS = Account.from_key(KEYS[0]).address
PASSWORD = "a pässword of some length"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(keystore_module, "SCRYPT_N", 4096)


@pytest.fixture
def wallets(home):
    return home / "config" / "wallets"


@contextlib.contextmanager
def descriptor(text: str):
    """A file descriptor to read a line from, as a shell's `3<<<text` makes one."""
    reader, writer = os.pipe()
    try:
        os.write(writer, text.encode() + b"\nand more\n")
        os.close(writer)
        yield str(reader)
    finally:
        os.close(reader)


def told(capsys):
    return json.loads(capsys.readouterr().out)


@pytest.mark.goal("SEC-10", part="new")
@pytest.mark.goal("SEC-01", part="password by file descriptor")
@pytest.mark.goal("HRD-03", part="eth_keyfile and geth, both ways")
def test_a_new_wallet_is_an_encrypted_file_of_its_own(wallets, capsys):
    with descriptor(PASSWORD) as fd:
        assert run(["wallet", "new", "alice", "--password-fd", fd, "--json"]) == 0
    address = told(capsys)["address"]
    path = wallets / "alice.json"
    assert json.loads(path.read_text())["version"] == 3
    if os.name != "nt":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(wallets.stat().st_mode) == 0o700
    assert LocalSigner.from_keystore(path, PASSWORD.encode()).address == address
    assert Account.from_key(Account.decrypt(path.read_text(), PASSWORD)).address == address  # others open it, too
    with descriptor(PASSWORD) as fd:
        assert run(["wallet", "new", "alice", "--password-fd", fd]) != 0
    assert "there is a wallet alice already" in capsys.readouterr().err
    assert list(wallets.iterdir()) == [path]


@pytest.mark.goal("HRD-03", part="0600 at creation")
@pytest.mark.skipif(os.name == "nt", reason="there are no modes")
def test_a_wallet_is_its_owners_from_the_first_moment_on(wallets, monkeypatch):
    opened, really = [], os.open

    def spy(path, flags, mode=0o777, **options):
        handle = really(path, flags, mode, **options)
        if str(path).startswith(str(wallets)) and flags & os.O_CREAT:
            opened.append((bool(flags & os.O_EXCL), stat.S_IMODE(os.fstat(handle).st_mode)))
        return handle

    monkeypatch.setattr(os, "open", spy)
    monkeypatch.setattr(os, "fchmod", None)
    before = os.umask(0)
    try:
        with descriptor(PASSWORD) as fd:
            assert run(["wallet", "new", "alice", "--password-fd", fd, "--json"]) == 0
    finally:
        os.umask(before)
    assert opened == [(True, 0o600)]


@pytest.mark.goal("SEC-10", part="import")
@pytest.mark.goal("SEC-01", part="password by environment")
@pytest.mark.parametrize("way", ["environment", "file", "descriptor", "keystore"])
def test_a_key_is_imported_and_nowhere_in_clear(way, wallets, home, capsys, monkeypatch):
    monkeypatch.setenv("ZG_PASSWORD", PASSWORD)
    with descriptor(KEYS[0]) as fd:
        source = home / "source"
        source.touch(0o600)
        if way == "environment":
            monkeypatch.setenv("ZG_PRIVATE_KEY", KEYS[0])
            words = []
        elif way == "file":
            source.write_text(KEYS[0] + "\n")
            words = ["--key-file", str(source)]
        elif way == "descriptor":
            words = ["--key-fd", fd]
        else:
            source.write_text(json.dumps(Account.encrypt(KEYS[0], PASSWORD, iterations=4096)))
            words = ["--keystore", str(source)]
        assert run(["wallet", "import", "bob", *words, "--json"]) == 0
    assert told(capsys)["address"] == ADDRESS
    assert LocalSigner.from_keystore(wallets / "bob.json", PASSWORD.encode()).address == ADDRESS
    clear = [p for p in wallets.rglob("*") if KEYS[0][2:].encode() in p.read_bytes()]
    assert clear == []


@pytest.mark.goal("SEC-10", part="list")
def test_wallets_are_listed_and_found_by_name_address_and_path(wallets, capsys, monkeypatch):
    monkeypatch.setenv("ZG_PASSWORD", PASSWORD)
    for name, key in zip(("bob", "alice"), KEYS, strict=False):
        monkeypatch.setenv("ZG_PRIVATE_KEY", key)
        assert run(["wallet", "import", name, "--json"]) == 0
    monkeypatch.delenv("ZG_PRIVATE_KEY")
    capsys.readouterr()
    assert run(["wallet", "list", "--offline", "--json"]) == 0
    listed = {row["name"]: row["address"] for row in told(capsys)["wallets"]}
    assert listed == {"bob": ADDRESS, "alice": Account.from_key(KEYS[1]).address}
    for spelling in ("bob", ADDRESS, ADDRESS.lower(), str(wallets / "bob.json")):
        monkeypatch.delenv("ZG_PASSWORD", raising=False)
        with descriptor(PASSWORD) as fd, descriptor("new " + PASSWORD) as new:
            assert run(["wallet", "passwd", spelling, "--password-fd", fd, "--new-password-fd", new]) == 0
        with descriptor("new " + PASSWORD) as fd, descriptor(PASSWORD) as new:
            assert run(["wallet", "passwd", spelling, "--password-fd", fd, "--new-password-fd", new]) == 0
    assert run(["wallet", "passwd", "carol"]) != 0
    assert "no wallet 'carol'" in capsys.readouterr().err


@pytest.mark.goal("SEC-10", part="passwd")
def test_a_password_is_changed_only_by_who_knows_it(wallets, capsys, monkeypatch):
    monkeypatch.setenv("ZG_PASSWORD", PASSWORD)
    assert run(["wallet", "new", "--json"]) == 0
    path, address = wallets / "default.json", told(capsys)["address"]
    before = path.read_bytes()
    monkeypatch.setenv("ZG_PASSWORD", "another one")
    with descriptor("fresh password") as new:
        assert run(["wallet", "passwd", "--new-password-fd", new]) != 0
    assert "wrong password" in capsys.readouterr().err
    assert path.read_bytes() == before
    monkeypatch.setenv("ZG_PASSWORD", PASSWORD)
    with descriptor("fresh password") as new:
        assert run(["wallet", "passwd", "--new-password-fd", new]) == 0
    assert LocalSigner.from_keystore(path, b"fresh password").address == address
    assert [p.name for p in wallets.iterdir()] == ["default.json"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["new"], "--password-fd"),
        (["new", "../out"], "can't name a wallet"),
        (["import", "--key-file", "/no/such"], "can't read the private key file"),
        (["import", "--key-file", "a", "--key-fd", "3"], "several keys"),
        (["import"], "--key-fd"),
        (["new", "--password-fd", "999"], "can't be read"),
    ],
)
def test_what_is_missing_is_named_and_nothing_is_written(words, why, wallets, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO())  # no terminal
    assert run(["wallet", *words]) == 8
    assert why in capsys.readouterr().err
    assert not wallets.exists()


@pytest.mark.skipif(os.name == "nt", reason="modes are of POSIX")
@pytest.mark.goal("SEC-04", part="keystore and key file")
def test_a_key_that_others_can_read_is_refused(wallets, home, capsys, monkeypatch):
    monkeypatch.setenv("ZG_PASSWORD", PASSWORD)
    open_to_all = home / "key"
    open_to_all.write_text(KEYS[0])
    open_to_all.chmod(0o644)
    assert run(["wallet", "import", "x", "--key-file", str(open_to_all)]) == 8
    assert f"chmod 600 {open_to_all}" in capsys.readouterr().err
    assert run(["wallet", "new", "--json"]) == 0
    (wallets / "default.json").chmod(0o604)
    for words in (["wallet", "list", "--offline"], ["wallet", "passwd"], ["whoami"]):
        assert run(words) == 8
        assert "chmod 600" in capsys.readouterr().err
    assert run(["whoami", "--private-key-file", str(open_to_all)]) == 8
    assert f"chmod 600 {open_to_all}" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="there are no pseudo-terminals")
@pytest.mark.goal("SEC-01", part="password by prompt")
def test_on_a_terminal_the_password_is_asked_for_twice_and_never_shown(wallets):
    import pty

    code = (
        "from zg_async.transport import keystore; keystore.SCRYPT_N = 4096;"
        "import sys; from zg_async.cli.main import run; sys.exit(run(sys.argv[1:]))"
    )

    def session(*lines: str) -> tuple[int, str]:
        main, slave = pty.openpty()
        shown, left = b"", list(lines)
        command = [sys.executable, "-c", code, "wallet", "new", "tty"]
        with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True) as child:
            os.close(slave)
            with contextlib.suppress(OSError):  # the other end is closed
                while select.select([main], [], [], 60)[0] and (part := os.read(main, 4096)):
                    shown += part
                    if left and shown.count(b": ") > len(lines) - len(left):  # one more prompt than answers
                        os.write(main, left.pop(0).encode() + b"\n")
            os.close(main)
        return child.returncode, shown.decode()

    code_, shown = session(PASSWORD, PASSWORD + "x")
    assert (code_, "differ" in shown) == (8, True), shown
    assert not wallets.exists()
    code_, shown = session(PASSWORD, PASSWORD)
    assert code_ == 0, shown
    assert "New password:" in shown
    assert PASSWORD not in shown
    assert LocalSigner.from_keystore(wallets / "tty.json", PASSWORD.encode()).address in shown


@pytest.mark.goal("SEC-10", part="a key that is pasted is neither kept nor repeated")
@pytest.mark.parametrize(
    "words",
    [
        "wallet new KEY",
        "wallet import KEY",
        "wallet import 0xKEY",
        "wallet import x --key-file KEY",
        "wallet passwd KEY",
        "login KEY",
        "profile set KEY network=local",
        "profile set x wallet=0xKEY",
        "get-account --network local --wallet 0xKEY",
        "get-account --network local --private-key-file 0xKEY",
        "get-account 0xKEY",
        "0xKEY",
    ],
)
def test_a_private_key_in_the_wrong_place_is_neither_kept_nor_repeated(home, capsys, monkeypatch, words):
    monkeypatch.setenv("ZG_PASSWORD", PASSWORD)
    key = KEYS[0].removeprefix("0x")
    assert run(words.replace("KEY", key).split()) in (2, 8)
    told = capsys.readouterr()
    assert key not in told.out + told.err
    assert [path for path in home.rglob("*") if path.is_file()] == []
