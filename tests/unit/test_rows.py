"""Datasets and training parameters, as the provider would judge them."""

import base64
import json
import time
import tracemalloc

import pytest

from tests.devnet.conftest import PARAMS
from tests.golden import ids, vectors
from zg_async.errors import TrainingParamsError
from zg_async.wire import rows
from zg_async.wire.rows import (
    MAX_LINE,
    DatasetChecker,
    DatasetReport,
    RowFormat,
    TrainingParams,
    check_training_params,
    decimal_text,
    flatten_row,
)

FT = vectors("fine-tuning")
INLINE = [r for r in FT["dataset_hash"] if "content_base64" in r]


def check(*lines: bytes | str | dict, end: str = "\n", **options) -> DatasetReport:
    data = end.join(json.dumps(line) if isinstance(line, dict) else str(line) for line in lines).encode()
    return check_bytes(data, **options)


def check_bytes(data: bytes, **options) -> DatasetReport:
    checker = DatasetChecker(**options)
    checker.feed(data)
    return checker.finish()


def codes(issues) -> list[tuple[int, str]]:
    return [(i.row, i.code) for i in issues]


def chat(*turns: tuple[str, str]) -> dict:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


GOOD = {"instruction": "say hi", "input": "", "output": "hi"}
TALK = chat(("user", "hi"), ("assistant", "hello"))

# --- dataset ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", INLINE, ids=ids(INLINE))
def test_dataset_hash_and_acceptance(row):
    report = check_bytes(base64.b64decode(row["content_base64"]))
    assert report.keccak256 == row["dataset_hash"]
    assert report.size == row["length"]
    assert report.is_ok == (row["broker_accepts"] and row["id"] not in ("ds-empty", "ds-blank-lines", "ds-null-line"))


@pytest.mark.goal("DAT-01", part="report")
@pytest.mark.parametrize(
    ("data", "row", "code"),
    [
        (b"", 0, "too_few_rows"),
        (b"\n \t\r\n", 0, "too_few_rows"),
        (b'\xef\xbb\xbf{"instruction":"a","output":"b"}', 1, "byte_order_mark"),
        (b'{"instruction":"\xff","output":"b"}', 1, "not_utf8"),
        (b'{\n "instruction": "a"\n}', 1, "not_jsonl"),
        (b'[{"instruction":"a"}]', 1, "not_an_object"),
        (b'{"instruction":"a","output":"b"}\nnot json', 2, "not_json"),
        (b'{"instruction":"a","output":"b"}\n\n7', 3, "not_an_object"),
        (b"null", 1, "not_an_object"),
        (b'{"a":' * 70 + b"1" + b"}" * 70, 1, "not_json"),
        (b'{"instruction":"a","instruction":"b","output":"c"}', 1, "not_json"),
        (b'{"prompt":"a","completion":"b"}', 1, "prompt_completion"),
        (b'{"question":"a"}', 1, "unknown_keys"),
        (b'{"instruction":1,"output":"b"}', 1, "not_text"),
        (b'{"instruction":" ","output":""}', 1, "empty_row"),
        (b'{"text":""}', 1, "empty_row"),
        (b'{"text":5}', 1, "text_not_text"),
        (b'{"messages":"x"}', 1, "bad_messages"),
        (b'{"messages":[]}', 1, "bad_messages"),
        (b'{"messages":[1]}', 1, "bad_messages"),
        (b'{"messages":[{"role":"bot","content":"x"}]}', 1, "bad_role"),
        (b'{"messages":[{"role":"user","content":["x"]}]}', 1, "content_not_text"),
        (b'{"messages":[{"role":"user","content":"x"}]}', 1, "missing_role"),
        (b'{"messages":[{"role":"user","content":"x"},{"role":"assistant","content":" "}]}', 1, "missing_role"),
        (b'{"instruction":"a","output":"b"}\n{"text":"x"}', 2, "mixed_format"),
        (b'{"text":"x"}\n{"messages":[]}', 2, "mixed_format"),
    ],
)
def test_what_a_provider_would_refuse_or_spoil_is_an_error_with_its_row(data, row, code):
    report = check_bytes(data)
    assert (row, code) in codes(report.errors)
    assert not report.is_ok


@pytest.mark.parametrize("line", [GOOD, TALK, {"instruction": "a", "output": "b"}, {"input": "a", "output": "b"}])
def test_good_rows_have_no_issues(line):
    report = check(line)
    assert (report.errors, report.warnings, report.rows) == ((), (), 1)


def test_windows_line_ends_and_blank_lines_are_fine():
    report = check(GOOD, "", " \t", TALK_FREE := {"instruction": "b", "output": "c"}, end="\r\n")
    assert report.is_ok
    assert (report.rows, report.blank_lines) == (2, 2)
    assert TALK_FREE["output"] == "c"


@pytest.mark.goal("DAT-02", part="rows")
def test_losses_on_the_way_through_the_tee_are_warned_of_with_row_numbers():
    talk = check(
        TALK,
        chat(("system", "be kind"), ("user", "a"), ("assistant", "b")),
        chat(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")),
    )
    assert codes(talk.warnings) == [(2, "system_dropped"), (3, "multi_turn")]
    text = check({"text": "one"}, {"text": "two"})
    assert codes(text.warnings) == [(1, "text_lost"), (2, "text_lost")]
    assert talk.is_ok
    assert text.is_ok


def test_text_rows_are_fine_for_0g_storage():
    assert check({"text": "one"}, tee=False).warnings == ()


@pytest.mark.goal("DAT-01", part="duplicate rows")
def test_smaller_losses_are_warned_of_too():
    report = check(
        {**GOOD, "id": 7, "source": "x"},
        {"instruction": "a"},
        {"instruction": "", "output": "b"},
        GOOD,
        GOOD,
    )
    assert codes(report.warnings) == [
        (1, "keys_ignored"),
        (2, "empty_output"),
        (3, "empty_instruction"),
        (5, "duplicate"),
    ]
    assert "row 4" in report.warnings[-1].message
    assert codes(check(chat(("assistant", "b"), ("user", "a"))).warnings) == [(1, "answer_first")]


@pytest.mark.goal("HRD-17", part="credentials by row")
@pytest.mark.parametrize(
    "secret",
    [
        "app-sk-" + "A" * 60,
        "-----BEGIN RSA PRIVATE KEY-----",
        "key 0x" + "ab" * 32 + ".",
        "sk-" + "a1B2" * 8,
        "hf_" + "a" * 34,
        "ghp_" + "a" * 36,
        "github_pat_" + "a" * 50,
        "AKIA" + "A1" * 8,
        "xoxb-1234567890-abc",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.x",
    ],
)
def test_credentials_are_reported_by_row_and_never_repeated(secret):
    report = check(GOOD, {"instruction": "x", "output": f"use {secret} now"})
    assert codes(report.warnings) == [(2, "credential")]
    assert secret not in json.dumps(report.warnings[0].message)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["-eyJ", " sk-", " 0x", "-----BEGIN ", " app-sk-", " xox", " ghp_", " github_pat_"])
def test_looking_for_credentials_takes_linear_time(part):
    text = "PRIVATE KEY" + part * (900_000 // len(part))
    started = time.process_time()
    check({"instruction": text, "output": "b"})
    assert time.process_time() - started < 2.0


def test_ordinary_text_is_no_credential():
    text = "ask-me, mask-off, tf_hub, 0xabc, sk-learn, high_ground, risk-" + "a" * 30
    assert check({"instruction": text, "output": "b"}).warnings == ()


@pytest.mark.goal("HRD-17", part="line cap")
@pytest.mark.goal("DAT-01", part="minimum count and size limit")
def test_limits_of_file_line_and_count():
    over = check(GOOD, max_size=10)
    assert codes(over.errors) == [(0, "too_large")]
    assert check(GOOD, max_size=None).is_ok
    assert codes(check(GOOD, minimum_rows=2).errors) == [(0, "too_few_rows")]
    long = {"instruction": "a", "output": ""}
    long["output"] = "b" * (MAX_LINE - len(json.dumps(long)))
    assert len(json.dumps(long)) == MAX_LINE
    assert check(long).is_ok
    longer = check(GOOD, {"instruction": "a", "output": "b" * MAX_LINE}, GOOD)
    assert codes(longer.errors) == [(2, "line_too_long")]
    assert longer.rows == 3


def test_the_report_shows_what_the_provider_will_see():
    report = check(chat(("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")))
    assert [(s.instruction, s.input, s.output) for s in report.preview] == [("c", "", "d")]
    (lost,) = check({"text": "gone"}).preview
    assert (lost.instruction, lost.input, lost.output) == ("", "", "")
    assert check({"text": "kept"}, tee=False).preview[0].output == "kept"
    assert "\x1b" not in check({"instruction": "\x1b[2J", "output": "b"}).preview[0].instruction


def test_flattening_goes_by_the_files_format_not_the_rows():
    assert flatten_row({"text": "x"}, RowFormat.INSTRUCTION) == {"instruction": "", "input": "", "output": ""}
    assert flatten_row({"messages": "x"}, RowFormat.MESSAGES) == {"instruction": "", "input": "", "output": ""}


@pytest.mark.goal("DAT-01", part="machine-readable")
def test_the_report_is_plain_json():
    report = check(GOOD, {"text": "x"}, "junk")
    value = json.loads(json.dumps(report.to_json()))
    assert value["is_ok"] is False
    assert value["format"] == "instruction"
    assert value["errors"][0] == {
        "row": 2,
        "code": "mixed_format",
        "message": "a text row in a file whose first row is instruction: the provider goes by the first",
    }
    assert value["counts"] == {"mixed_format": 1, "not_json": 1}
    assert value["keccak256"] == report.keccak256


def test_only_a_hundred_issues_of_a_kind_are_kept_but_all_are_counted():
    report = check(*["junk"] * 150, GOOD)
    assert len(report.errors) == 100
    assert report.counts == {"not_json": 150}


@pytest.mark.slow
@pytest.mark.goal("DAT-01", part="constant memory")
def test_memory_stays_the_same_however_long_the_file():
    def peak(count: int) -> int:
        checker = DatasetChecker(max_size=None)
        tracemalloc.start()
        for start in range(0, count, 500):
            block = b"".join(
                b'{"instruction":"%d %s","output":"b"}\n' % (n, b"x" * 400) for n in range(start, start + 500)
            )
            checker.feed(block)
        checker.finish()
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    rows_kept, rows._DUPLICATES_KEPT = rows._DUPLICATES_KEPT, 1000
    try:
        assert peak(16_000) < peak(4_000) * 1.2
    finally:
        rows._DUPLICATES_KEPT = rows_kept


def test_a_report_says_when_not_all_rows_were_compared(monkeypatch):
    monkeypatch.setattr(rows, "_DUPLICATES_KEPT", 2)
    report = check(GOOD, {**GOOD, "output": "b"}, {**GOOD, "output": "c"}, {**GOOD, "output": "c"}, GOOD)
    assert not report.duplicates_complete
    assert codes(report.warnings) == [(5, "duplicate")]


# --- training parameters ---------------------------------------------------------------------------------------------


@pytest.mark.goal("DAT-06", part="bounds and rendering")
@pytest.mark.parametrize("row", FT["training_params"], ids=ids(FT["training_params"]))
def test_training_parameters_are_judged_as_by_the_provider(row):
    if row["broker_accepts"]:
        params = check_training_params(row["training_params"])
        assert check_training_params(params.to_json()) == params
        return
    with pytest.raises(TrainingParamsError) as caught:
        check_training_params(row["training_params"])
    reason, _, parameter = row["reason"].partition(":")
    assert caught.value.parameter == (parameter or None)
    words = {"forbidden": "forbidden", "unexpected": "unexpected", "missing": "missing", "scientific": "exponent"}
    assert words.get(reason, "") in str(caught.value)


@pytest.mark.goal("DAT-06", part="bounds and rendering")
@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.00001, "0.00001"),
        (5e-5, "0.00005"),
        (0.0002, "0.0002"),
        ("2e-4", "0.0002"),
        (5, "5"),
        (-1, "-1"),
        (10.0, "10"),
        (1e22, "10000000000000000000000"),
        (0.1, "0.1"),
        (0, "0"),
    ],
)
def test_numbers_are_never_written_with_an_exponent(number, text):
    assert decimal_text(number) == text


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), "x", "1e9999", ""])
def test_what_is_no_ordinary_number_is_not_written(bad):
    with pytest.raises(ValueError, match="not a number"):
        decimal_text(bad)


@pytest.mark.goal("DAT-06", part="bounds and rendering")
def test_the_builder_takes_python_numbers_and_writes_the_providers_form():
    params = TrainingParams(learning_rate=1e-05, num_train_epochs=2, neftune_noise_alpha=7.5, max_steps=3)
    assert params.to_json() == (
        '{"neftune_noise_alpha": 7.5, "num_train_epochs": 2, "per_device_train_batch_size": 2, '
        '"learning_rate": 0.00001, "max_steps": 3}'
    )
    mapping = {
        "neftune_noise_alpha": 7.5,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-05,
        "max_steps": 3,
    }
    assert check_training_params(mapping) == params


@pytest.mark.goal("DAT-06", part="bounds and rendering")
@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("neftune_noise_alpha", (0, 10, 0.5), (-0.001, 10.001)),
        ("num_train_epochs", (1, 10), (0, 11, 1.5)),
        ("per_device_train_batch_size", (1, 4), (0, 5, 2.5)),
        ("learning_rate", (0.00001, 0.001), (0.0000099, 0.0010001)),
        ("max_steps", (-1, 1, 10**6), (0, -2, 1.5)),
    ],
)
def test_every_bound(name, good, bad):
    for value in good:
        assert float(getattr(TrainingParams(**{name: value}), name)) == value
    for value in (*bad, True, None, "1", float("nan"), float("inf")):
        with pytest.raises(TrainingParamsError) as caught:
            TrainingParams(**{name: value})
        assert caught.value.parameter == name


@pytest.mark.parametrize(
    "text", ["", "null", '{"max_steps":1,"max_steps":2}', "[" * 100_000, "NaN", b"\xff", "{" + " " * 70_000 + "}"]
)
def test_text_that_is_no_parameter_file(text):
    with pytest.raises(TrainingParamsError):
        check_training_params(text)


def test_a_names_escape_sequences_are_not_repeated():
    with pytest.raises(TrainingParamsError) as caught:
        check_training_params('{"\\u001b[2J": 1}')
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("number", ["1e-999", "1E-999999999", "1e300"])
def test_a_number_of_no_ordinary_size_is_an_error_of_its_parameter(number):
    text = json.dumps(PARAMS | {"learning_rate": "X"}).replace('"X"', number)
    with pytest.raises(TrainingParamsError, match="between") as caught:
        check_training_params(text)
    assert caught.value.parameter == "learning_rate"
