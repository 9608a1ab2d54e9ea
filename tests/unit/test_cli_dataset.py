"""`zg dataset check`."""

import json

import pytest

from zg_async.cli.main import run

GOOD = '{"instruction": "a", "input": "", "output": "b"}\n'


@pytest.fixture
def path(tmp_path):
    return tmp_path / "rows.jsonl"


def test_a_good_file_exits_with_0(path, capsys):
    path.write_text(GOOD * 3 + GOOD.replace("b", "c"))
    assert run(["dataset", "check", str(path)]) == 0
    assert "4 rows" in capsys.readouterr().out


@pytest.mark.goal("DAT-01", part="non-zero exit")
@pytest.mark.parametrize("content", [b"", b"[1]\n", b'{"instruction": "\xff"}\n', b"{\n"])
def test_a_bad_file_exits_with_1_and_names_the_row(path, capsys, content):
    path.write_bytes(content)
    assert run(["dataset", "check", str(path), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["errors"]


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
