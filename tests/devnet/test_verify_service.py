"""Verification against the devnet's own manufacturer, through the same code as Intel's."""

import json
from pathlib import Path

import pytest

from tests.devnet.conftest import DATASET, MODEL, PARAMS, open_broker
from zg_async import (
    AttestationError,
    ConfigError,
    JobFailedError,
    JobRunner,
    JobSpec,
    MemoryStore,
    ProviderUnavailableError,
    recheck_report,
)
from zg_async.managers.provider_client import ProviderClient
from zg_async.transport import tee


@pytest.fixture
async def strict(devnet, key, tmp_path):
    """A broker that deals with verified providers only."""
    async with open_broker(devnet, key, tmp_path / "state", network=devnet.network, require_verified=True) as opened:
        yield opened


@pytest.fixture
async def trusting(devnet, key, tmp_path):
    """A broker that knows the devnet's root."""
    async with open_broker(devnet, key, tmp_path / "state", network=devnet.network) as opened:
        yield opened


@pytest.fixture
def platform(devnet):
    """Let the manufacturer speak ill of its platform; all is well again afterwards."""
    good = devnet.control("tee")["tee"]
    yield lambda **changes: devnet.control("tee", **changes)
    devnet.control("tee", **good)


@pytest.mark.goal("VER-02", part="whole chain on the devnet")
async def test_both_services_of_a_provider_are_verified_and_written_down(trusting, devnet, provider, tmp_path):
    lines: list[str] = []
    folder = tmp_path / "audit-reports"
    result = await trusting.fine_tuning.verify_service(provider, folder, lines.append)
    assert result.verified
    assert lines[-1] == result.summary()
    assert {Path(f).name.split("_0x")[0] for f in result.files} == {
        "fine_tuning_attestation_report.json",
        "verification",
    }
    again = recheck_report(result.files[-1], root=bytes.fromhex(devnet.network.tee_root))
    assert (again.checks, again.verified) == (result.checks, True)
    assert not recheck_report(result.files[-1]).verified  # Intel's root
    other = await trusting.inference.verify_service(provider, folder)
    assert other.verified
    assert (folder / "attestation_report.json").is_file()
    assert json.loads(Path(other.files[-1]).read_text())["verified"] is True


async def test_the_record_without_the_devnets_root_refuses_its_quotes(broker, provider):
    result = await broker.fine_tuning.verify_service(provider, None)
    assert not result.verified
    assert result.files == ()


@pytest.mark.slow
@pytest.mark.goal("VER-04")
async def test_the_signer_in_the_report_is_the_chains_and_approved_at_every_step(
    trusting, broker, devnet, key, provider, task, faults, tmp_path
):
    """Verified, acknowledged, delivered and decrypted by brokers that don't ask for verified providers."""
    tuning = broker.fine_tuning
    await tuning.wait_task(provider, task)
    model = await tuning.download_model(provider, task, tmp_path)
    archive = tmp_path / "model.zip"
    acts = {
        "acknowledge the provider": lambda: tuning.acknowledge_provider_signer(provider),
        "acknowledge the delivery": lambda: tuning.acknowledge_deliverable(provider, task, verified=model),
    }
    decrypt = {"decrypt": lambda: tuning.decrypt_model(provider, task, model.path, archive)}

    async def refused(acts, words):
        for act in acts.values():
            with pytest.raises(AttestationError, match=words):
                await act()

    async def blocking():
        return {check.name for check in (await trusting.fine_tuning.verify_service(provider, None)).blocking}

    async def another_signer(acts):
        faults(foreign_quote=-1)
        assert await blocking() >= {"signer"}
        await refused(acts, "signer")
        devnet.control("clear_faults")
        devnet.control("revoke", provider=0)
        try:
            assert [c.name for c in (await trusting.fine_tuning.verify_service(provider, None)).blocking] == [
                "approved"
            ]
            await refused(acts, "has not approved")
        finally:
            devnet.control("approve", provider=0)

    await another_signer(acts)
    assert not (await tuning.get_deliverable(provider, task)).acknowledged
    for act in acts.values():
        await act()
    await tuning.wait_key(provider, task)
    async with open_broker(devnet, key, tmp_path / "later") as later:  # has seen no quote yet
        decrypt["decrypt"] = lambda: later.fine_tuning.decrypt_model(provider, task, model.path, archive)
        await another_signer(decrypt)
        assert not archive.exists()
        await decrypt["decrypt"]()
    assert archive.exists()


async def test_a_provider_that_is_away_keeps_nobody_from_acknowledging(broker, provider, task, tmp_path, monkeypatch):
    await broker.fine_tuning.wait_task(provider, task)
    model = await broker.fine_tuning.download_model(provider, task, tmp_path)

    async def away(_):
        raise ProviderUnavailableError("away")

    monkeypatch.setattr(ProviderClient, "get_quote", away)
    with pytest.raises(ProviderUnavailableError):
        await broker.fine_tuning.acknowledge_provider_signer(provider)
    assert (await broker.fine_tuning.acknowledge_deliverable(provider, task, verified=model)).receipt


async def test_what_was_verified_is_pinned_and_an_older_word_stops_until_the_user_decides(
    trusting, devnet, provider, platform
):
    assert (await trusting.fine_tuning.verify_service(provider, None)).check("pins").outcome == "not_run"
    assert (await trusting.fine_tuning.verify_service(provider, None)).check("pins").outcome == "pass"
    platform(evaluation=3)
    older = await trusting.fine_tuning.verify_service(provider, None)
    assert [c.name for c in older.blocking] == ["pins"]
    assert "older TCB evaluation data: 3 after 17" in older.summary()
    assert not (await trusting.fine_tuning.verify_service(provider, None)).verified
    assert (await trusting.fine_tuning.verify_service(provider, None, accept_changes=True)).verified
    assert (await trusting.fine_tuning.verify_service(provider, None)).verified


@pytest.mark.parametrize("change", [{"status": "OutOfDate"}, {"revoked": True}, {"age": 40 * 86_400}, {"down": True}])
async def test_what_the_manufacturer_says_counts(trusting, provider, platform, change):
    platform(**change)
    assert not (await trusting.fine_tuning.verify_service(provider, None)).verified


@pytest.mark.goal("VER-05")
async def test_nothing_is_paid_sent_or_acknowledged_to_a_provider_that_isnt_verified(
    strict, devnet, provider, platform, dataset
):
    await strict.ledger.add_ledger("3")
    before = await strict.chain.balance(strict.address)
    platform(status="OutOfDate")
    for kind in ("fine-tuning", "inference"):
        with pytest.raises(AttestationError, match="not verified: tcb_level"):
            await strict.ledger.transfer_fund(provider, kind, "1")
        with pytest.raises(AttestationError, match="OutOfDate"):
            await strict.ledger.ensure_funded(provider, kind, "1")
    with pytest.raises(AttestationError):
        await strict.fine_tuning.acknowledge_provider_signer(provider)
    with pytest.raises(AttestationError):
        await strict.inference.acknowledge_provider_signer(provider)
    with pytest.raises(AttestationError):
        await strict.fine_tuning.upload_dataset_to_tee(provider, dataset)
    with pytest.raises(AttestationError):
        await strict.fine_tuning.create_task(provider, MODEL, "0x" + "11" * 32, PARAMS)
    assert await strict.chain.balance(strict.address) == before
    platform(status="UpToDate")
    await strict.ledger.transfer_fund(provider, "fine-tuning", "1")
    assert (await strict.fine_tuning.upload_dataset_to_tee(provider, dataset)).size == len(DATASET)


async def test_a_job_for_verified_providers_pays_no_other(trusting, provider, platform, dataset, tmp_path):
    before = await trusting.chain.balance(trusting.address)
    platform(status="OutOfDate")
    spec = JobSpec(
        model=MODEL,
        dataset=dataset,
        training_params=PARAMS,
        output_dir=tmp_path / "out",
        provider=provider,
        require_verified=True,
    )
    async with JobRunner(trusting, store=MemoryStore()) as runner:
        with pytest.raises(JobFailedError, match="tcb_level"):
            await runner.run_job(spec)
    assert await trusting.chain.balance(trusting.address) == before


async def test_a_view_for_verified_providers_shares_the_wallet(trusting, provider, platform):
    platform(status="OutOfDate")
    view = trusting.verified_only()
    assert view is trusting.verified_only()
    assert view.verified_only() is view
    assert view.address == trusting.address
    with pytest.raises(AttestationError):
        await view.ledger.ensure_funded(provider, "fine-tuning", "1")
    await trusting.ledger.ensure_funded(provider, "fine-tuning", "1")


@pytest.mark.goal("VER-05", part="install line")
async def test_without_the_extra_the_policy_refuses_and_names_the_install_line(
    monkeypatch, trusting, devnet, key, provider, dataset, tmp_path
):
    monkeypatch.setattr(tee, "_library", lambda: None)
    for attempt in (
        lambda: open_broker(devnet, key, tmp_path, network=devnet.network, require_verified=True),
        lambda: trusting.verified_only().ledger.ensure_funded(provider, "fine-tuning", "1"),
    ):
        with pytest.raises(ConfigError) as info:
            await attempt()
        assert info.value.hint == "pip install 'zg-async[tee]'"
    spec = JobSpec(
        model=MODEL, dataset=dataset, training_params=PARAMS, output_dir=tmp_path / "out", require_verified=True
    )
    async with JobRunner(trusting, store=MemoryStore()) as runner:
        with pytest.raises(ConfigError, match="can't be checked here"):
            await runner.submit(spec)
    result = await trusting.fine_tuning.verify_service(provider, None)
    assert not result.verified
    assert "zg-async[tee]" in result.check("quote_signature").reason
