"""The compiled contracts are those of the sources, and have the published interface and addresses."""

import functools
import json
import operator
from pathlib import Path

import pytest

from zg_async.devnet import accounts, build_contracts, deploy
from zg_async.networks import NETWORKS
from zg_async.wire.hashing import keccak256

ABI_DIR = Path(__file__).parent.parent / "vectors" / "abi"
CODE_LIMIT = 24_576
PUBLISHED = ("LedgerManager", "FineTuningServing", "InferenceServing", "FixedPriceFlow", "FixedPriceMarket")
SERVING = (
    "accountExists(address,address)",
    "getPendingRefund(address,address)",
    "addAccount(address,address,string)",
    "depositFund(address,address,uint256)",
    "requestRefundAll(address,address)",
    "processRefund(address,address)",
    "deleteAccount(address,address)",
)


def entries(abi: list[dict]) -> set[str]:
    """All but the constructor: ours takes the two minimums, the published builds have them compiled in."""
    return {json.dumps(entry, sort_keys=True) for entry in abi if entry["type"] != "constructor"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_abi_is_the_published_one_entry_by_entry(name):
    published = json.loads((ABI_DIR / f"{name}.json").read_text("utf-8"))
    assert entries(deploy.load_artifact(name)["abi"]) == entries(published)


@pytest.mark.parametrize("name", build_contracts.CONTRACTS)
def test_an_artifact_belongs_to_the_sources_and_settings_beside_it(name):
    artifact = deploy.load_artifact(name)
    assert artifact["sources"] == build_contracts.hash_sources(
        build_contracts.read_sources(build_contracts.CONTRACTS[name])
    )
    assert artifact["compiler"] == build_contracts.COMPILER
    assert artifact["settings"] == build_contracts.SETTINGS


@pytest.mark.parametrize("name", build_contracts.CONTRACTS)
def test_deployed_code_stays_below_the_size_limit(name):
    assert 0 < deploy.load_artifact(name)["deployedSize"] < CODE_LIMIT


def test_the_compiler_is_pinned_exactly_and_the_lock_names_no_host():
    package = json.loads((build_contracts.SOURCES_DIR / "package.json").read_text("utf-8"))
    lock = json.loads((build_contracts.SOURCES_DIR / "package-lock.json").read_text("utf-8"))
    assert package["devDependencies"] == {"solc": build_contracts.COMPILER}
    assert lock["packages"]["node_modules/solc"]["version"] == build_contracts.COMPILER
    assert not any("resolved" in entry for entry in lock["packages"].values())


@pytest.mark.slow
@pytest.mark.skipif(build_contracts.find_compiler() is None, reason="node or solc is not installed")
def test_compiling_again_gives_the_same_artifacts():
    for name, artifact in build_contracts.compile_artifacts().items():
        committed = (build_contracts.ARTIFACTS_DIR / f"{name}.json").read_text("utf-8")
        assert build_contracts.artifact_text(artifact) == committed


def test_the_serving_interface_has_the_published_id():
    selectors = [int.from_bytes(keccak256(signature.encode())[:4], "big") for signature in SERVING]
    assert functools.reduce(operator.xor, selectors) == 0x160841B1


def test_sixteen_transactions_lead_to_the_published_local_addresses():
    plan = deploy.plan_deployment()
    local = NETWORKS["local"]
    assert (plan.ledger, plan.inference, plan.fine_tuning) == (local.ledger, local.inference, local.fine_tuning)
    assert [t.nonce for t in plan.transactions] == list(range(16))
    assert [t.nonce for t in plan.transactions if t.to is None] == [0, 1, 2, 4, 5, 6, 10, 11, 12]
    assert {t.value for t in plan.transactions} == {0}
    assert plan.transactions[2].creates == plan.ledger


@pytest.mark.parametrize(
    "options", [{"lock_time": 3599}, {"lock_time": 604_801}, {"penalty_percentage": -1}, {"penalty_percentage": 101}]
)
def test_a_deployment_the_contracts_would_refuse_isnt_planned(options):
    with pytest.raises(ValueError, match="not"):
        deploy.plan_deployment(**options)


def test_only_small_nonces_are_turned_into_addresses():
    with pytest.raises(ValueError, match="127"):
        deploy.create_address("0x" + "11" * 20, 128)


def test_the_development_accounts_are_the_well_known_ones():
    assert accounts.owner().private_key.hex() == "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"
    known = {
        0: "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266",
        1: "0x70997970C51812dc3A010C7d01b50e0d17dc79C8",
        9: "0xa0Ee7A142d267C1f36714E4a8F75612F20a79720",
        100: "0x8C3229EC621644789d7F61FAa82c6d0E5F97d43D",
    }
    assert {index: accounts.dev_account(index).address for index in known} == known


def test_no_user_account_plays_another_role():
    ranges = (
        accounts.USER_INDEXES,
        accounts.FINE_TUNING_PROVIDERS,
        accounts.FINE_TUNING_SIGNERS,
        accounts.INFERENCE_PROVIDERS,
        accounts.INFERENCE_SIGNERS,
    )
    indexes = [accounts.OWNER_INDEX, *(index for numbers in ranges for index in numbers)]
    assert len(indexes) == len(set(indexes))
    assert [account.index for account in accounts.users()] == list(range(1, 10))
    roles = (
        accounts.fine_tuning_provider,
        accounts.fine_tuning_signer,
        accounts.inference_provider,
        accounts.inference_signer,
    )
    assert [role(1).index for role in roles] == [101, 201, 301, 401]
    with pytest.raises(IndexError):
        accounts.fine_tuning_provider(100)


def test_a_key_isnt_in_the_representation_of_an_account():
    assert accounts.owner().private_key.hex() not in repr(accounts.owner())


def test_an_account_index_is_small_and_positive():
    for index in (-1, 2**31):
        with pytest.raises(ValueError, match="no such account"):
            accounts.dev_account(index)
