"""What an adapter's files say, and that damaged ones are told."""

import contextlib
import json

import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from tests.devnet.inference_kit import MODEL, PARAMS, ROWS
from zg_async.cli.main import run
from zg_async.devnet.trainer import train
from zg_async.errors import ConfigError
from zg_async.managers.adapter_files import describe_adapter
from zg_async.wire.adapter_files import AdapterFileError, read_adapter, read_header

CONFIG = json.dumps({"peft_type": "LORA", "r": 2, "base_model_name_or_path": "/models/x"}).encode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An adapter as a provider delivers it."""
    place = tmp_path_factory.mktemp("job") / "output_model"
    train(ROWS, PARAMS | {"max_steps": 1}, place, base_model=f"/dstack/{MODEL}")
    return place


def weights(tensors: dict, *, rank: int = 2, tail: bytes = b"") -> bytes:
    header, data = {}, b""
    for name, shape in tensors.items():
        size = 4 * shape[0] * shape[1]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + size]}
        data += bytes(size)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data + tail


GOOD = {"m.0.q_proj.lora_A.weight": [2, 8], "m.0.q_proj.lora_B.weight": [8, 2]}


@pytest.mark.slow
@pytest.mark.goal("ADP-07", part="loads elsewhere")
async def test_a_delivered_adapter_loads_elsewhere_and_is_shown(folder, capsys):
    adapter = await describe_adapter(folder.parent)
    info = adapter.info
    loaded = safetensors.numpy.load_file(folder / "adapter_model.safetensors")
    assert {t.name: t.shape for t in info.tensors} == {name: array.shape for name, array in loaded.items()}
    assert info.parameters == sum(array.size for array in loaded.values())
    assert all(t.name.startswith("base_model.model.") for t in info.tensors)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["peft_type"], set(info.targets)) == ("LORA", set(config["target_modules"]))
    assert (adapter.path, info.rank, info.base_model_name) == (folder, config["r"], f"Qwen/{MODEL}")


@pytest.mark.slow
@pytest.mark.goal("ADP-07", part="command")
def test_the_command_prints_rank_targets_size_base_model_and_loading_lines(folder, capsys):
    assert run(["adapter", "show", str(folder)]) == 0
    shown = capsys.readouterr().out
    for part in ("rank", "targets", "size", f"Qwen/{MODEL}", f"PeftModel.from_pretrained(model, '{folder}')", "vllm"):
        assert part in shown
    assert run(["adapter", "show", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["base_model"] == f"Qwen/{MODEL}"
    assert run(["adapter", "show", str(folder / "nowhere")]) == 8


def test_good_files_are_read_and_names_stay_inside_their_quotes():
    data = weights(GOOD)
    config = json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "a'); import os; ('"})
    info = read_adapter(config.encode(), data, len(data))
    assert (info.rank, info.alpha, info.targets, info.parameters) == (2, 4.0, ("q_proj",), 32)
    for line in info.loading_lines("/x'); evil()  # ")[:4]:
        compile(line, "line", "exec")
    assert "evil" not in {
        name for line in info.loading_lines("/x'); evil()  # ")[:4] for name in compile(line, "", "exec").co_names
    }


@pytest.mark.parametrize(
    ("config", "data", "match"),
    [
        (b"{}", weights(GOOD), "no LoRA adapter"),
        (b"[", weights(GOOD), "can't be read"),
        (b'{"peft_type":"LORA","r":0}', weights(GOOD), "rank"),
        (b'{"peft_type":"LORA","r":4}', weights(GOOD), "rank 4"),
        (CONFIG, weights({"m.norm.weight": [2, 2]}), "no LoRA matrices"),
        (CONFIG, weights(GOOD, tail=b"x"), "longer or shorter"),
        (CONFIG, weights(GOOD)[:-1], "longer or shorter"),
        (CONFIG, b"", "no safetensors"),
        (CONFIG, (2**60).to_bytes(8, "little"), "no safetensors"),
        (CONFIG, (50).to_bytes(8, "little") + b"{}", "cut"),
        (CONFIG, (2).to_bytes(8, "little") + b"[]", "no object"),
    ],
)
def test_files_that_are_no_adapter_are_told(config, data, match):
    with pytest.raises(AdapterFileError, match=match):
        read_adapter(config, data, len(data))


@pytest.mark.parametrize("offsets", [[[0, 8], [4, 12]], [[0, 8], [12, 20]], [[8, 16], [0, 4]], [[8, 0], [0, 8]]])
def test_tensors_neither_overlap_nor_leave_holes(offsets):
    header = {f"t{i}": {"dtype": "F32", "shape": [2], "data_offsets": o} for i, o in enumerate(offsets)}
    text = json.dumps(header).encode()
    with pytest.raises(AdapterFileError):
        read_header(len(text).to_bytes(8, "little") + text + bytes(20), 8 + len(text) + 20)


@given(st.binary(max_size=80), st.integers(0, 200))
def test_any_bytes_are_read_or_refused_with_one_error(data, size):
    with_length = len(data).to_bytes(8, "little") + data
    for text in (data, with_length):
        with contextlib.suppress(AdapterFileError):
            read_header(text, size)


async def test_a_folder_without_or_with_several_adapters_is_told(tmp_path):
    with pytest.raises(ConfigError, match="no adapter"):
        await describe_adapter(tmp_path)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_bytes(CONFIG)
    with pytest.raises(ConfigError, match="2 adapters"):
        await describe_adapter(tmp_path)
    with pytest.raises(ConfigError, match="can't be read"):
        await describe_adapter(tmp_path / "a")
