"""The contracts' ABI: own tables against the published JSON, calls, results within limits, logs."""

import datetime as dt
import json
import time
import tracemalloc

import pytest
from eth_abi import encode as oracle_encode

from tests.golden import HERE
from zg_async.errors import RpcError, WrongChainError
from zg_async.wire import contract_abi, contract_events, contracts
from zg_async.wire.contract_abi import AbiDataError
from zg_async.wire.contract_abi import contract_abi as abi_of
from zg_async.wire.contract_tables import TABLES
from zg_async.wire.contracts import (
    CONTRACTS,
    ERRORS,
    EVENTS,
    FINE_TUNING,
    FUNCTIONS,
    INFERENCE,
    LEDGER,
    TOPIC,
    FineTuningContract,
    FlowContract,
    InferenceContract,
    LedgerContract,
    MarketContract,
    decode_call,
    decode_log,
)
from zg_async.wire.hashing import keccak256
from zg_async.wire.records import Log, Quota, TxHash

USER = "0x670856BDb03d9cCf66AB545F8f52037bE1e4de47"
PROVIDER = "0xE73B10aa20E0F6FD761664208f084666676010F1"
AT = "0x8F6e29af374BF397d73C3b163FB3aBff97Cd4c1C"
ID = "6b607314-88b0-4fef-91e7-43227a54de57"
NOW = 1_767_225_600
PARTS = ("inputs", "outputs")
WHEN = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def published(name: str) -> list[dict]:
    return json.loads((HERE / "abi" / f"{name}.json").read_text())


def kind_of(item: dict) -> str:
    if not item["type"].startswith("tuple"):
        return item["type"]
    return "(" + ",".join(kind_of(c) for c in item["components"]) + ")" + item["type"][5:]


def shape(item: dict) -> tuple:
    return item["name"], kind_of(item), bool(item.get("indexed")), tuple(map(shape, item.get("components", ())))


def own_shape(param: contract_abi.Param) -> tuple:
    return param.name, param.type, param.indexed, tuple(map(own_shape, param.components))


@pytest.mark.goal("DOC-07", part="ABI")
@pytest.mark.parametrize("name", sorted(TABLES))
def test_tables_equal_the_published_abi_entry_by_entry(name):
    theirs = {
        (
            e["type"],
            e["name"],
            *(tuple(map(shape, e.get(k, ()))) for k in ("inputs", "outputs")),
            e.get("stateMutability"),
        )
        for e in published(name)
        if e["type"] in ("function", "event", "error")
    }
    abi = abi_of(name)
    ours = {
        ("function", f.name, tuple(map(own_shape, f.inputs)), tuple(map(own_shape, f.outputs)), f.mutability)
        for f in abi.functions
    }
    ours |= {("event", e.name, tuple(map(own_shape, e.inputs)), (), None) for e in abi.events}
    ours |= {("error", e.name, tuple(map(own_shape, e.inputs)), (), None) for e in abi.errors}
    assert ours == theirs


@pytest.mark.parametrize("name", sorted(TABLES))
def test_selectors_and_topics_are_hashes_of_the_published_signatures(name):
    for entry in published(name):
        if entry["type"] not in ("function", "event", "error"):
            continue
        signature = f"{entry['name']}({','.join(map(kind_of, entry['inputs']))})"
        digest = keccak256(signature.encode())
        match entry["type"]:
            case "function":
                assert FUNCTIONS[name][digest[:4]].signature == signature
            case "event":
                assert EVENTS[digest].signature == signature
            case _:
                assert ERRORS[digest[:4]].signature == signature


@pytest.mark.parametrize(
    ("call", "selector"),
    [
        (LedgerContract(AT).min_account_balance(), "ac30b622"),
        (LedgerContract(AT).add_ledger(value=1), "c5e53f7e"),
        (LedgerContract(AT).transfer_fund(PROVIDER, "fine-tuning-v1.0", 1), "2ba43b82"),
        (FineTuningContract(AT).acknowledge_deliverable(PROVIDER, ID), "a296bf4f"),
        (FineTuningContract(AT).settle_fees(ID, b"", b"", 1, b"", 0, USER), "3d60456a"),
        (InferenceContract(AT).settle_fees_with_tee([]), "8be74119"),
        (FlowContract(AT).submit(((1, b"", ((bytes(32), 0),)), USER), value=1), "bc8c11f8"),
        (FlowContract(AT).batch_submit([], value=1), "49aa3395"),
        (MarketContract(AT).price_per_sector(), "61ec5082"),
    ],
)
def test_selectors_of_the_specification(call, selector):
    assert call.data[:4].hex() == selector


@pytest.mark.parametrize("name", sorted(CONTRACTS))
def test_every_function_can_be_called_by_its_abi_name(name):
    contract = CONTRACTS[name](AT)
    for function in abi_of(name).functions:
        arguments = [sample(p) for p in function.inputs]
        call = contract.function(function.name, *arguments, value=7)
        assert call.data == function.selector + oracle_encode([p.type for p in function.inputs], arguments)
        assert (call.to, call.name, call.value) == (AT, f"{name}.{function.name}", 7)
        assert decode_call(call.data, name) == (function, tuple(frozen(a) for a in arguments))


def test_every_function_of_the_serving_contracts_has_a_method():
    for kind in (LedgerContract, FineTuningContract, InferenceContract):
        made = {c.name.split(".")[1] for c in all_calls(kind)}
        assert made == {f.name for f in abi_of(kind.name).functions}


def all_calls(kind: type) -> list[contracts.Call]:
    """Call every method with samples for its parameters."""
    import inspect

    calls = []
    for name, method in inspect.getmembers(kind(AT), inspect.ismethod):
        if name.startswith("_") or name == "function":
            continue
        arguments, named = [], {}
        for parameter in inspect.signature(method).parameters.values():
            value = SAMPLES.get(parameter.name) or SAMPLES[str(parameter.annotation)]
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                named[parameter.name] = value
            else:
                arguments.append(value)
        calls.append(method(*arguments, **named))
    return calls


SAMPLES = {
    "<class 'int'>": 1,
    "<class 'bool'>": True,
    "<class 'bytes'>": b"1234",
    "<class 'str'>": USER,
    "quota": (1, 2, 3, 4, "H100"),
    "models": ["m"],
    "users": [USER],
    "providers": [PROVIDER],
    "token_ids": [1, 2],
    "settlements": [(USER, PROVIDER, 1, bytes(32), 1, b"")],
}
SAMPLES["quota: "] = SAMPLES["quota"]


def sample(param: contract_abi.Param):
    if param.item is not None:
        return [sample(param.item), sample(param.item)]
    if param.components:
        return tuple(sample(c) for c in param.components)
    if param.type == "address":
        return USER
    if param.type == "bool":
        return True
    if param.type == "string":
        return f"text of {param.name} é"
    if param.type.startswith("bytes"):
        return b"\1" * int(param.type[5:] or 37)
    return 7


def frozen(value):
    return tuple(map(frozen, value)) if isinstance(value, list | tuple) else value


def outputs(name: str, function: str, *values) -> bytes:
    return oracle_encode([p.type for p in abi_of(name).function(function).outputs], values)


REFUNDS = [(0, 5, NOW, False), (1, 0, NOW, False), (2, 9, NOW, False), (3, 9, NOW, False)]
DELIVERABLES = [("a" * i, bytes([i]) * 32, b"", True, NOW + i, True) for i in range(1, 4)]


def test_fine_tuning_account_has_live_refunds_only_and_deliverables_in_order():
    row = (USER, PROVIDER, 40, 100, 14, REFUNDS, "info", DELIVERABLES, 3, 1, 3, True)
    account = FineTuningContract(AT).get_account(USER, PROVIDER).decode(outputs(FINE_TUNING, "getAccount", row))
    assert [(r.index, r.amount, r.created_at, r.unlocks_at) for r in account.refunds] == [
        (0, 5, WHEN, None),
        (2, 9, WHEN, None),
    ]
    assert [d.id for d in account.deliverables] == ["a", "aa", "aaa"]
    assert (account.user, account.provider, account.account_nonce, account.spendable) == (USER, PROVIDER, 40, 86)
    assert account.acknowledged is True


def test_inference_account_reads_generation_and_bitmap_from_their_places():
    row = (USER, PROVIDER, 40, 100, 5, REFUNDS[:1], "info", True, 1, 7, 1 << 200)
    account = InferenceContract(AT).get_account(USER, PROVIDER).decode(outputs(INFERENCE, "getAccount", row))
    assert (account.generation, account.revoked_bitmap, account.acknowledged) == (7, 1 << 200, True)
    assert len(account.refunds) == 1


def test_deliverable_keeps_raw_hash_and_secret():
    row = (ID, b"0x" + b"ab" * 32, b"\4" * 129, True, NOW, False)
    found = (
        FineTuningContract(AT).get_deliverable(USER, PROVIDER, ID).decode(outputs(FINE_TUNING, "getDeliverable", row))
    )
    assert (found.id, found.model_root_hash, len(found.encrypted_secret)) == (ID, b"0x" + b"ab" * 32, 129)
    assert (found.timestamp, found.acknowledged, found.settled) == (WHEN, True, False)


def test_services_become_records():
    quota = (8, 64, 1, 500, "H100")
    fine = (PROVIDER, "http://p", quota, 3, False, ["a", "b"], USER, True)
    service = FineTuningContract(AT).get_all_services().decode(outputs(FINE_TUNING, "getAllServices", [fine]))[0]
    assert service.quota == Quota(cpu_count=8, node_memory=64, gpu_count=1, node_storage=500, gpu_type="H100")
    assert (service.models, service.tee_signer_address) == (("a", "b"), USER)
    row = (PROVIDER, "chatbot", "http://p", 1, 2, NOW, "Qwen", "TeeML", "{}", USER, False)
    listed, total = InferenceContract(AT).get_all_services(0, 50).decode(outputs(INFERENCE, "getAllServices", [row], 9))
    assert (listed[0].updated_at, listed[0].output_price, total) == (WHEN, 2, 9)


def test_ledger_and_its_services_become_records():
    ledger = LedgerContract(AT).get_ledger(USER).decode(outputs(LEDGER, "getLedger", (USER, 3, 10, "x")))
    assert ledger.locked_balance == 7
    row = (AT, AT, "fine-tuning", "v1.0", "fine-tuning-v1.0", "d", True, NOW)
    info = LedgerContract(AT).get_service_info(AT).decode(outputs(LEDGER, "getServiceInfo", row))
    assert info.full_name == "fine-tuning-v1.0"
    versions = LedgerContract(AT).get_all_versions("x").decode(outputs(LEDGER, "getAllVersions", ["1"], [AT], [True]))
    assert versions == (("1", AT, True),)


def test_summaries_of_the_two_contracts():
    row = (USER, PROVIDER, 1, 2, 3, "", 4, 5, True)
    found, total = (
        FineTuningContract(AT)
        .get_accounts_by_user(USER, 0, 0)
        .decode(outputs(FINE_TUNING, "getAccountsByUser", [row] * 50, 51))
    )
    assert (len(found), total, found[0].refund_count, found[0].deliverable_count) == (50, 51, 4, 5)


def test_writes_decode_to_none_and_reads_of_nothing_mean_the_wrong_chain():
    assert LedgerContract(AT).refund(1).decode(b"") is None
    with pytest.raises(WrongChainError, match="getLedger gave no answer"):
        LedgerContract(AT).get_ledger(USER).decode(b"")


def test_a_wrong_argument_is_a_value_error():
    with pytest.raises(ValueError, match="0x12"):
        LedgerContract(AT).get_ledger("0x12")
    with pytest.raises(ValueError, match="-1"):
        LedgerContract(AT).refund(-1)
    with pytest.raises(ValueError, match="2 values expected"):
        FineTuningContract(AT).function("getAccount", USER)
    with pytest.raises(KeyError):
        LedgerContract(AT).function("nonsense")


def test_a_strangers_broken_text_does_not_spoil_a_list():
    fine = (PROVIDER, "http://é", (8, 64, 1, 500, "H100"), 3, False, [], USER, True)
    data = outputs(FINE_TUNING, "getAllServices", [fine]).replace("é".encode(), b"\xff\xfe")
    assert FineTuningContract(AT).get_all_services().decode(data)[0].url == "http://��"


# --- limits ----------------------------------------------------------------------------------------------------------


def word(number: int) -> bytes:
    return number.to_bytes(32, "big")


def aliased(count: int) -> bytes:
    """`getAllServices` whose offsets all point at the same service."""
    fine = (PROVIDER, "u" * 1000, (8, 64, 1, 500, "H100"), 3, False, ["m" * 500] * 20, USER, True)
    one = outputs(FINE_TUNING, "getAllServices", [fine])[32 + 32 + 32 :]
    return word(32) + word(count) + word(32 * count) * count + one


def test_offsets_that_alias_are_refused_quickly_and_without_memory():
    data = aliased(15_000)
    assert len(data) > 480_000
    call = FineTuningContract(AT).get_all_services()
    tracemalloc.start()
    started = time.process_time()
    with pytest.raises(RpcError, match="parts overlap"):
        call.decode(data)
    elapsed, peak = time.process_time() - started, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert elapsed < 1.0
    assert peak < 8 * len(data)


def test_what_comes_out_is_bounded_by_what_came_in():
    fine = (PROVIDER, "", (1, 1, 1, 1, ""), 3, False, [""] * 2000, USER, True)
    data = outputs(FINE_TUNING, "getAllServices", [fine] * 4)
    tracemalloc.start()
    found = FineTuningContract(AT).get_all_services().decode(data)
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(found) == 4
    assert size < 8 * len(data)


@pytest.mark.parametrize(
    ("decode", "data"),
    [
        (
            FineTuningContract(AT).get_deliverables(USER, PROVIDER).decode,
            outputs(FINE_TUNING, "getDeliverables", [DELIVERABLES[0]] * 21),
        ),
        (
            FineTuningContract(AT).get_account(USER, PROVIDER).decode,
            outputs(FINE_TUNING, "getAccount", (USER, PROVIDER, 0, 0, 0, REFUNDS + REFUNDS, "", [], 4, 0, 0, True)),
        ),
        (
            FineTuningContract(AT).get_account(USER, PROVIDER).decode,
            outputs(FINE_TUNING, "getAccount", (USER, PROVIDER, 0, 0, 0, [], "x" * 4097, [], 0, 0, 0, True)),
        ),
        (
            LedgerContract(AT).get_ledger_providers(USER, "x").decode,
            outputs(LEDGER, "getLedgerProviders", [PROVIDER] * 51),
        ),
        (
            FineTuningContract(AT).get_accounts_by_user(USER, 0, 10).decode,
            outputs(FINE_TUNING, "getAccountsByUser", [(USER, PROVIDER, 1, 2, 3, "", 4, 5, True)] * 11, 11),
        ),
        (LedgerContract(AT).get_ledger_providers(USER, "x").decode, word(32) + word(2**255)),
    ],
)
def test_counts_beyond_the_contracts_limits_are_refused(decode, data):
    with pytest.raises(RpcError, match="entries"):
        decode(data)


@pytest.mark.parametrize(
    "data",
    [
        word(2) + bytes(31),
        word(2**256 - 32),
        word(0),
        word(32) + word(1),
        word(32) + word(1) + word(2**200),
        word(32) + word(1) + word(0),
    ],
)
def test_cut_or_bent_results_are_refused(data):
    with pytest.raises(RpcError, match="can't be read"):
        FineTuningContract(AT).get_all_services().decode(data)


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        ("bool", 2),
        ("address", 2**160),
        ("uint8", 256),
        ("bytes4", 1),
        ("uint248", 2**248),
    ],
)
def test_values_outside_their_type_are_refused(kind, number):
    with pytest.raises(AbiDataError, match="not a"):
        contract_abi.decode([contract_abi.Param("x", kind)], word(number))


def test_times_beyond_the_calendar_are_refused():
    row = (ID, b"", b"", True, 2**60, False)
    with pytest.raises(RpcError, match="no time"):
        FineTuningContract(AT).get_deliverable(USER, PROVIDER, ID).decode(outputs(FINE_TUNING, "getDeliverable", row))


# --- calls and logs --------------------------------------------------------------------------------------------------


def test_calldata_of_strangers_is_refused():
    good = LedgerContract(AT).transfer_fund(PROVIDER, "n", 5).data
    assert decode_call(good, LEDGER)[1] == (PROVIDER, "n", 5)
    for bad in (b"", good[:4], good[:-1], good + b"\0", b"\0\0\0\0" + good[4:]):
        with pytest.raises(ValueError, match=r"function|cut off|canonical"):
            decode_call(bad, LEDGER)
    with pytest.raises(ValueError, match="no function"):
        decode_call(good, INFERENCE)


def log_of(event: contract_abi.EventAbi, values: list) -> Log:
    pairs = list(zip(event.inputs, values, strict=True))
    topics = [event.topic, *(oracle_encode([p.type], [v]) for p, v in pairs if p.indexed)]
    plain = [(p, v) for p, v in pairs if not p.indexed]
    return Log(
        address=AT,
        topics=tuple(topics),
        data=oracle_encode([p.type for p, _ in plain], [v for _, v in plain]),
        block_number=1,
        block_hash="0x" + "0" * 64,
        tx_hash=TxHash("0x" + "1" * 64),
        log_index=0,
    )


@pytest.mark.parametrize("event", list(EVENTS.values()), ids=lambda e: f"{e.contract}.{e.name}")
def test_every_event_decodes_into_its_class(event):
    values = [sample(p) for p in event.inputs]
    log = log_of(event, values)
    found = decode_log(log)
    assert found is not None
    assert found.log is log
    assert TOPIC[type(found).__name__] == event.topic
    assert getattr(contracts, type(found).__name__) is type(found)
    own = [getattr(found, f) for f in type(found).__dataclass_fields__ if f != "log"]
    for param, value, got in zip(event.inputs, values, own, strict=True):
        if isinstance(got, dt.datetime):
            assert got.timestamp() == value
        elif isinstance(got, Quota):
            assert got.gpu_type == value[4]
        else:
            assert got == frozen(value), param.name


def test_delivery_event_has_the_names_of_the_design():
    event = EVENTS[TOPIC["DeliverableAdded"]]
    found = decode_log(log_of(event, [USER, PROVIDER, ID, b"\1" * 32, NOW]))
    assert isinstance(found, contracts.DeliverableAdded)
    assert (found.user, found.provider, found.id, found.timestamp) == (USER, PROVIDER, ID, WHEN)
    assert found.model_root_hash == b"\1" * 32


def test_an_event_with_an_unusual_order_of_parties_is_not_swapped():
    found = decode_log(log_of(EVENTS[TOPIC["DeliverableEvicted"]], [PROVIDER, USER, "old", "new", NOW]))
    assert (found.user, found.provider, found.id, found.new_id) == (USER, PROVIDER, "old", "new")


def test_the_two_service_updates_are_two_classes():
    assert TOPIC["ServiceUpdated"] != TOPIC["InferenceServiceUpdated"]
    assert contract_events.CLASSES[TOPIC["InferenceServiceUpdated"]] is contracts.InferenceServiceUpdated


def test_unknown_topics_are_none_and_bent_logs_are_errors():
    good = log_of(EVENTS[TOPIC["FeesSettled"]], [USER, PROVIDER, ID, 1, True, 2])
    fields = {name: getattr(good, name) for name in Log.__dataclass_fields__}
    assert decode_log(Log(**{**fields, "topics": ()})) is None
    assert decode_log(Log(**{**fields, "topics": (b"\1" * 32,)})) is None
    for change in ({"topics": good.topics[:2]}, {"data": good.data[:-1]}, {"topics": (*good.topics, bytes(32))}):
        with pytest.raises(RpcError, match="FeesSettled log"):
            decode_log(Log(**{**fields, **change}))
