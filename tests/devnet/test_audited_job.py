"""What a whole job did with money and key stands in the audit log, to the neuron."""

import pytest

from tests.devnet.conftest import MODEL, PARAMS, new_key, open_broker
from zg_async import JobRunner, JobSpec, LocalSigner, read_audit
from zg_async.units import NEURON_PER_0G
from zg_async.wire.hashing import hex0x
from zg_async.wire.signing import personal_hash

pytestmark = pytest.mark.slow


@pytest.fixture
def made(monkeypatch):
    """Everything the key signs."""
    seen = {"digests": [], "hashes": [], "secrets": []}
    sign_personal, sign_transaction = LocalSigner.sign_personal, LocalSigner.sign_transaction

    async def personal(self, message):
        signature = await sign_personal(self, message)
        seen["digests"].append(hex0x(personal_hash(message)))
        seen["secrets"].append(signature)
        return signature

    async def sent(self, transaction):
        signed = await sign_transaction(self, transaction)
        seen["hashes"].append(signed.tx_hash)
        seen["secrets"] += [signed.raw, signed.raw[-64:-32], signed.raw[-32:]]
        return signed

    monkeypatch.setattr(LocalSigner, "sign_personal", personal)
    monkeypatch.setattr(LocalSigner, "sign_transaction", sent)
    return seen


@pytest.mark.goal("OBS-04")
async def test_each_payment_and_signature_of_a_job_is_logged_with_balances_and_nothing_that_was_signed(
    devnet, dataset, made, tmp_path
):
    start = 100 * NEURON_PER_0G
    async with open_broker(devnet, new_key(devnet, start), tmp_path / "state") as broker:
        spec = JobSpec(model=MODEL, dataset=dataset, training_params=PARAMS, output_dir=tmp_path / "out", deploy=True)
        async with JobRunner(broker) as runner:
            result = await runner.run_job(spec)
        await broker.ledger.deposit_fund("4")
        await broker.ledger.refund("0.5")
        left, path = await broker.chain.balance(broker.address), broker.audit_path
    trail = read_audit(path)
    assert trail.unreadable == 0
    mined = trail.transactions
    assert [t.tx_hash for t in mined] == made["hashes"]
    assert {t.tx_hash for t in mined} >= set(result.transactions)
    assert sum(t.gas_cost for t in mined if t.tx_hash in result.transactions) == result.gas
    assert {t.key.split("/")[0] for t in mined} == {result.job_id, "once"}
    balance = start
    for t in mined:  # the wallet's only transactions, each in a block of its own
        assert t.balance_before == balance
        received = NEURON_PER_0G // 2 if t.name.endswith(".refund") else 0
        assert t.balance_after == balance - t.paid + received
        balance = t.balance_after
    assert balance == left == start - trail.paid + NEURON_PER_0G // 2
    assert sorted(s.digest for s in trail.signatures) == sorted(made["digests"])
    assert {s.purpose for s in trail.signatures} >= {"dataset upload", "task", "download", "session token"}
    assert {s.provider for s in trail.signatures} == {result.provider}
    text = path.read_text().lower()
    assert len(made["secrets"]) > 10
    assert not [secret for secret in made["secrets"] if secret.hex() in text]
