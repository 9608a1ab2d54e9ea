import json
import os
import tracemalloc

import pytest
from aiohttp import web

from tests.http_server import serving
from zg_async.errors import ConfigError, DatasetError, HashMismatchError, ProviderRejectedError, ProviderReplyError
from zg_async.managers.dataset import check_dataset, upload_dataset
from zg_async.managers.provider_client import ProviderClient
from zg_async.transport.http import MIB, Http, HttpSettings
from zg_async.transport.limiter import UNLIMITED
from zg_async.transport.transfer import Progress
from zg_async.wire.hashing import keccak256

USER = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"
PROVIDER = "0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC"
ROW = json.dumps({"instruction": "Name a colour.", "input": "", "output": "Blue."}).encode()


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "train.jsonl"
    file.write_bytes(b"\n".join(ROW.replace(b"Blue", b"Blue%d" % i) for i in range(50)) + b"\n")
    return file


class Dataset:
    """The dataset route."""

    def __init__(self, answer=None, faults=()):
        self.answer = answer
        self.faults = list(faults)
        self.forms = []

    async def __call__(self, request):
        assert request.path == f"/v1/user/{USER}/dataset"
        form = {}
        async for part in await request.multipart():
            form[part.name] = (part.filename, bytes(await part.read()))
        self.forms.append(form)
        if self.faults:
            return web.json_response({"error": "no"}, status=self.faults.pop(0))
        answer = self.answer or (lambda data: {"datasetHash": "0x" + keccak256(data).hex(), "message": "stored"})
        return web.json_response(answer(form["file"][1]))


async def upload(clock, provider, path, **more):
    count = 0

    async def fields():
        nonlocal count
        count += 1
        return {"signature": f"0x{count}", "timestamp": str(count)}

    async with serving(provider) as base:
        settings = HttpSettings(allow_hosts=("127.0.0.1",), limits=UNLIMITED)
        async with Http(settings=settings, clock=clock) as http:
            return await upload_dataset(ProviderClient(http, base, PROVIDER, clock), USER, path, fields, **more)


# --- check ------------------------------------------------------------------------------------------------------------


async def test_a_good_dataset_is_counted_and_hashed(path):
    report = await check_dataset(str(path))
    assert report.is_ok
    assert report.rows == 50
    assert report.keccak256 == "0x" + keccak256(path.read_bytes()).hex()


@pytest.mark.parametrize("content", [b"", b"\n\n", b"[1]\n", b"{\n", b"\xef\xbb\xbf" + ROW, b"\xff\n", b"null\n"])
async def test_a_bad_dataset_gets_a_report_and_no_exception(tmp_path, content):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    report = await check_dataset(path)
    assert not report.is_ok
    json.dumps(report.to_json())


@pytest.mark.goal("HRD-17", part="no regular file")
@pytest.mark.parametrize("kind", ["missing", "folder", "fifo", "device", "unreadable"])
async def test_what_is_no_regular_file_is_a_config_error(tmp_path, kind):
    path = tmp_path / "x.jsonl"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path = "/dev/zero"
    elif kind == "unreadable":
        path = tmp_path / "x.jsonl" / "y.jsonl"
    with pytest.raises(ConfigError):
        await check_dataset(path)


@pytest.mark.slow
@pytest.mark.goal("DAT-01", part="constant memory over a file")
async def test_a_large_dataset_is_checked_in_little_memory(tmp_path):
    path = tmp_path / "large.jsonl"
    with path.open("wb") as file:
        for i in range(40):
            file.write(b"".join(b'{"instruction":"%d %d","output":"%s"}\n' % (i, j, b"x" * 8000) for j in range(120)))
    assert path.stat().st_size > 36 * MIB
    tracemalloc.start()
    try:
        report = await check_dataset(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert report.is_ok
    assert peak < 12 * MIB


# --- upload -----------------------------------------------------------------------------------------------------------


@pytest.mark.goal("DAT-05", part="streamed, equal hashes")
async def test_a_dataset_arrives_and_its_hash_is_compared(clock, path):
    provider, progress = Dataset(), Progress()
    done = await upload(clock, provider, path, progress=progress)
    assert done.dataset_hash == "0x" + keccak256(path.read_bytes()).hex()
    assert (done.size, done.message) == (path.stat().st_size, "stored")
    assert provider.forms[0]["file"] == ("train.jsonl", path.read_bytes())
    assert progress.bytes_done == progress.bytes_total == done.size


async def test_the_old_name_of_the_hash_is_understood(clock, path):
    provider = Dataset(lambda data: {"hash": "0x" + keccak256(data).hex().upper()})
    assert (await upload(clock, provider, path)).dataset_hash == "0x" + keccak256(path.read_bytes()).hex()


@pytest.mark.goal("DAT-05", part="a fresh signature per attempt")
async def test_an_upload_is_retried_with_a_fresh_signature(clock, path):
    provider = Dataset(faults=[503, 500])
    await upload(clock, provider, path)
    assert [f["signature"][1] for f in provider.forms] == [b"0x1", b"0x2", b"0x3"]


@pytest.mark.goal("DAT-05")
async def test_an_upload_shows_progress_signs_each_attempt_afresh_and_compares_the_hash(clock, path):
    answers = [
        lambda data: {"datasetHash": "0x" + keccak256(data).hex()},
        lambda data: {"datasetHash": "0x" + "0" * 64},
    ]
    progress, provider = Progress(), Dataset(answers[0], faults=[503])
    done = await upload(clock, provider, path, progress=progress)
    assert [f["signature"][1] for f in provider.forms] == [b"0x1", b"0x2"]
    assert done.dataset_hash == "0x" + keccak256(path.read_bytes()).hex()
    assert (progress.bytes_done, progress.attempt) == (path.stat().st_size, 2)
    with pytest.raises(HashMismatchError):
        await upload(clock, Dataset(answers[1]), path)


@pytest.mark.goal("DAT-05", part="a mismatch is an error")
async def test_another_hash_at_the_provider_is_an_error(clock, path):
    with pytest.raises(HashMismatchError, match="don't train on it"):
        await upload(clock, Dataset(lambda data: {"datasetHash": "0x" + "ab" * 32}), path)


@pytest.mark.parametrize("answer", [{}, {"datasetHash": "0x12"}, {"datasetHash": 5}, [], "x"])
async def test_an_answer_without_a_hash_is_a_reply_error(clock, path, answer):
    with pytest.raises(ProviderReplyError):
        await upload(clock, Dataset(lambda data: answer), path)


@pytest.mark.parametrize("content", [b"", b"[1]\n", b'{"text": "only text"}\n', b"\xff\xfe\n"])
async def test_a_dataset_the_provider_would_spoil_is_not_sent(clock, tmp_path, content):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    provider = Dataset()
    with pytest.raises(DatasetError) as caught:
        await upload(clock, provider, path)
    assert provider.forms == []
    assert caught.value.hint


async def test_what_the_provider_would_drop_is_said_before_the_upload(clock, path, caplog):
    multi = {"messages": [{"role": r, "content": f"{r}{i}"} for i in range(2) for r in ("user", "assistant")]}
    path.write_text(json.dumps(multi) + "\n")
    await upload(clock, Dataset(), path)
    assert "1 times from row 1 on: the provider keeps only the last" in caplog.text


async def test_the_error_names_the_first_rows_and_counts_the_rest(clock, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(ROW + b"\n" + b"oops\n" * 200)
    with pytest.raises(DatasetError, match=r"row 2 and 199 more rows: not JSON") as caught:
        await upload(clock, Dataset(), path)
    assert caught.value.rows[:3] == (2, 3, 4)


@pytest.mark.parametrize(
    ("content", "told", "hint"),
    [
        (b"", "there is no row in it", "one row per line"),
        (b'{"question": "a", "answer": "b"}\n' * 3, "row 1 and 2 more rows: none of instruction", "question to instr"),
        (ROW + b'\n{"instruction": "\xff", "output": "a"}\n', "row 2: not UTF-8", "Convert it"),
        (b'[\n{"instruction": "a"}\n]\n', "row 1: looks like pretty-printed JSON", "one JSON object per line"),
        (ROW + b'\n{"text": "a"}\n', "row 2: a text row in a file", "lists every one"),
    ],
    ids=["empty", "other keys", "not UTF-8", "an array", "mixed"],
)
async def test_every_refusal_says_what_to_do_next(clock, tmp_path, content, told, hint):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=told) as caught:
        await upload(clock, Dataset(), path)
    assert hint in caught.value.hint


async def test_a_refusal_of_the_provider_is_shown(clock, path):
    with pytest.raises(ProviderRejectedError):
        await upload(clock, Dataset(faults=[401]), path)


async def test_a_file_of_another_ending_goes_as_jsonl(clock, path):
    other = path.rename(path.with_name("training data.txt"))
    provider = Dataset()
    await upload(clock, provider, other)
    assert provider.forms[0]["file"][0] == "training data.jsonl"


@pytest.mark.goal("HRD-17", part="changed while read")
async def test_a_file_that_changed_after_its_check_is_an_error(clock, path, monkeypatch):
    async def check_then_change(source, **more):
        report = await check_dataset(source, **more)
        path.write_bytes(path.read_bytes() + ROW + b"\n")
        return report

    monkeypatch.setattr("zg_async.managers.dataset.check_dataset", check_then_change)
    with pytest.raises(HashMismatchError, match="between"):
        await upload(clock, Dataset(), path)
