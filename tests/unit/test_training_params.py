"""Training parameters in every shape users give them, and what is said of those that can't be used."""

import json
import os

import pytest

from zg_async.errors import ConfigError, TrainingParamsError
from zg_async.managers.training_params import read_training_params

GOOD = {
    "neftune_noise_alpha": 5,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 2,
    "learning_rate": 0.00001,
    "max_steps": -1,
}
TEXT = (
    '{"neftune_noise_alpha":5,"num_train_epochs":1,"per_device_train_batch_size":2,'
    '"learning_rate":0.00001,"max_steps":-1}'
)


def test_a_mapping_is_written_without_exponents():
    assert json.loads(read_training_params(GOOD)) == GOOD
    assert "e-" not in read_training_params(GOOD)


def test_a_files_own_spelling_is_kept(tmp_path):
    path = tmp_path / "params.json"
    path.write_text(f"\n {TEXT}\n")
    assert read_training_params(path) == f"\n {TEXT}\n"
    assert read_training_params(TEXT) == TEXT


@pytest.mark.parametrize(
    ("content", "kind", "told"),
    [
        (b"learning_rate: 1", TrainingParamsError, "aren't valid JSON"),
        (b"", TrainingParamsError, "aren't valid JSON"),
        (f"[{TEXT}]".encode(), TrainingParamsError, "JSON object"),
        (TEXT.replace("0.00001", "1e-05").encode(), TrainingParamsError, "exponent"),
        (TEXT.replace("5", '"5"').encode(), TrainingParamsError, "has to be a number"),
        (TEXT.replace("-1}", "0}").encode(), TrainingParamsError, "max_steps has to be -1 or at least 1, not 0"),
        (b"\xff\xfe", ConfigError, "not UTF-8"),
        (b" " * 70_000, ConfigError, "no file of training parameters"),
    ],
)
def test_a_file_that_cannot_be_used_is_told_apart_with_a_next_step(tmp_path, content, kind, told):
    path = tmp_path / "params.json"
    path.write_bytes(content)
    with pytest.raises(kind, match=told) as caught:
        read_training_params(path)
    assert caught.value.hint


def test_what_is_no_file_is_refused_and_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", tmp_path / "missing"):
        with pytest.raises(ConfigError, match=path.name) as caught:
            read_training_params(path)
        assert caught.value.hint
