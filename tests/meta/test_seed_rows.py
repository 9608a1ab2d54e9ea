"""The page that maps the documents' rows to tests is whole, and what it names is there."""

import ast
import functools
import inspect
from pathlib import Path

import pytest

from tests.seed_rows import PAGE, ROOT, every_row, page, rows
from zg_async import AdapterState, TrainingParamsError
from zg_async.managers.fine_tuning import FineTuningManager
from zg_async.managers.lora import LoraManager
from zg_async.sync.facade import Blocking
from zg_async.wire.inference_api import parse_adapter
from zg_async.wire.rows import check_training_params

PROVIDER = "0x" + "11" * 20
# The documents' tables of methods: the least one passes, and what can be named besides.
TUNING = {
    "list_service": (0, ["include_unacknowledged"]),
    "list_model": (0, []),
    "get_account": (1, []),
    "get_account_with_detail": (1, []),
    "get_locked_time": (0, []),
    "acknowledge_provider_signer": (1, []),
    "revoke_tee_signer_acknowledgement": (1, []),
    "create_task": (4, []),
    "list_task": (1, []),
    "get_task": (1, ["task_id"]),
    "cancel_task": (2, []),
    "get_log": (1, ["task_id"]),
    "upload_dataset_to_tee": (2, []),
    "upload_dataset": (1, ["gas_price", "max_gas_price"]),
    "download_dataset": (2, []),
    "calculate_token": (2, ["use_python", "provider_address"]),
    "acknowledge_model": (3, ["download_method"]),
    "download_lora_from_tee": (3, []),
    "decrypt_model": (4, []),
    "model_usage": (3, []),
}
LORA = {
    "deploy_adapter": (3, ["wait", "timeout_seconds", "on_progress"]),
    "deploy_adapter_by_name": (2, ["wait", "timeout_seconds", "on_progress"]),
    "list_adapters": (1, []),
    "get_adapter_status": (2, []),
    "chat": (3, ["system_prompt"]),
}


@functools.cache
def names_in(file: str) -> frozenset[str]:
    """The functions of a file that pytest could collect: none that is nested in another one."""
    tree = ast.parse((ROOT / file).read_text())
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def not_there(value: dict) -> list[str]:
    """Tests of a row that nobody could run."""
    gone = []
    for test in value["tests"]:
        file, name = test.split("::")
        parts = Path(file).parts
        collected = parts[0] == "tests" and parts[-1].startswith("test_") and name.startswith("test_")
        if not collected or not (ROOT / file).is_file() or name not in names_in(file):
            gone.append(test)
    return gone


@pytest.mark.goal("DOC-02")
def test_every_row_of_the_documents_has_a_test_that_exists_and_the_page_says_which():
    known = rows()
    assert list(known) == every_row()
    assert [row for row, value in known.items() if not value["tests"] or not value["says"]] == []
    assert {row: gone for row, value in known.items() if (gone := not_there(value))} == {}
    assert PAGE.read_text() == page(), "run `python -m tests.seed_rows`"


@pytest.mark.parametrize(
    "test",
    [
        "tests/meta/test_seed_rows.py::test_that_nobody_wrote",
        "tests/meta/test_no_such_file.py::test_every_row",
        "tests/meta/test_seed_rows.py::not_there",
        "tests/seed_rows.py::page",
    ],
)
def test_a_test_that_isnt_there_is_noticed(test):
    assert not_there({"tests": [test]}) == [test]


@pytest.mark.parametrize(("manager", "methods"), [(FineTuningManager, TUNING), (LoraManager, LORA)])
def test_every_method_of_the_documents_tables_is_there_awaitable_and_blocking(manager, methods):
    blocking = Blocking(None, object.__new__(manager))  # only asked for its methods
    for name, (given, options) in methods.items():
        method = getattr(manager, name)
        assert inspect.iscoroutinefunction(method), name
        words = [f"argument {number}" for number in range(given)]
        named = dict.fromkeys(options)
        inspect.signature(method).bind(None, *words, **named)
        called = getattr(blocking, name)
        assert not inspect.iscoroutinefunction(called), name
        assert inspect.signature(called).bind(*words, **named).arguments.keys() >= set(options)


STATES = ("init", "pending", "downloading", "ready", "loading", "active", "failed", "offloaded", "archived")


@pytest.mark.parametrize("state", STATES)
def test_each_state_of_an_adapter_in_the_documents_is_understood(state):
    adapter = parse_adapter({"adapterName": "ft-x", "taskId": "1", "baseModel": "m", "state": state}, provider=PROVIDER)
    assert adapter.state is AdapterState(state)
    assert adapter.state is not AdapterState.UNKNOWN


@pytest.mark.parametrize("name", ["lora_rank", "lora_alpha", "lora_dropout"])
def test_the_sample_parameters_that_providers_refuse_are_named_and_the_others_pass(name):
    good = {"neftune_noise_alpha": 5, "max_steps": -1}  # what today's providers want besides the sample's other three
    sample = {"learning_rate": 0.0002, "num_train_epochs": 3, "per_device_train_batch_size": 4}
    assert check_training_params(good | sample).num_train_epochs == 3
    with pytest.raises(TrainingParamsError) as caught:
        check_training_params(good | sample | {name: 8})
    assert caught.value.parameter == name
