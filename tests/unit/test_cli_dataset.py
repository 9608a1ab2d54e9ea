"""`zg dataset`: exit codes and JSON reports."""

import json

import pytest

from zg_async.cli.main import run

GOOD = '{"instruction": "a", "input": "", "output": "b"}\n'


@pytest.fixture
def path(tmp_path):
    return tmp_path / "rows.jsonl"


@pytest.mark.goal("CLI-10", part="check: exit codes and report")
def test_a_good_file_exits_with_0(path, capsys):
    path.write_text(GOOD * 3 + GOOD.replace("b", "c"))
    assert run(["dataset", "check", str(path)]) == 0
    assert "4 rows" in capsys.readouterr().out


@pytest.mark.goal("DAT-01", part="non-zero exit")
@pytest.mark.goal("CLI-10", part="check: exit codes and report")
@pytest.mark.parametrize("content", [b"", b"[1]\n", b'{"instruction": "\xff"}\n', b"{\n"])
def test_a_bad_file_exits_with_1_and_names_the_row(path, capsys, content):
    path.write_bytes(content)
    assert run(["dataset", "check", str(path), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["kind"], report["is_ok"], bool(report["errors"])) == ("dataset_report", False, True)


def test_a_missing_file_is_named_with_advice(path, capsys):
    assert run(["dataset", "check", str(path)]) == 8
    assert str(path) in capsys.readouterr().err


@pytest.mark.goal("DAT-06", part="raw bypass")
def test_raw_parameters_are_not_touched():
    from zg_async import RawParams, TrainingParamsError
    from zg_async.managers.training_params import read_training_params

    text = '{"lora_rank": 8, "learning_rate": 1e-05}'
    assert read_training_params(RawParams(text)) == text
    with pytest.raises(TrainingParamsError):
        read_training_params(text)


@pytest.mark.goal("CLI-10", part="count and preview")
def test_counting_and_a_preview_tell_the_same_and_a_bad_file_ends_with_1(path, capsys):
    path.write_text("".join(json.dumps({"instruction": f"Name {n}.", "output": "Green."}) + "\n" for n in range(3)))
    assert run(["dataset", "count", str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["kind"], told["rows"], told["is_exact"]) == ("token_count", 3, False)
    assert 3 <= told["low"] <= told["likely"] <= told["high"]
    assert run(["dataset", "count", str(path)]) == 0
    assert f"{told['low']} to {told['high']} tokens in 3 rows" in capsys.readouterr().out
    assert run(["dataset", "preview", str(path)]) == 0
    shown = capsys.readouterr().out
    assert ("Name 0." in shown, "3 rows, format instruction" in shown) == (True, True)
    path.write_text('{"question": "a"}\n')
    assert run(["dataset", "preview", str(path), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["kind"] == "dataset_preview"
    path.write_text("[1]\n")
    assert run(["dataset", "count", str(path), "--json"]) == 8
    assert json.loads(capsys.readouterr().out)["code"] == "dataset"


@pytest.mark.goal("CLI-10", part="convert: exit codes and report")
def test_a_conversion_reports_and_a_loss_has_to_be_agreed_to(path, tmp_path, capsys):
    turns = [{"role": role, "content": role} for role in ("system", "user", "assistant")]
    path.write_text(json.dumps({"messages": turns}) + "\n")
    words = ["dataset", "convert", str(path), str(tmp_path / "new.jsonl"), "--to", "instruction", "--json"]
    assert run(words) == 8
    told = json.loads(capsys.readouterr().out)
    assert (told["kind"], told["code"], told["exit_code"], "--lossy" in told["hint"]) == ("error", "dataset", 8, True)
    assert not (tmp_path / "new.jsonl").exists()
    assert run([*words, "--lossy"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["kind"], told["rows"], told["lossy"][0]["row"]) == ("dataset_conversion", 1, 1)
    row = json.loads((tmp_path / "new.jsonl").read_text())
    assert (row["instruction"], row["output"]) == ("user", "assistant")
    assert run([*words, "--lossy"]) == 8  # it is there now
    assert run([*words[:3], str(tmp_path / "other.jsonl"), "--to", "poems"]) == 2
