"""Fine-tuning with one wallet against a provider that speaks the real protocol."""

import json
import zipfile
from pathlib import Path

import anyio
import pytest

from tests.devnet.conftest import DATASET, MODEL, PARAMS, new_key, open_broker
from zg_async import (
    AccountNotFoundError,
    AttestationError,
    CancelResult,
    ConfigError,
    ContractRevertedError,
    DatasetError,
    DeliverableNotFoundError,
    HashMismatchError,
    KeyNotReleasedError,
    LostKeyError,
    PreviousDeliverableNotAcknowledgedError,
    ProviderRejectedError,
    ProviderUnavailableError,
    QueueFullError,
    ServiceNotFoundError,
    SignatureMismatchError,
    SignerNotAcknowledgedError,
    TaskFailedError,
    TaskNotFoundError,
    TaskProgress,
    TrainingParamsError,
    UnfinishedTaskError,
    WrongChainError,
    create_broker,
)
from zg_async.wire.hashing import keccak256
from zg_async.wire.provider_api import ack_window

pytestmark = pytest.mark.slow
NOBODY = "0x000000000000000000000000000000000000dEaD"


async def delivered(broker, provider, task):
    return await broker.fine_tuning.wait_task(provider, task, TaskProgress.DELIVERED)


# ---- discovery and configuration


@pytest.mark.goal("DIS-01")
async def test_services_are_listed_typed_and_without_a_key(devnet, tmp_path):
    async with open_broker(devnet, None, tmp_path) as reader:
        services = await reader.fine_tuning.list_service()
        assert {s.provider for s in services} >= {p["address"] for p in devnet.providers}
        service = next(s for s in services if s.provider == devnet.providers[0]["address"])
        assert service.url == devnet.providers[0]["url"]
        assert service.quota.gpu_count >= 0
        assert service.quota.memory == service.quota.node_memory
        assert service.price_per_token > 0
        assert service.tee_signer_acknowledged
        with pytest.raises(ConfigError, match="read-only"):
            await reader.ledger.get_ledger()


@pytest.mark.goal("DIS-03")
async def test_the_catalogue_joins_predefined_and_own_models_and_names_who_is_away(devnet, broker, provider):
    hash_ = "0x" + "ab" * 32
    devnet.control("settings", provider=0, models=[{"name": "house-model", "hash": hash_}])
    devnet.control("settings", provider=1, models=[{"name": "other-model", "hash": "0x" + "cd" * 32}])
    devnet.control("stop", provider=1)
    try:
        catalogue = await broker.fine_tuning.list_model()
        assert MODEL in {m.name for m in catalogue.predefined}
        assert [(m.name, m.provider) for m in catalogue.customised] == [("house-model", provider)]
        assert catalogue.unreachable == (devnet.providers[1]["address"],)
        for name in (MODEL, f"Qwen/{MODEL}", MODEL.upper()):
            assert (await broker.fine_tuning.resolve_model(provider, name)).name == MODEL
        assert (await broker.fine_tuning.resolve_model(provider, "house-model")).hash == hash_
        with pytest.raises(ConfigError, match="unknown model"):
            await broker.fine_tuning.resolve_model(provider, "no-such-model")
    finally:
        devnet.control("start", provider=1)
        for number in (0, 1):
            devnet.control("settings", provider=number, models=[])


@pytest.mark.goal("DIS-09")
async def test_a_models_usage_document_is_streamed_and_appears_whole(devnet, broker, provider, tmp_path):
    devnet.control("settings", provider=0, models=[{"name": "house-model", "hash": "0x" + "ab" * 32}])
    try:
        path = await broker.fine_tuning.model_usage(provider, "house-model", tmp_path)
        assert path == tmp_path / "house-model.zip"
        assert zipfile.is_zipfile(path)
        with pytest.raises(ProviderRejectedError):
            await broker.fine_tuning.model_usage(provider, MODEL, tmp_path / "none")
        assert not (tmp_path / "none").exists()
    finally:
        devnet.control("settings", provider=0, models=[])


@pytest.mark.goal("DIS-06")
@pytest.mark.parametrize(
    ("contracts", "text"),
    [
        ({"ledger": NOBODY}, "no contract on chain 31337 at: ledger 0x"),
        ({"fine_tuning": NOBODY, "inference": NOBODY}, "inference 0x.*, fine_tuning 0x"),
        ({"fine_tuning": "0x9fE46736679d2D9a65F0992F2272dE9f3c7fa6e0"}, "not registered with the ledger"),
        ({"ledger": "0x0165878A594ca255338adfa4d48449f69242Eb8F"}, "doesn't answer getServiceInfo"),
    ],
)
async def test_wrong_addresses_are_one_clear_error_at_the_start(devnet, tmp_path, contracts, text):
    with pytest.raises(WrongChainError, match=text):
        async with open_broker(devnet, None, tmp_path, contracts=contracts):
            pass


@pytest.mark.goal("CFG-02")
async def test_an_unknown_network_or_chain_is_an_error_and_every_address_can_be_given(devnet, tmp_path):
    with pytest.raises(ConfigError, match="unknown network"):
        create_broker(network="galileo")
    with pytest.raises(ConfigError, match="no network was named"):
        create_broker()
    with pytest.raises(WrongChainError, match="is on chain 31337, testnet is 16602"):
        async with create_broker(network="testnet", rpc_url=devnet.rpc_url, state_dir=tmp_path):
            pass
    names = {name: devnet.info[name] for name in ("ledger", "inference", "fine_tuning")}
    async with open_broker(devnet, None, tmp_path, contracts=names) as reader:
        assert await reader.fine_tuning.list_service()


@pytest.mark.goal("SCL-06")
async def test_two_brokers_with_other_keys_share_no_state(devnet, provider, tmp_path):
    keys = [new_key(devnet), new_key(devnet)]
    async with open_broker(devnet, keys[0], tmp_path / "a") as one, open_broker(devnet, keys[1], tmp_path / "b") as two:
        assert one.address != two.address
        assert (one.http is two.http, one.chain is two.chain, one.fine_tuning._hub is two.fine_tuning._hub) == (
            False,
        ) * 3
        await one.ledger.ensure_funded(provider, "inference", "1")
        token = await one.inference.session_token(provider)
        assert token.raw_token != (await two.inference.session_token(provider)).raw_token
        with pytest.raises(AccountNotFoundError):
            await two.inference.get_account(provider)
    with pytest.raises(WrongChainError):  # the other network of the same process is judged by its own record
        async with create_broker(keys[0], "mainnet", rpc_url=devnet.rpc_url, state_dir=tmp_path / "c"):
            pass


async def test_wallets_of_one_broker_share_the_network_and_nothing_else(devnet, provider, tmp_path):
    keys = [new_key(devnet), new_key(devnet)]
    async with open_broker(devnet, None, tmp_path, private_keys=keys) as first:
        second = first.using(first.wallets[1])
        assert (second.chain is first.chain, second.http is first.http) == (True, True)
        await second.ledger.ensure_funded(provider, "fine-tuning", "1")
        assert (await second.fine_tuning.get_account(provider)).user == first.wallets[1]
        with pytest.raises(AccountNotFoundError):
            await first.fine_tuning.get_account(provider)


# ---- signer


async def test_the_signer_is_acknowledged_by_the_transfer_and_the_quote_is_checked(broker, provider):
    with pytest.raises(AccountNotFoundError, match="transfer_fund"):
        await broker.fine_tuning.acknowledge_provider_signer(provider)
    await broker.ledger.ensure_funded(provider, "fine-tuning", "1")
    assert await broker.fine_tuning.acknowledge_provider_signer(provider) is None
    report = await broker.fine_tuning.check_provider_quote(provider)
    assert report.passed


async def test_a_taken_back_acknowledgement_is_made_again(broker, provider):
    await broker.ledger.ensure_funded(provider, "fine-tuning", "1")
    with pytest.raises(ContractRevertedError) as caught:
        await broker.fine_tuning.unacknowledge_provider_signer(provider)
    assert caught.value.error_name == "CannotRevokeWithNonZeroBalance"
    with pytest.raises(ContractRevertedError, match="Only the contract"):
        await broker.fine_tuning.revoke_tee_signer_acknowledgement(provider)


async def test_a_signer_the_owner_has_not_approved_is_refused(devnet, broker, provider):
    await broker.ledger.ensure_funded(provider, "fine-tuning", "1")
    devnet.control("revoke", provider=0)
    try:
        assert provider not in {s.provider for s in await broker.fine_tuning.list_service()}
        assert provider in {s.provider for s in await broker.fine_tuning.list_service(include_unacknowledged=True)}
        with pytest.raises(AttestationError, match="has not approved"):
            await broker.fine_tuning.acknowledge_provider_signer(provider)
    finally:
        devnet.control("approve", provider=0)


# ---- dataset


@pytest.mark.goal("DAT-05", part="hash compared")
async def test_an_upload_is_hashed_on_both_sides(broker, provider, dataset, faults):
    uploaded = await broker.fine_tuning.upload_dataset_to_tee(provider, dataset)
    assert uploaded.dataset_hash == "0x" + keccak256(DATASET.encode()).hex()
    assert uploaded.size == len(DATASET)
    faults(wrong_dataset_hash=1)
    with pytest.raises(HashMismatchError):
        await broker.fine_tuning.upload_dataset_to_tee(provider, dataset)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n\n",
        b"\xef\xbb\xbf{}\n",
        b"[1]\n",
        b"{\n",
        b'{"instruction":"\xff"}\n',
        b'{"prompt":"a","completion":"b"}\n',
    ],
)
async def test_a_dataset_the_provider_would_refuse_or_spoil_is_never_sent(broker, provider, tmp_path, content):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    with pytest.raises(DatasetError) as caught:
        await broker.fine_tuning.upload_dataset_to_tee(provider, path)
    assert caught.value.hint


@pytest.mark.goal("DAT-02")
async def test_what_the_provider_would_drop_is_named_by_row_before_any_upload(broker, tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {"messages": [{"role": r, "content": r} for r in ("system", "user", "assistant")]},
        {"messages": [{"role": r, "content": str(n)} for n, r in enumerate(["user", "assistant"] * 2)]},
    ]  # fmt: skip
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    warnings = (await broker.fine_tuning.check_dataset(path)).warnings
    assert {2, 3} <= {w.row for w in warnings}
    path.write_text('{"text": "one"}\n{"text": "two"}\n')
    report = await broker.fine_tuning.check_dataset(path)
    assert {w.row for w in (*report.warnings, *report.errors)} >= {1}


# ---- tasks


@pytest.mark.goal("TSK-02", part="without the estimate")
async def test_the_preflight_reports_everything_at_once_and_the_policies_hold(
    devnet, broker, provider, dataset, tmp_path
):
    report = await broker.fine_tuning.check_task(provider, PARAMS | {"learning_rate": 1})
    assert [type(p) for p in report.problems] == [TrainingParamsError, AccountNotFoundError]
    with pytest.raises(AccountNotFoundError):
        await broker.fine_tuning.create_task(provider, MODEL, "0x" + "11" * 32, PARAMS)
    await broker.ledger.ensure_funded(provider, "fine-tuning", "1")
    assert (await broker.fine_tuning.check_task(provider, PARAMS)).problems == ()
    devnet.control("settings", provider=0, train_seconds=5.0)
    try:
        hash_ = (await broker.fine_tuning.upload_dataset_to_tee(provider, dataset)).dataset_hash
        async with open_broker(devnet, new_key(devnet), tmp_path / "other") as other:
            await other.ledger.ensure_funded(provider, "fine-tuning", "1")
            await other.fine_tuning.upload_dataset_to_tee(provider, dataset)
            ahead = await other.fine_tuning.create_task(provider, MODEL, hash_, PARAMS)
            with pytest.raises(QueueFullError, match=f"ahead at {provider}: 1 unfinished"):
                await broker.fine_tuning.create_task(provider, MODEL, hash_, PARAMS, policy="fail")
            queued = await broker.fine_tuning.create_task(provider, MODEL, hash_, PARAMS, policy="queue")
            assert not (await broker.fine_tuning.get_task(provider, queued)).is_terminal
            assert (await broker.fine_tuning.cancel_task(provider, queued)).result is CancelResult.CANCELLED
            devnet.control("settings", provider=0, train_seconds=0.5)
            late = await broker.fine_tuning.create_task(provider, MODEL, hash_, PARAMS, policy="wait_for_free")
            assert (await other.fine_tuning.get_task(provider, ahead)).progress not in (
                TaskProgress.INIT,
                TaskProgress.TRAINING,
            )
            await delivered(broker, provider, late)
    finally:
        devnet.control("settings", provider=0, train_seconds=0.0)


@pytest.mark.goal("TSK-08")
async def test_an_unfinished_task_is_named_with_its_next_step(broker, provider, task):
    with pytest.raises(UnfinishedTaskError) as caught:
        await broker.fine_tuning.create_task(provider, MODEL, "0x" + "11" * 32, PARAMS)
    assert caught.value.task_id == task
    assert caught.value.hint
    await delivered(broker, provider, task)
    with pytest.raises((UnfinishedTaskError, PreviousDeliverableNotAcknowledgedError), match="acknowledge_model"):
        await broker.fine_tuning.create_task(provider, MODEL, "0x" + "11" * 32, PARAMS)


@pytest.mark.goal("TSK-03")
async def test_tasks_are_read_newest_by_id_and_across_providers(devnet, broker, provider, task):
    assert (await broker.fine_tuning.get_task(provider)).id == task
    assert (await broker.fine_tuning.get_task(provider, task)).id == task
    assert [t.id for t in await broker.fine_tuning.list_task(provider)] == [task]
    devnet.control("stop", provider=1)
    try:
        everywhere = await broker.fine_tuning.list_all_tasks()
        assert [t.id for t in everywhere[provider]] == [task]
        assert isinstance(everywhere[devnet.providers[1]["address"]], ProviderUnavailableError)
    finally:
        devnet.control("start", provider=1)
    with pytest.raises(TaskNotFoundError):
        await broker.fine_tuning.get_task(provider, "00000000-0000-4000-8000-000000000000")
    with pytest.raises(ServiceNotFoundError):
        await broker.fine_tuning.get_task(NOBODY)


@pytest.mark.goal("TSK-04")
async def test_a_cancellation_has_four_outcomes_each_read_back(devnet, broker, provider, dataset, tmp_path):
    devnet.control("settings", provider=0, train_seconds=3.0)
    try:
        await broker.ledger.ensure_funded(provider, "fine-tuning", "1")
        hash_ = (await broker.fine_tuning.upload_dataset_to_tee(provider, dataset)).dataset_hash
        first = await broker.fine_tuning.create_task(provider, MODEL, hash_, PARAMS)
        outcome = await broker.fine_tuning.cancel_task(provider, first)
        assert (outcome.result, outcome.task.progress) == (CancelResult.CANCELLED, TaskProgress.FAILED)
        second = await broker.fine_tuning.create_task(provider, MODEL, hash_, PARAMS)
        await broker.fine_tuning.wait_task(provider, second, TaskProgress.TRAINING)
        outcome = await broker.fine_tuning.cancel_task(provider, second)
        assert outcome.result is CancelResult.TOO_LATE
        assert outcome.task.progress in (TaskProgress.TRAINING, TaskProgress.TRAINED)
        unknown = await broker.fine_tuning.cancel_task(provider, "00000000-0000-4000-8000-000000000000")
        assert unknown.result is CancelResult.UNKNOWN_TASK
        async with open_broker(devnet, new_key(devnet), tmp_path / "other") as other:
            assert (await other.fine_tuning.cancel_task(provider, second)).result is CancelResult.NOT_YOURS
    finally:
        devnet.control("settings", provider=0, train_seconds=0.0)


@pytest.mark.goal("TSK-06")
async def test_a_log_is_fetched_whole_by_its_end_and_saved(broker, provider, task, tmp_path):
    await delivered(broker, provider, task)
    text = await broker.fine_tuning.get_log(provider, task, save_to=tmp_path / "log.txt")
    assert "Training completed successfully!" in text
    assert (tmp_path / "log.txt").read_text() == text
    assert await broker.fine_tuning.get_log(provider, tail=2) == "".join(text.splitlines(keepends=True)[-2:])


async def test_a_failed_setup_tells_the_reason_from_the_log(broker, provider, dataset):
    await broker.ledger.ensure_funded(provider, "fine-tuning", "1")
    task = await broker.fine_tuning.create_task(provider, MODEL, "0x" + "77" * 32, PARAMS)
    with pytest.raises(TaskFailedError) as caught:
        await delivered(broker, provider, task)
    assert caught.value.log
    assert caught.value.task_id == task


async def test_an_ambiguous_create_finds_its_task_by_the_nonce(broker, provider, dataset, faults):
    await broker.ledger.ensure_funded(provider, "fine-tuning", "1")
    hash_ = (await broker.fine_tuning.upload_dataset_to_tee(provider, dataset)).dataset_hash
    faults(lose_answer=1, path="/task")
    task = await broker.fine_tuning.create_task(provider, MODEL, hash_, PARAMS)
    assert [t.id for t in await broker.fine_tuning.list_task(provider)] == [task]


async def test_parameters_with_an_exponent_are_written_out_or_refused(broker, provider):
    with pytest.raises(TrainingParamsError) as caught:
        await broker.fine_tuning.create_task(
            provider, MODEL, "0x" + "11" * 32, json.dumps(PARAMS | {"learning_rate": 1e-05})
        )
    assert caught.value.parameter == "learning_rate"


# ---- delivery


@pytest.mark.goal("DEL-05")
@pytest.mark.goal("TSK-01", part="ack deadline")
async def test_one_call_brings_a_delivery_to_its_end_and_goes_on_where_it_was(broker, provider, task, tmp_path):
    change = await delivered(broker, provider, task)
    window = ack_window(await broker.fine_tuning.get_locked_time())
    told = (await broker.fine_tuning.get_task(provider, task)).deliver_time  # by the provider's clock, in whole seconds
    assert abs((change.ack_deadline - told).total_seconds() - window) <= 2
    model = await broker.fine_tuning.deliver(provider, task, tmp_path / "out")
    assert model.acknowledgement.verified
    assert set(model.files) >= {"adapter_config.json", "adapter_model.safetensors"}
    again = await broker.fine_tuning.deliver(provider, task, tmp_path / "out")
    assert (again.acknowledgement.receipt, again.files) == (None, model.files)
    assert (await broker.fine_tuning.get_account(provider)).deliverables[-1].settled


@pytest.mark.goal("DEL-02")
async def test_a_tampered_download_is_never_acknowledged(broker, provider, task, tmp_path, faults):
    await delivered(broker, provider, task)
    faults(wrong_hash=-1)
    sent = await broker.chain.transaction_count(broker.address)
    with pytest.raises(HashMismatchError):
        await broker.fine_tuning.acknowledge_model(provider, task, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    assert await broker.chain.transaction_count(broker.address) == sent
    faults(wrong_hash=0)
    good = await broker.fine_tuning.download_lora_from_tee(provider, task, tmp_path / "model")
    damaged = bytearray(Path(good.path).read_bytes())
    damaged[100] ^= 1
    Path(good.path).write_bytes(damaged)
    with pytest.raises(HashMismatchError):
        await broker.fine_tuning.acknowledge_deliverable(provider, task, verified=good)
    assert await broker.chain.transaction_count(broker.address) == sent


async def test_a_delivery_on_chain_is_waited_for_when_its_provider_still_calls_it_delivering(
    devnet, broker, provider, task, tmp_path
):
    devnet.control("settings", provider=0, delivered_lag=3)
    try:
        while True:
            try:
                await broker.fine_tuning.get_deliverable(provider, task)
                break
            except DeliverableNotFoundError:
                await anyio.sleep(0.1)
        seen = await broker.fine_tuning.get_task(provider, task)
        model = await broker.fine_tuning.download_lora_from_tee(provider, task, tmp_path / "model")
    finally:
        devnet.control("settings", provider=0, delivered_lag=0)
    assert seen.progress is TaskProgress.DELIVERING
    assert Path(model.path).is_file()


async def test_a_delivery_whose_provider_lost_the_task_says_so_at_once(devnet, broker, provider, task, tmp_path):
    await delivered(broker, provider, task)
    devnet.control("restart", provider=0)
    with pytest.raises(ProviderRejectedError, match="not ready for download") as caught:
        await broker.fine_tuning.download_lora_from_tee(provider, task, tmp_path / "model")
    assert "lost the task" in caught.value.hint


@pytest.mark.goal("DEL-07")
async def test_release_without_a_copy_needs_the_flag_and_says_so(broker, provider, task, caplog):
    await delivered(broker, provider, task)
    with pytest.raises(ConfigError, match=task):
        await broker.fine_tuning.acknowledge_deliverable(provider, task)
    done = await broker.fine_tuning.acknowledge_deliverable(provider, task, unverified=True)
    assert (done.verified, done.pending) == (False, (task,))
    assert "without a checked copy" in caplog.text
    assert (await broker.fine_tuning.wait_key(provider, task)).settled


@pytest.mark.goal("DEL-10")
async def test_a_missed_window_is_named_with_its_cost_and_the_way_out(devnet, broker, provider, task, tmp_path):
    await delivered(broker, provider, task)
    with pytest.raises(KeyNotReleasedError):
        await broker.fine_tuning.wait_key(provider, task)
    devnet.control("faults", provider=0, lock_time_unreadable=-1)
    try:
        await broker.fine_tuning.wait_task(provider, task, TaskProgress.FINISHED)
    finally:
        devnet.control("clear_faults")
    with pytest.raises(LostKeyError, match=r"penalty.*no key will come") as caught:
        await broker.fine_tuning.wait_key(provider, task)
    assert "refund the ledger to zero" in caught.value.hint
    model = await broker.fine_tuning.download_lora_from_tee(provider, task, tmp_path / "model")
    with pytest.raises(LostKeyError):
        await broker.fine_tuning.acknowledge_deliverable(provider, task, verified=model)
    with pytest.raises(LostKeyError):
        await broker.fine_tuning.decrypt_model(provider, task, model.path, tmp_path / "zip")
    with pytest.raises(PreviousDeliverableNotAcknowledgedError, match="settled without"):
        await broker.fine_tuning.create_task(provider, MODEL, "0x" + "11" * 32, PARAMS)


async def test_a_file_not_signed_by_the_tee_signer_stays_closed(broker, provider, dataset, tmp_path, faults):
    faults(bad_signature=-1)
    await broker.ledger.ensure_funded(provider, "fine-tuning", "1")
    uploaded = await broker.fine_tuning.upload_dataset_to_tee(provider, dataset)
    task = await broker.fine_tuning.create_task(provider, MODEL, uploaded.dataset_hash, PARAMS)
    await delivered(broker, provider, task)
    with pytest.raises(SignatureMismatchError):
        await broker.fine_tuning.deliver(provider, task, tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["model.encrypted"]


async def test_nothing_delivered_is_a_class_of_its_own(broker, provider, task, tmp_path):
    with pytest.raises((DeliverableNotFoundError, AccountNotFoundError)):
        await broker.fine_tuning.download_lora_from_tee(
            provider, "00000000-0000-4000-8000-000000000000", tmp_path / "x"
        )
    assert list(tmp_path.glob("x*")) == []


async def test_a_task_without_an_acknowledged_signer_is_refused_before_it_is_posted(devnet, provider, tmp_path):
    async with open_broker(devnet, new_key(devnet), tmp_path) as broker:
        await broker.ledger.ensure_funded(provider, "fine-tuning", "1")
        await broker.ledger.retrieve_fund("fine-tuning")
        devnet.control("increase_time", seconds=86_500)
        await broker.ledger.retrieve_fund("fine-tuning")
        await broker.fine_tuning.unacknowledge_provider_signer(provider)
        with pytest.raises(SignerNotAcknowledgedError, match="acknowledge_provider_signer"):
            await broker.fine_tuning.create_task(provider, MODEL, "0x" + "11" * 32, PARAMS)
        receipt = await broker.fine_tuning.acknowledge_provider_signer(provider)
        assert receipt.status == 1
