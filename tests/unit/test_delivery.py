import datetime as dt
import io
import os
import stat
import struct
import zipfile

import anyio
import pytest
from aiohttp import web

from tests.http_server import serving
from zg_async.errors import (
    ConfigError,
    EnvelopeError,
    HashMismatchError,
    ProviderUnavailableError,
    SignatureMismatchError,
    UnsafeArchiveError,
)
from zg_async.managers.delivery import check_file, decrypt_file, download_model, root_matches, roots_of, unpack
from zg_async.managers.provider_client import ProviderClient
from zg_async.transport.http import MIB, Http, HttpSettings
from zg_async.transport.limiter import UNLIMITED
from zg_async.transport.transfer import Progress
from zg_async.wire.envelope import encrypt_model
from zg_async.wire.hashing import Keccak256, keccak256
from zg_async.wire.merkle import MerkleHasher
from zg_async.wire.records import Deliverable, TaskId
from zg_async.wire.signing import recover_address, sign_digest

USER = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"
PROVIDER = "0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC"
TASK = TaskId("11111111-2222-3333-4444-555555555555")
KEY, NONCE, TEE = b"k" * 32, b"n" * 12, b"t" * 32
CHUNK = 100_000
TEE_ADDRESS = recover_address(b"\1" * 32, sign_digest(TEE, b"\1" * 32))


def deliverable(root):
    return Deliverable(
        id=TASK,
        model_root_hash=root,
        encrypted_secret=b"",
        acknowledged=False,
        timestamp=dt.datetime(2026, 11, 20, tzinfo=dt.UTC),
        settled=False,
    )


class Lora:
    """The lora route."""

    def __init__(self, content):
        self.content = content
        self.ranges = []

    async def __call__(self, request):
        assert request.path == f"/v1/user/{USER}/task/{TASK}/lora"
        await request.read()
        self.ranges.append(request.headers.get("Range"))
        if request.headers.get("Range"):
            start = int(request.headers["Range"][6:-1])
            total = len(self.content)
            if start >= total:
                return web.Response(status=416, headers={"Content-Range": f"bytes */{total}"})
            where = f"bytes {start}-{total - 1}/{total}"
            return web.Response(status=206, body=self.content[start:], headers={"Content-Range": where})
        return web.Response(body=self.content)


async def body():
    return {"signature": "0x", "timestamp": 1}


def client(http, base):
    return ProviderClient(http, base, PROVIDER, http.clock)


def http_of(clock):
    return Http(settings=HttpSettings(allow_hosts=("127.0.0.1",), limits=UNLIMITED), clock=clock)


@pytest.fixture
def content():
    return os.urandom(2 * MIB + 99)


# --- hashes on chain --------------------------------------------------------------------------------------------------


def test_32_bytes_on_chain_are_one_root():
    assert roots_of(b"0x" + b"a" * 30) == {b"0x" + b"a" * 30}


@pytest.mark.parametrize("count", [1, 2, 3])
def test_text_on_chain_is_a_list_of_roots(count):
    roots = [bytes([i]) * 32 for i in range(count)]
    assert roots_of(",".join("0x" + r.hex() for r in roots).encode()) == set(roots)
    assert roots_of(", ".join("0x" + r.hex().upper() for r in roots).encode()) == set(roots)


@pytest.mark.parametrize("text", [b"", b"0x", b"0x" + b"g" * 64, b"0x" + b"a" * 64 + b",", b"\xff" * 66, b"a" * 31])
def test_anything_else_on_chain_matches_nothing(text):
    with pytest.raises(HashMismatchError):
        roots_of(text)


def test_either_hash_may_be_the_one_on_chain():
    hashes = {"keccak256": b"k" * 32, "storage_root": b"s" * 32}
    assert root_matches(hashes, b"k" * 32) == "keccak256"
    assert root_matches(hashes, b"s" * 32) == "storage_root"
    assert root_matches(hashes, b"x" * 32) is None
    assert root_matches(hashes, b"0x" + b"73" * 32) == "storage_root"


# --- download ---------------------------------------------------------------------------------------------------------


@pytest.mark.goal("DEL-02", part="keccak256")
@pytest.mark.parametrize("text", [False, True])
async def test_a_download_with_the_hash_on_chain_gets_its_name(clock, tmp_path, content, text):
    root = keccak256(content)
    on_chain = ("0x" + root.hex()).encode() if text else root
    async with serving(Lora(content)) as base, http_of(clock) as http:
        model = await download_model(client(http, base), USER, deliverable(on_chain), tmp_path / "m", body)
    assert (tmp_path / "m").read_bytes() == content
    assert os.listdir(tmp_path) == ["m"]
    assert (model.matched, model.root_hash, model.size) == ("keccak256", "0x" + root.hex(), len(content))


async def test_a_storage_root_on_chain_is_checked_unless_nobody_can_compute_it(clock, tmp_path, content):
    hasher = MerkleHasher()
    hasher.update(content)
    root = hasher.digest()
    async with serving(Lora(content)) as base, http_of(clock) as http:
        c = client(http, base)
        with pytest.raises(HashMismatchError, match="0G Storage"):
            await download_model(c, USER, deliverable(root), tmp_path / "m", body, storage_root=None)
        model = await download_model(c, USER, deliverable(root), tmp_path / "m", body)
    assert (model.matched, model.root_hash) == ("storage_root", "0x" + root.hex())


@pytest.mark.goal("DEL-02", part="a tampered download")
async def test_a_tampered_download_is_an_error_and_leaves_nothing(clock, tmp_path, content):
    provider = Lora(content)
    async with serving(provider) as base, http_of(clock) as http:
        with pytest.raises(HashMismatchError, match="chain says") as caught:
            await download_model(client(http, base), USER, deliverable(b"x" * 32), tmp_path / "m", body)
    assert os.listdir(tmp_path) == []
    assert provider.ranges == [None]
    assert not caught.value.retryable


async def test_a_wrong_beginning_from_an_earlier_call_is_thrown_away_once(clock, tmp_path, content):
    (tmp_path / "m.part").write_bytes(b"rubbish")
    provider = Lora(content)
    async with serving(provider) as base, http_of(clock) as http:
        await download_model(client(http, base), USER, deliverable(keccak256(content)), tmp_path / "m", body)
    assert provider.ranges == ["bytes=7-", None]
    assert (tmp_path / "m").read_bytes() == content


async def test_what_is_there_already_is_checked_and_not_fetched(clock, tmp_path, content):
    provider = Lora(content)
    async with serving(provider) as base, http_of(clock) as http:
        for name in ("m", "n.part"):
            (tmp_path / name).write_bytes(content)
        for name in ("m", "n"):
            model = await download_model(
                client(http, base), USER, deliverable(keccak256(content)), tmp_path / name, body
            )
            assert model.size == len(content)
    assert provider.ranges == []
    assert sorted(os.listdir(tmp_path)) == ["m", "n"]


async def test_another_file_under_the_name_is_replaced_only_by_a_checked_one(clock, tmp_path, content):
    (tmp_path / "m").write_bytes(b"old")
    async with serving(Lora(content)) as base, http_of(clock) as http:
        with pytest.raises(HashMismatchError):
            await download_model(client(http, base), USER, deliverable(b"x" * 32), tmp_path / "m", body)
        assert (tmp_path / "m").read_bytes() == b"old"
        await download_model(client(http, base), USER, deliverable(keccak256(content)), tmp_path / "m", body)
    assert (tmp_path / "m").read_bytes() == content


async def test_an_unreadable_hash_on_chain_is_an_error_before_the_download(clock, tmp_path, content):
    provider = Lora(content)
    async with serving(provider) as base, http_of(clock) as http:
        with pytest.raises(HashMismatchError, match="can't be read"):
            await download_model(client(http, base), USER, deliverable(b"?"), tmp_path / "m", body)
    assert provider.ranges == []


async def test_a_file_is_checked_again_on_demand(tmp_path, content):
    path = tmp_path / "m"
    path.write_bytes(content)
    assert (await check_file(str(path), deliverable(keccak256(content)))).size == len(content)
    path.write_bytes(content[:-1])
    with pytest.raises(HashMismatchError):
        await check_file(path, deliverable(keccak256(content)))
    with pytest.raises(ConfigError):
        await check_file(tmp_path / "none", deliverable(keccak256(content)))


# --- decryption -------------------------------------------------------------------------------------------------------


@pytest.fixture
def plaintext():
    return os.urandom(3 * CHUNK + 17)


@pytest.fixture
def encrypted(tmp_path, plaintext):
    path = tmp_path / "model.encrypted"
    path.write_bytes(encrypt_model(KEY, NONCE, plaintext, lambda d: sign_digest(TEE, d), chunk=CHUNK))
    return path


async def decrypt(path, output, key=KEY, signer=TEE_ADDRESS):
    return await decrypt_file(path, output, key=key, expected_signer=signer, chunk=CHUNK)


async def test_a_model_is_decrypted_for_this_user_only(encrypted, tmp_path, plaintext):
    out = await decrypt(encrypted, tmp_path / "model.zip")
    assert out.read_bytes() == plaintext
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert sorted(os.listdir(tmp_path)) == ["model.encrypted", "model.zip"]


def flip(data, at):
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.goal("DEL-06", part="files fail closed")
@pytest.mark.parametrize(
    "damage",
    [
        lambda d: b"",
        lambda d: d[:76],
        lambda d: d[:-1],
        lambda d: d[:-CHUNK],
        lambda d: d[: 77 + CHUNK + 16],
        lambda d: d + b"\0",
        lambda d: d + d[77 : 77 + CHUNK + 16],
        lambda d: flip(d, 66),
        lambda d: flip(d, 77),
        lambda d: flip(d, len(d) - 1),
        lambda d: d[:77] + d[77 + CHUNK + 16 :],
    ],
)
async def test_a_damaged_file_gives_no_output(encrypted, tmp_path, damage):
    encrypted.write_bytes(damage(encrypted.read_bytes()))
    with pytest.raises((EnvelopeError, SignatureMismatchError)):
        await decrypt(encrypted, tmp_path / "model.zip")
    assert os.listdir(tmp_path) == ["model.encrypted"]


async def test_a_wrong_key_gives_no_output(encrypted, tmp_path):
    with pytest.raises(EnvelopeError):
        await decrypt(encrypted, tmp_path / "model.zip", key=b"x" * 32)
    assert os.listdir(tmp_path) == ["model.encrypted"]


@pytest.mark.goal("DEL-06", part="the signer before the output")
@pytest.mark.parametrize("how", ["another signer", "a flipped signature"])
async def test_a_wrong_signer_gives_no_output(encrypted, tmp_path, how):
    if how == "a flipped signature":
        encrypted.write_bytes(flip(encrypted.read_bytes(), 40))
    with pytest.raises(SignatureMismatchError):
        await decrypt(encrypted, tmp_path / "model.zip", signer=USER if how == "another signer" else TEE_ADDRESS)
    assert os.listdir(tmp_path) == ["model.encrypted"]


async def test_the_remains_of_a_killed_decryption_are_in_nobodys_way(encrypted, tmp_path, plaintext):
    (tmp_path / "model.zip.decrypting").write_bytes(b"old" * 10**6)
    out = await decrypt(encrypted, tmp_path / "model.zip")
    assert out.read_bytes() == plaintext
    assert sorted(os.listdir(tmp_path)) == ["model.encrypted", "model.zip"]


@pytest.mark.parametrize("case", ["no input", "no folder"])
async def test_unusable_paths_are_config_errors(encrypted, tmp_path, case):
    source = tmp_path / "none" if case == "no input" else encrypted
    target = tmp_path / "none" / "x" if case == "no folder" else tmp_path / "x"
    with pytest.raises(ConfigError):
        await decrypt(source, target)


async def test_a_disk_too_small_is_said_first(encrypted, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: _Free())
    with pytest.raises(ConfigError, match="disk has"):
        await decrypt(encrypted, tmp_path / "x")


class _Free:
    free = 1000


# --- unpacking --------------------------------------------------------------------------------------------------------


def make_zip(path, entries, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in entries:
            file.writestr(name, data)
    return path


MODEL = [
    ("output_model/adapter_model.safetensors", os.urandom(3 * MIB)),
    ("output_model/adapter_config.json", b"{}"),
    ("output_model/checkpoint-3/optimizer.pt", b"\x80\x04pickle"),
]


async def test_a_model_is_unpacked_and_its_pickles_are_put_aside(tmp_path):
    archive = make_zip(tmp_path / "m.zip", MODEL)
    files = await unpack(archive, tmp_path / "adapter")
    assert files == ("adapter_model.safetensors", "adapter_config.json", "quarantine/checkpoint-3/optimizer.pt")
    assert (tmp_path / "adapter/adapter_model.safetensors").read_bytes() == MODEL[0][1]
    assert stat.S_IMODE((tmp_path / "adapter/adapter_config.json").stat().st_mode) == 0o600
    assert sorted(os.listdir(tmp_path)) == ["adapter", "m.zip"]


async def test_what_is_unpacked_already_is_recognised(tmp_path):
    archive = make_zip(tmp_path / "m.zip", MODEL)
    first = await unpack(archive, tmp_path / "adapter")
    before = (tmp_path / "adapter/adapter_config.json").stat().st_mtime_ns
    assert await unpack(archive, tmp_path / "adapter") == first
    assert (tmp_path / "adapter/adapter_config.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("other", ["more", "less", "changed", "a file", "a link"])
async def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path, other):
    archive = make_zip(tmp_path / "m.zip", MODEL)
    target = tmp_path / "adapter"
    if other == "a file":
        target.write_bytes(b"x")
    elif other == "a link":
        (tmp_path / "real").mkdir()
        target.symlink_to(tmp_path / "real")
    else:
        await unpack(archive, target)
        if other == "more":
            (target / "mine.txt").write_text("x")
        elif other == "less":
            (target / "adapter_config.json").unlink()
        else:
            (target / "adapter_config.json").write_bytes(b"[]")
    with pytest.raises(ConfigError, match="something else"):
        await unpack(archive, target)
    assert target.exists()


async def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "adapter").mkdir()
    await unpack(make_zip(tmp_path / "m.zip", MODEL), tmp_path / "adapter")
    assert (tmp_path / "adapter/adapter_config.json").exists()


def damaged_data():
    buffer = io.BytesIO()
    make_zip(buffer, [("output_model/a.json", b"x" * 1000)])
    data = bytearray(buffer.getvalue())
    data[100] ^= 1
    return bytes(data)


def huge_directory(count=0xFFFE, length=2**31):
    return b"\0" * 64 + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, length, 0, 0)


def huge_directory_64():
    end = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 2**40, 2**40, 2**40, 0)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, 0, 1)
    return end + locator + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0, 0, 0, 0, 0)


@pytest.mark.goal("DEL-09")
@pytest.mark.goal("SEC-07", part="zip")
@pytest.mark.parametrize(
    "make",
    [
        lambda p: make_zip(p, [("../evil.json", b"x")]),
        lambda p: make_zip(p, [("/etc/evil.json", b"x")]),
        lambda p: make_zip(p, [("C:\\evil.json", b"x")]),
        lambda p: make_zip(p, [("output_model/../../evil.json", b"x")]),
        lambda p: make_zip(p, [("a.json", b"x"), ("A.JSON", b"y")]),
        lambda p: make_zip(p, [("bomb.json", bytes(50 * MIB))], zipfile.ZIP_DEFLATED),
        lambda p: make_zip(p, [(_link(), b"/etc/passwd")]),
        lambda p: make_zip(p, []),
        lambda p: p.write_bytes(b""),
        lambda p: p.write_bytes(b"no zip at all" * 1000),
        lambda p: p.write_bytes(damaged_data()),
        lambda p: p.write_bytes(huge_directory()),
        lambda p: p.write_bytes(huge_directory_64()),
    ],
    ids=[
        "parent", "absolute", "drive", "inner parent", "twice", "bomb", "link", "empty", "no bytes", "no zip",
        "check sum", "huge directory", "huge directory 64",
    ],
)  # fmt: skip
async def test_an_unsafe_archive_is_refused_and_leaves_nothing(tmp_path, make):
    folder = tmp_path / "deep" / "down"
    folder.mkdir(parents=True)
    make(folder / "m.zip")
    with pytest.raises(UnsafeArchiveError):
        await unpack(folder / "m.zip", folder / "adapter")
    assert os.listdir(folder) == ["m.zip"]
    assert os.listdir(tmp_path) == ["deep"]


def _link():
    info = zipfile.ZipInfo("output_model/link.json")
    info.create_system = 3
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


async def test_an_archive_over_the_quota_is_refused(tmp_path):
    archive = make_zip(tmp_path / "m.zip", MODEL)
    with pytest.raises(UnsafeArchiveError):
        await unpack(archive, tmp_path / "adapter", max_total=MIB)


async def test_a_missing_archive_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError):
        await unpack(tmp_path / "none.zip", tmp_path / "adapter")


# --- the whole of resuming --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.goal("DEL-04")
async def test_after_a_stall_at_90_percent_only_the_rest_comes_and_the_name_appears_last(clock, tmp_path, content):
    cut, progress, signatures, ranges, names = len(content) * 9 // 10, Progress(), [], [], []

    async def lora(request):
        signatures.append((await request.json())["signature"])
        ranges.append(request.headers.get("Range"))
        names.append(os.listdir(tmp_path))
        if len(ranges) > 1:
            where = f"bytes {cut}-{len(content) - 1}/{len(content)}"
            return web.Response(status=206, body=content[cut:], headers={"Content-Range": where})
        answer = web.StreamResponse()
        answer.content_length = len(content)
        await answer.prepare(request)
        await answer.write(content[:cut])
        await anyio.sleep(30)
        return answer

    async def fresh():
        return {"signature": f"0x{len(signatures)}", "timestamp": 1}

    settings = HttpSettings(allow_hosts=("127.0.0.1",), limits=UNLIMITED, idle_timeout=0.3)
    async with serving(lora) as base, Http(settings=settings, clock=clock) as http:
        await download_model(
            client(http, base), USER, deliverable(keccak256(content)), tmp_path / "m", fresh, progress=progress
        )
    assert ranges == [None, f"bytes={cut}-"]
    assert signatures == ["0x0", "0x1"]
    assert names == [["m.part"]] * 2
    assert os.listdir(tmp_path) == ["m"]
    assert (tmp_path / "m").read_bytes() == content


# --- cancellation and cost --------------------------------------------------------------------------------------------


@pytest.mark.goal("DEL-04", part="no partial file under the final name")
@pytest.mark.parametrize("at", [0, 1, 2, 3, 5, 8, 13, 21, 34, 55])
async def test_cancelling_a_delivery_anywhere_leaves_nothing_under_a_final_name_but_what_is_whole(
    clock, tmp_path, at, content
):
    archive = io.BytesIO()
    make_zip(archive, MODEL)
    sealed = encrypt_model(KEY, NONCE, archive.getvalue(), lambda d: sign_digest(TEE, d), chunk=CHUNK)
    async with serving(Lora(sealed)) as base, http_of(clock) as http:
        with anyio.move_on_after(at / 1000):
            model = tmp_path / "m"
            await download_model(client(http, base), USER, deliverable(keccak256(sealed)), model, body)
            await decrypt(model, tmp_path / "m.zip")
            await unpack(tmp_path / "m.zip", tmp_path / "adapter")
    whole = {"m": len(sealed), "m.zip": len(archive.getvalue())}
    for name in os.listdir(tmp_path):
        if name == "adapter":
            assert len(list((tmp_path / name).rglob("*.*"))) == len(MODEL)
        elif name in whole:
            assert (tmp_path / name).stat().st_size == whole[name]
        else:
            assert name == "m.part"


@pytest.mark.slow
@pytest.mark.goal("DEL-03", part="scaled down")
async def test_a_large_model_is_fetched_hashed_both_ways_and_decrypted_in_little_memory(clock, tmp_path):
    import tracemalloc

    size = 96 * MIB
    plain = os.urandom(MIB) * (size // MIB)
    sealed = tmp_path / "served"
    sealed.write_bytes(encrypt_model(KEY, NONCE, plain, lambda d: sign_digest(TEE, d)))
    root = keccak256(sealed.read_bytes())
    del plain

    async def lora(request):
        return web.FileResponse(sealed)

    async with serving(lora) as base, http_of(clock) as http:
        tracemalloc.start()
        try:
            model = await download_model(
                client(http, base), USER, deliverable(root), tmp_path / "m", body, storage_root=Keccak256
            )
            await decrypt_file(model.path, tmp_path / "m.zip", key=KEY, expected_signer=TEE_ADDRESS)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert (tmp_path / "m.zip").stat().st_size == size
    assert peak < 24 * MIB


async def test_progress_of_a_download_can_be_read(clock, tmp_path, content):
    progress = Progress()
    async with serving(Lora(content)) as base, http_of(clock) as http:
        await download_model(
            client(http, base), USER, deliverable(keccak256(content)), tmp_path / "m", body, progress=progress
        )
    assert (progress.bytes_done, progress.bytes_total) == (len(content), len(content))


async def test_a_provider_that_has_not_the_file_keeps_what_is_there(clock, tmp_path):
    async def lora(request):
        return web.Response(status=503)

    (tmp_path / "m.part").write_bytes(b"beginning")
    async with serving(lora) as base, http_of(clock) as http:
        with pytest.raises(ProviderUnavailableError):
            await download_model(client(http, base), USER, deliverable(b"x" * 32), tmp_path / "m", body)
    assert (tmp_path / "m.part").read_bytes() == b"beginning"
