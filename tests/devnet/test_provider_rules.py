import base64
import json

import pytest

from tests.devnet.provider_kit import PARAMS, QWEN, vectors
from zg_async.devnet.provider_rules import (
    FORBIDDEN,
    Refused,
    check_lines,
    check_params,
    convert_rows,
    count_tokens,
    find_model,
    fold_address,
    task_fee,
)
from zg_async.devnet.provider_rules import (
    PARAMS as NAMES,
)
from zg_async.devnet.provider_settings import CustomModel, Faults, Settings, update
from zg_async.devnet.storage_network import hash_path
from zg_async.errors import ConfigError

_V = vectors()
_TEXTS = {
    "scientific": "must use decimal notation",
    "type": "must be a number",
    "invalid-json": "invalid training params",
}


@pytest.mark.parametrize("row", _V["training_params"], ids=lambda row: row["id"])
def test_params_are_judged_as_the_broker_does(row):
    if row["broker_accepts"]:
        check_params(row["training_params"])
        return
    with pytest.raises(Refused) as refused:
        check_params(row["training_params"])
    kind, _, name = row["reason"].partition(":")
    assert refused.value.status == 400
    if kind in ("forbidden", "unexpected", "missing"):
        word = "required" if kind == "missing" else ""
        assert f"{kind} {word}".strip() in refused.value.text
        if kind != "forbidden":
            assert f"parameter '{name}'" in refused.value.text
    else:
        assert _TEXTS.get(kind, name) in refused.value.text
        assert name in refused.value.text


@pytest.mark.parametrize("name", FORBIDDEN)
def test_forbidden_names_are_told_before_missing_ones(name):
    with pytest.raises(Refused, match=f"forbidden parameter '{name}'"):
        check_params(json.dumps({name: 1}))


@pytest.mark.parametrize("name", NAMES)
def test_values_are_checked_from_top_to_bottom(name):
    bad = dict.fromkeys(NAMES[NAMES.index(name) :], None)
    with pytest.raises(Refused, match=name):
        check_params(json.dumps(json.loads(PARAMS) | bad))


@pytest.mark.parametrize("row", [r for r in _V["dataset_hash"] if "content_base64" in r], ids=lambda row: row["id"])
def test_lines_are_judged_as_the_broker_does(row):
    lines = base64.b64decode(row["content_base64"]).splitlines(keepends=True)
    if row["broker_accepts"]:
        check_lines(lines)
        return
    with pytest.raises(Refused, match=r"invalid JSONL format: line \d+ is not valid JSON"):
        check_lines(lines)


def test_the_first_row_decides_the_format_of_all():
    rows = [
        b'{"messages":[{"role":"user","content":"a"},{"role":"user","content":"b"},{"role":"assistant","content":"c"}]}'
    ]
    assert list(convert_rows([*rows, b'{"instruction":"x","output":"y"}'])) == [
        {"instruction": "b", "input": "", "output": "c"},
        {"instruction": "", "input": "", "output": ""},
    ]


def test_text_rows_become_three_empty_strings():
    assert list(convert_rows([b'{"text":"long"}\n', b"\n"])) == [{"instruction": "", "input": "", "output": ""}]


@pytest.mark.parametrize("row", _V["fee"], ids=lambda row: row["id"])
def test_fees_come_out_as_the_broker_computes_them(row):
    model = {"Qwen3-32B": "0x2e6f9620c35bdcb2b753cc7aa34e78077a8ed133e36fa36008fd6bdfd29af3a5"}.get(row["model"], QWEN)
    fee = task_fee(row["token_count"], int(row["price_per_token"]), row["num_train_epochs"], model)
    assert fee == int(row["fee"])


def test_the_fee_step_knows_predefined_models_only():
    with pytest.raises(ValueError, match="SCRIPT_MAP"):
        task_fee(1, 1, 1, "0x" + "00" * 32)


@pytest.mark.parametrize(
    ("value", "tokens"),
    [("", 0), ("a", 1), ("abcd", 1), ("abcde", 2), ("é" * 4, 2), (True, 1), ([{"k": "ab"}, 12345], 3)],
)
def test_a_token_is_four_bytes_of_a_value(value, tokens):
    assert count_tokens(value) == tokens


def test_addresses_fold_from_any_spelling():
    spelled = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"
    assert {fold_address(s) for s in (spelled, spelled.lower(), spelled[2:].upper(), "0X" + spelled[2:])} == {spelled}
    assert fold_address("0x12") is None


def test_a_name_that_begins_like_hex_is_found_by_hash_only():
    models = (CustomModel(name="deepseek-x", hash="0x" + "aa" * 32), CustomModel(name="tiny", hash="0x" + "bb" * 32))
    assert find_model(models, "tiny")["name"] == "tiny"
    assert find_model(models, "0x" + "AA" * 32)["name"] == "deepseek-x"
    for name in ("deepseek-x", "Qwen2.5-0.5B-Instruct"):
        with pytest.raises(Refused, match=f"Model {name} not found"):
            find_model(models, name)


@pytest.mark.parametrize(
    ("size", "root"),
    [  # made by the official storage clients; byte i of the file is the low byte of the rule below
        (1000, "da3fdb149b4d153f6dca90abedc5f7eeeae825dc7569f1849ca83fe63f2c62db"),
        (4097, "6262fffc62eda20239122b1964c116e925fe2da8775447f72e06b57042faafdf"),
        (65536, "32f314f12702c26754aa9dac602d00925c342bb2ea17d425193f2ffdbbce1165"),
        (65537, "e5a7022297df738b114390a2200ce756543e0a6f1825f43be5c8146b8368e89a"),
    ],
)
def test_storage_roots_equal_the_recorded_ones(tmp_path, size, root):
    path = tmp_path / "file"
    path.write_bytes(bytes((31 * i + 17 * (i >> 8) + 113 * (i >> 16) + 7) & 255 for i in range(size)))
    assert hash_path(path).root.hex() == root


def test_settings_take_only_known_names_and_types():
    settings = update(Settings(), {"ack_timeout": 5, "models": [{"name": "m", "hash": "0x1"}], "log_mode": "live"})
    assert (settings.ack_timeout, settings.models[0].name) == (5.0, "m")
    for wrong in ({"nope": 1}, {"tick": "x"}, {"log_mode": "x"}, {"rate_limit": 1}, {"models": [{"x": 1}]}):
        with pytest.raises(ConfigError):
            update(settings, wrong)


def test_a_fault_strikes_as_often_as_it_was_set():
    faults = update(Faults(), {"drop": 2, "error_5xx": True, "path": "/lora"})
    assert not faults.strikes("drop", "/quote")
    assert [faults.strikes("drop", "/x/lora") for _ in range(3)] == [True, True, False]
    assert all(faults.strikes("error_5xx", "/lora") for _ in range(5))
