"""Log records and errors know what they belong to; what looks like a secret is gone before any handler sees it."""

import copy
import json
import logging
import pickle
import secrets

import anyio
import pytest
from aiohttp import web

from tests.http_server import serving
from zg_async.background import Background
from zg_async.correlation import bind, correlated, correlation
from zg_async.errors import ProviderError, ProviderRejectedError, TaskFailedError, ZgError
from zg_async.logs import JsonLogFormatter, get_logger, redacted
from zg_async.transport.http import Http, HttpSettings
from zg_async.wire.signing import encode_session_token

PROVIDER = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"


@pytest.fixture
def log():
    class Kept(logging.Handler):
        def __init__(self):
            super().__init__()
            self.records = []

        def emit(self, record):
            self.records.append(record)

    logger, kept = get_logger("zg_async.test"), Kept()
    logger.addHandler(kept)
    logger.setLevel(logging.DEBUG)
    yield logger, kept.records
    logger.removeHandler(kept)


@pytest.mark.goal("OBS-01", part="structured fields")
def test_a_record_carries_what_is_bound_and_nothing_of_what_is_not(log):
    logger, records = log
    with correlated(job_id="j1", provider=PROVIDER):
        with correlated(task_id="t1", provider=None):
            logger.info("inside")
        logger.info("outside")
    logger.info("away")
    assert [(r.job_id, r.task_id, r.provider, r.request_id) for r in records] == [
        ("j1", "t1", PROVIDER, ""),
        ("j1", "", PROVIDER, ""),
        ("", "", "", ""),
    ]


@pytest.mark.goal("OBS-01", part="structured fields")
def test_records_become_json_with_fields(log):
    logger, records = log
    with correlated(job_id="j1"):
        try:
            raise ZgError("no use")
        except ZgError:
            logger.exception("it %s", "failed")
    line = json.loads(JsonLogFormatter().format(records[0]))
    assert line.pop("time").endswith("+00:00")
    assert line.pop("exception").endswith("ZgError: no use")
    assert line == {"level": "ERROR", "logger": "zg_async.test", "message": "it failed", "job_id": "j1"}


async def test_concurrent_work_keeps_apart(log):
    logger, records = log

    async def work(name):
        with correlated(job_id=name):
            for _ in range(5):
                await anyio.lowlevel.checkpoint()
                logger.info("by %s", name)

    async with anyio.create_task_group() as group:
        for name in ("a", "b", "c"):
            group.start_soon(work, name)
    assert len(records) == 15
    assert all(record.getMessage() == f"by {record.job_id}" for record in records)
    assert correlation() == {}


async def test_a_background_task_belongs_to_nobody_by_birth():
    seen, background = [], Background()

    async def shared():
        seen.append(dict(correlation()))

    with correlated(job_id="j1"):
        await background.start(shared(), name="shared").wait()
    await background.aclose()
    assert seen == [{}]


def test_what_was_bound_on_the_way_ends_with_the_block():
    with correlated(job_id="j1"):
        bind(task_id="t1")
        assert correlation() == {"job_id": "j1", "task_id": "t1"}
    assert correlation() == {}


def test_outside_text_is_made_harmless():
    with correlated(task_id="t\x1b[2J" + "x" * 300, provider=7):
        assert correlation() == {"task_id": "t\\x1b[2J" + "x" * 95 + "…"}


# ---- errors


def test_an_error_carries_what_was_bound_where_it_arose_and_learns_the_rest_on_its_way():
    def fail():
        with correlated(job_id="j1", provider="0xother"), correlated(task_id="t1"):
            raise ProviderError("no", provider=PROVIDER)

    with pytest.raises(ProviderError) as caught:
        fail()
    assert caught.value.context == {"job_id": "j1", "task_id": "t1", "provider": PROVIDER}
    late = ZgError("made elsewhere")
    with pytest.raises(ZgError), correlated(job_id="j2"):
        raise late
    assert late.context == {"job_id": "j2"}


def test_an_errors_own_fields_count_and_copies_keep_all():
    with correlated(job_id="j1"):
        error = TaskFailedError("no", task_id="t9", log="")
    assert error.context == {"job_id": "j1", "task_id": "t9"}
    for twin in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert twin.context == error.context


def test_one_error_for_several_who_wait_is_learnt_by_each_alone():
    shared, seen = ZgError("the node is away"), []
    for job in ("a", "b"):
        with pytest.raises(ZgError) as caught, correlated(job_id=job):
            raise shared.again()
        seen.append(caught.value.context["job_id"])
    assert seen == ["a", "b"]


@pytest.mark.goal("OBS-05", part="request id")
@pytest.mark.parametrize("header", ["X-Request-Id", "ZG-Res-Key"])
async def test_a_refusal_and_the_log_line_of_its_request_name_the_request(header, log, caplog):
    async def refuse(request):
        return web.json_response({"error": "no"}, status=400, headers={header: "req-17"})

    with caplog.at_level(logging.DEBUG, "zg_async.http"):
        async with serving(refuse) as url, Http(settings=HttpSettings(allow_hosts=(url,))) as http:
            with pytest.raises(ProviderRejectedError) as caught:
                await http.request("GET", f"{url}/v1/x", provider=PROVIDER)
    assert caught.value.context == {"provider": PROVIDER, "request_id": "req-17"}
    [record] = [r for r in caplog.records if r.name == "zg_async.http"]
    assert (record.provider, record.request_id) == (PROVIDER, "req-17")
    assert "GET /v1/x answered 400" in record.getMessage()


# ---- secrets


@pytest.mark.goal("OBS-01", part="secrets redacted")
@pytest.mark.parametrize(
    "form",
    [
        "token {token}",
        "Authorization: Bearer {token}",
        "{{'Authorization': 'Bearer {bare}'}}",
        "bearer {bare}",
        "Authorization=Basic {bare}",
        "https://user:{bare}@rpc.example/x",
        "signature 0x{signature}",
        "{signature}",
        "{upper}",
    ],
)
def test_what_has_the_form_of_a_secret_is_taken_out_of_message_arguments_and_traceback(log, form):
    logger, records = log
    signature, bare = secrets.token_hex(64) + "1b", secrets.token_urlsafe(32)
    token = encode_session_token('{"a":1}', bytes.fromhex(signature))
    text = form.format(token=token, bare=bare, signature=signature, upper=signature.upper())
    logger.warning("message %s", text)
    logger.warning(text.replace("%", "%%"))
    try:
        raise ValueError(text)
    except ValueError:
        logger.exception("failed")
    for record in records:
        shown = logging.Formatter("%(message)s").format(record) + JsonLogFormatter().format(record) + repr(record.args)
        assert "<hidden>" in shown
        assert not [s for s in (signature, signature.upper(), bare, token) if s in shown]


def test_hashes_addresses_and_plain_text_stay():
    text = f"tx 0x{'ab' * 32} of {PROVIDER} at https://rpc.example/x@y, bearer of news; 0x{'12' * 66}"
    assert redacted(text) == text
