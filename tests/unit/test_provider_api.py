"""The fine-tuning provider's API: what we send, what we read, what a refusal means."""

import datetime as dt
import json

import pytest

from tests.golden import ids, vectors
from zg_async import errors
from zg_async.errors import ConfigError, ProviderRejectedError, ProviderReplyError, ProviderUnavailableError
from zg_async.wire import provider_api as api
from zg_async.wire.records import TaskProgress

FT = vectors("fine-tuning")
USER = FT["keys"]["alice"]["address"]
PROVIDER = FT["keys"]["bob"]["address"]
ID = "de594986-253d-43d5-8ae4-6349207282db"
CAPTURES = FT["wire_captures"]["typescript"] + FT["wire_captures"]["python"]
TASK = {
    "id": ID,
    "createdAt": "2026-01-01T00:00:00.123456789Z",
    "updatedAt": "2026-01-01T02:00:00+02:00",
    "userAddress": USER.lower(),
    "preTrainedModelHash": "0xb4",
    "datasetHash": "0x1d",
    "trainingParams": "{}",
    "fee": "10000000000003702",
    "nonce": "17672256001230040",
    "signature": "0x00",
    "progress": "Delivered",
    "deliverIndex": 0,
    "deliverTime": 1767225600,
    "modelType": 0,
    "wait": False,
    "new field": {"of": "tomorrow"},
}


def own_paths() -> set[str]:
    return {
        api.tasks_path(USER),
        api.tasks_path(USER, latest=True),
        api.task_path(USER, ID),
        api.cancel_path(USER, ID),
        api.log_path(USER, ID),
        api.lora_path(USER, ID),
        api.dataset_path(USER),
        api.pending_path(),
        api.models_path(),
        api.quote_path().partition("?")[0],
    }


@pytest.mark.goal("DOC-07", part="requests")
def test_paths_are_those_both_peers_really_asked_for():
    assert {c["path"] for c in CAPTURES} == own_paths()


@pytest.mark.goal("DOC-07", part="requests")
@pytest.mark.parametrize("capture", [c for c in CAPTURES if "json" in c], ids=lambda c: c["path"].rpartition("/")[2])
def test_bodies_are_those_the_peers_really_sent(capture):
    sent = capture["json"]
    if "trainingParams" in sent:
        made = api.create_task_body(
            user=USER,
            model_hash=sent["preTrainedModelHash"],
            dataset_hash=sent["datasetHash"],
            training_params=sent["trainingParams"],
            request_nonce=int(sent["nonce"]),
            signature=sent["signature"],
            wait=sent.get("wait", False),
        )
        made = {k: v for k, v in made.items() if k in sent}
    elif "timestamp" in sent:
        made = api.download_body(sent["signature"], sent["timestamp"])
    else:
        made = api.cancel_body(sent["signature"])
    assert made == sent


@pytest.mark.parametrize("given", ["", "0x11", "train.jsonl", "0x" + "1" * 65, "1" * 64])
def test_what_is_no_dataset_hash_is_never_sent(given):
    with pytest.raises(ConfigError, match="not a dataset hash") as caught:
        api.create_task_body(
            user=USER,
            model_hash="0x",
            dataset_hash=given,
            training_params="{}",
            request_nonce=1,
            signature="0x",
            wait=False,
        )
    assert "upload_dataset_to_tee" in caught.value.hint


@pytest.mark.goal("TX-06", part="addresses")
def test_addresses_in_captured_bodies_are_checksummed():
    assert all(c["json"]["userAddress"] == USER for c in CAPTURES if "userAddress" in c.get("json", {}))


def test_names_are_quoted_in_paths():
    assert api.model_path("a/../b?c") == "/v1/model/a%2F..%2Fb%3Fc"
    assert api.model_usage_path("x y") == "/v1/model/desc/x%20y"
    assert api.quote_path(legacy=False) == "/v1/quote?legacy=false"


# --- tasks -----------------------------------------------------------------------------------------------------------


@pytest.mark.goal("TSK-01", part="provider JSON")
def test_task_is_typed():
    task = api.parse_task(json.dumps(TASK).encode(), PROVIDER)
    assert (task.id, task.provider, task.user) == (ID, PROVIDER, USER)
    assert task.progress is TaskProgress.DELIVERED
    assert task.fee == 10000000000003702
    assert task.request_nonce == 17672256001230040
    assert task.created_at == dt.datetime(2026, 1, 1, 0, 0, 0, 123456, tzinfo=dt.UTC)
    assert task.updated_at == dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    assert task.updated_at.utcoffset() == dt.timedelta(0)
    assert task.deliver_time == dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    assert not task.is_terminal
    assert not task.is_cancellable


@pytest.mark.goal("TSK-01", part="states")
@pytest.mark.parametrize(
    ("word", "progress", "terminal", "cancellable"),
    [
        ("Init", TaskProgress.INIT, False, True),
        ("SettingUp", TaskProgress.SETTING_UP, False, True),
        ("SetUp", TaskProgress.SET_UP, False, True),
        ("Training", TaskProgress.TRAINING, False, False),
        ("Trained", TaskProgress.TRAINED, False, False),
        ("Delivering", TaskProgress.DELIVERING, False, False),
        ("Delivered", TaskProgress.DELIVERED, False, False),
        ("UserAcknowledged", TaskProgress.USER_ACKNOWLEDGED, False, False),
        ("Finished", TaskProgress.FINISHED, True, False),
        ("Failed", TaskProgress.FAILED, True, False),
        ("InProgress", TaskProgress.TRAINING, False, False),
        ("UserAckDelivered", TaskProgress.USER_ACKNOWLEDGED, False, False),
        ("Completed", TaskProgress.FINISHED, True, False),
        ("Cancelled", TaskProgress.CANCELLED, True, False),
        ("Unknown", TaskProgress.UNKNOWN, False, False),
        ("Quantising", TaskProgress.UNKNOWN, False, False),
    ],
)
def test_every_state_old_and_new_is_mapped_and_its_word_kept(word, progress, terminal, cancellable):
    task = api.parse_task({**TASK, "progress": word}, PROVIDER)
    assert (task.progress, task.progress_text) == (progress, word)
    assert (task.is_terminal, task.is_cancellable) == (terminal, cancellable)


def test_numbers_may_be_numeric_strings_and_optional_fields_may_lack():
    old = {k: v for k, v in TASK.items() if k not in ("fee", "deliverIndex", "modelType", "trainingParams", "nonce")}
    task = api.parse_task({**old, "deliverTime": "0", "fee": ""}, PROVIDER)
    assert (task.fee, task.request_nonce, task.deliver_time, task.training_params) == (0, 0, None, "")
    assert api.parse_task({**TASK, "deliverTime": 1767225600.0}, PROVIDER).deliver_time is not None


@pytest.mark.parametrize(
    "change",
    [
        {"id": "x"},
        {"id": None},
        {"progress": None},
        {"createdAt": "yesterday"},
        {"updatedAt": 7},
        {"userAddress": "0x12"},
        {"fee": "1.5"},
        {"fee": -1},
        {"fee": True},
        {"nonce": "9" * 100},
        {"deliverTime": 10**20},
        {"datasetHash": 5},
    ],
)
def test_a_task_that_cannot_be_read_is_a_reply_error(change):
    with pytest.raises(ProviderReplyError) as caught:
        api.parse_task({**TASK, **change}, PROVIDER)
    assert caught.value.provider == PROVIDER


@pytest.mark.parametrize("body", [b"", b"[]", b"<html>", b'{"id":1,"id":2}', b"[" * 100, b'"' + b"a" * 300_000 + b'"'])
def test_bodies_that_are_no_task_are_reply_errors(body):
    with pytest.raises(ProviderReplyError):
        api.parse_task(body, PROVIDER)


def test_task_lists_keep_their_order_and_null_is_empty():
    other = {**TASK, "id": "a" * 32}
    tasks = api.parse_tasks(json.dumps([TASK, other]).encode(), PROVIDER)
    assert [t.id for t in tasks] == [ID, "aaaaaaaa-aaaa-aaaa-aaaa-aaaaaaaaaaaa"]
    assert api.parse_tasks(b"null", PROVIDER) == ()
    with pytest.raises(ProviderReplyError):
        api.parse_tasks(b"{}", PROVIDER)


def test_created_and_uploaded_are_read():
    assert api.parse_created(b'{"id":"%s"}' % ID.upper().encode(), PROVIDER) == ID
    digest = "0x" + "AB" * 32
    for key in ("datasetHash", "hash"):
        found = api.parse_uploaded({key: digest, "message": "ok\x1b[2J"}, PROVIDER, size=7)
        assert (found.dataset_hash, found.size) == (digest.lower(), 7)
        assert "\x1b" not in found.message
    for bad in ({}, {"hash": "0x12"}, {"datasetHash": "ab" * 32}):
        with pytest.raises(ProviderReplyError):
            api.parse_uploaded(bad, PROVIDER, size=1)


def test_models_are_read():
    row = {"name": "m", "hash": "0x1", "image": "i", "dataType": "image", "tokenizer": "t", "description": "d"}
    (model,) = api.parse_models(json.dumps([row]).encode(), PROVIDER)
    assert (model.name, model.data_type, model.provider) == ("m", "image", PROVIDER)
    assert api.parse_models(b"null", PROVIDER) == ()
    for bad in (b"{}", b"[{}]", b'[{"name":"m"}]'):
        with pytest.raises(ProviderReplyError):
            api.parse_models(bad, PROVIDER)


def test_queue_length_is_a_decimal_number():
    assert api.parse_pending(b"3\n", PROVIDER) == api.parse_pending(b"\x1d3", PROVIDER) == 3
    for bad in (b"", b"-1", b"3.5", b"\xff", "٣".encode(), b"9" * 50):
        with pytest.raises(ProviderReplyError):
            api.parse_pending(bad, PROVIDER)


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [
        (400, "create task: cannot create a new task while there is an unfinished task", errors.UnfinishedTaskError),
        (409, "create task: task queue is full", errors.QueueFullError),
        (409, "cannot create a new task while there are in-progress tasks", errors.QueueFullError),
        (400, "service TEE signer has not been acknowledged by 0G team", errors.SignerNotAcknowledgedError),
        (
            400,
            "Provider: create task: user has not acknowledged the provider's TEE signer",
            errors.SignerNotAcknowledgedError,
        ),
        (400, "user not acknowledge the provider", errors.SignerNotAcknowledgedError),
        (404, f"cancel task: task {ID} not found", errors.TaskNotFoundError),
        (404, "404 page not found", ProviderRejectedError),
        (403, "task does not belong to this user", ProviderRejectedError),
        (401, "Authentication failed: timestamp expired", ProviderRejectedError),
        (413, "", ProviderRejectedError),
        (501, "Not Implemented", ProviderRejectedError),
        (429, "Too many requests. Please try again later.", ProviderUnavailableError),
        (500, "Internal Server Error", ProviderUnavailableError),
        (503, "Service Unavailable", ProviderUnavailableError),
        (502, "<html>bad gateway</html>", ProviderUnavailableError),
        (408, "", ProviderUnavailableError),
    ],
)
def test_a_refusal_becomes_its_class(status, text, kind):
    for body in (json.dumps({"error": text}), text):
        error = api.rejected(status, body, provider=PROVIDER, endpoint="POST /x")
        assert type(error) is kind
        assert (error.provider, error.endpoint) == (PROVIDER, "POST /x")
        assert str(status) in str(error)
        if text:
            assert text in str(error)
        assert error.retryable == (kind in (ProviderUnavailableError, errors.QueueFullError))


def test_server_text_and_status_are_kept_for_classification():
    error = api.rejected(409, '{"error":"adapter X is already deployed"}')
    assert (error.status, error.body) == (409, "adapter X is already deployed")


def test_error_objects_with_a_message_are_read():
    error = api.rejected(429, '{"error":{"type":"rate_limit_error","message":"slow down"}}')
    assert error.body == "slow down"


def test_a_body_cannot_steer_a_terminal_or_flood_a_message():
    error = api.rejected(400, json.dumps({"error": "\x1b[2J‮" + "x" * 100_000}))
    assert "\x1b" not in str(error)
    assert "‮" not in str(error)
    assert len(str(error)) < 1000


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("5", 5.0),
        ("0.5", 0.5),
        (" 30 ", 30.0),
        ("0", None),
        ("-1", None),
        ("9999999", None),
        ("7200", None),
        ("Wed, 21 Oct 2026 07:28:00 GMT", None),
        ("nan", None),
        ("٣", None),
        ("", None),
    ],
)
def test_retry_after_is_read_and_noise_is_ignored(value, seconds):
    error = api.rejected(429, "", headers={"retry-AFTER": value})
    assert error.retry_after == seconds


# --- models and fees -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", FT["fee"], ids=ids(FT["fee"]))
def test_fee_is_the_providers(row):
    model = api.predefined(row["model"], "mainnet")
    assert (model.price_coefficient, model.storage_fee) == (row["price_coefficient"], int(row["storage_fee"]))
    fee = api.estimate_fee(row["token_count"], int(row["price_per_token"]), row["num_train_epochs"], model)
    assert fee == int(row["fee"])


def test_predefined_models_by_network():
    names = {
        n: [m.name for m in api.predefined_models(n)] for n in ("mainnet", "testnet", "testnet-dev", "local", "own")
    }
    assert names == {
        "mainnet": ["Qwen2.5-0.5B-Instruct", "Qwen3-32B"],
        "testnet": ["Qwen2.5-0.5B-Instruct"],
        "testnet-dev": ["Qwen2.5-0.5B-Instruct"],
        "local": ["Qwen2.5-0.5B-Instruct", "Qwen3-32B", "mock-model"],
        "own": ["Qwen2.5-0.5B-Instruct", "Qwen3-32B", "mock-model"],
    }


def test_models_are_found_by_any_case_prefix_and_hash():
    found = api.predefined("Qwen2.5-0.5B-Instruct", "testnet")
    assert found is not None
    for name in ("qwen/qwen2.5-0.5b-instruct", " Qwen/Qwen2.5-0.5B-Instruct ", found.hash):
        assert api.predefined(name, "testnet") == found
    assert api.predefined("Qwen3-32B", "testnet") is None


@pytest.mark.parametrize(("lock_time", "window"), [(3600, 1800), (43200, 21600), (604800, 21600), (0, 0)])
def test_acknowledgement_window_is_the_shortest_in_use(lock_time, window):
    assert api.ack_window(lock_time) == window
