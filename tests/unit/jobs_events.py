"""One of each event, for the tests of codec and stores."""

import datetime as dt

from zg_async.jobs import events as e
from zg_async.jobs.spec import JobSpec
from zg_async.wire.records import TaskProgress

AT = dt.datetime(2027, 1, 15, 8, 0, 0, 250_000, tzinfo=dt.UTC)
WALLET = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"
PROVIDER = "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266"
SPEC = JobSpec(
    model="Qwen2.5-0.5B-Instruct",
    dataset="/data/train.jsonl",
    training_params='{"learning_rate":0.0002}',
    output_dir="/out",
    deploy=True,
    budget=3 * 10**18,
    labels={"team": "ä"},
    key="run 1",
)
PAID = (e.Paid(tx_hash="0x" + "11" * 32, gas=2**60),)
ALL: tuple[e.Event, ...] = (
    e.JobSubmitted(spec=SPEC, wallet=WALLET),
    e.DatasetChecked(keccak256="0x" + "22" * 32, size=123, rows=4, row_format="instruction", warnings=("short",)),
    e.JobQueued(provider=PROVIDER, behind="job-0"),
    e.ProviderChosen(provider=PROVIDER, url="https://p.example", price_per_token=10**30, signer=WALLET),
    e.ProviderFunded(provider=PROVIDER, service_type="fine-tuning", amount=10**18, transactions=PAID),
    e.ProviderFunded(provider=PROVIDER, service_type="inference", amount=10**18),
    e.ProviderAcknowledged(),
    e.DatasetUploaded(root_hash="0x" + "22" * 32, size=None),
    e.TaskRequested(request_nonce=17_000_000_000_000_040),
    e.TaskCreated(task_id="1f6fef2b-e0f6-4d3c-9f31-0f2f4ed0a111"),
    e.TaskProgressed(progress=TaskProgress.TRAINING, fee=10**16, source="provider"),
    e.TaskWaiting(ahead=3),
    e.StageRetrying(stage="train", attempt=1, code="provider_unavailable", message="no answer", retry_at=AT),
    e.TaskAdopted(
        provider=PROVIDER,
        url="https://p.example",
        price_per_token=10**30,
        signer=WALLET,
        task_id="1f6fef2b-e0f6-4d3c-9f31-0f2f4ed0a111",
        dataset_hash="0x" + "22" * 32,
        request_nonce=None,
    ),
    e.TaskDelivered(root_hash="0x" + "33" * 32, ack_deadline=AT, cursor="{}", window=21_600, penalty_percentage=30),
    e.AckDeadlineNear(percent=50, ack_deadline=AT, cost="30 % of the fee and the decryption key"),
    e.DeliveryUnverified(reason="no copy"),
    e.DeliveryForfeited(reason="wrong copy"),
    e.JobWarned(code="gas_reserve", message="little gas", hint="Send some"),
    e.ModelDownloaded(path="/out/m", size=9, root_hash="0x" + "33" * 32, matched="keccak256", source="tee"),
    e.DeliverableAcknowledged(transactions=(e.Paid(tx_hash="0x" + "44" * 32, gas=5),)),
    e.ModelDecrypted(path="/out/adapter", files=("adapter_config.json",), fee=10**16),
    e.AdapterDeployed(adapter_name="ft-x", state="active"),
    e.RestAskedBack(),
    e.JobReconciled(),
    e.CancelRequested(),
    e.CancelRequested(limit="max_queue_seconds", reason="it waited"),
    e.CancelRefused(reason="training"),
    e.JobFailed(stage="deploy_adapter", code="adapter", message="no", hint=None),
    e.JobResumed(accept_changes=True),
    e.JobMoved(),
    e.JobArrived(dataset="/there/train.jsonl"),
    e.JobCancelled(reason="asked"),
    e.JobSucceeded(adapter_path="/out/adapter", adapter_name=None, fee=1, gas=2, transactions=("0x" + "11" * 32,)),
    e.CostEstimated(provider=PROVIDER, fee_low=1, fee_likely=10**16, fee_high=10**17, gas=10**15, method="bytes"),
    e.ProviderExcluded(provider=PROVIDER, stage="train", reason="failed"),
    e.UnknownEvent(kind="job_levitated", body={"height": "12", "by": {"whom": [1, None]}}),
)
