"""The devnet trainer learns, and its files and log lines are those of the real one."""

import ast
import json
import threading
from pathlib import Path

import pytest

from zg_async.devnet import safetensors, trainer
from zg_async.devnet.arrays import np
from zg_async.devnet.model import END, MAX_PROMPT, Adapter, Lora, base_model, prompt_text
from zg_async.devnet.trainer import (
    LOG_EVERY,
    TrainingError,
    TrainingStoppedError,
    TrainRow,
    loss_and_gradients,
    new_adapter,
    read_adapter,
    train,
    write_adapter,
)

DATA = Path(__file__).parents[2] / "zg_async/devnet/data"
PARAMS = {
    "neftune_noise_alpha": 5,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 1,
    "learning_rate": 0.001,
    "max_steps": -1,
}
ROWS = [TrainRow(f"Colour of box {n}?", "", f"Box {n} is {c}.") for n, c in enumerate(("red", "blue", "grey"))]
NAME = "Qwen2.5-0.5B-Instruct"


def demo_rows() -> list[TrainRow]:
    return [TrainRow(**json.loads(line)) for line in (DATA / "demo.jsonl").read_text().splitlines()]


def answer(question: str, adapter: Adapter | None) -> str:
    return base_model().generate(prompt_text(question), adapter)[0].decode(errors="replace")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory):  # seconds on a busy core
    folder = tmp_path_factory.mktemp("demo")
    outcome = train(demo_rows(), json.loads((DATA / "demo_params.json").read_text()), folder, base_model=NAME)
    return outcome, read_adapter(folder), folder


@pytest.mark.slow
def test_the_demo_training_ends_at_a_low_loss(demo) -> None:
    outcome, _, _ = demo
    assert outcome.steps == 130
    assert outcome.final_loss < 0.05


@pytest.mark.slow
def test_the_adapter_answers_its_training_questions(demo) -> None:
    _, adapter, _ = demo
    right = sum(answer(row.instruction, adapter) == row.output for row in demo_rows()[::2])
    assert right >= 24
    assert answer("What is the code of station Hamar?", adapter) == "The code of station Hamar is 022."


@pytest.mark.slow
def test_the_adapter_answers_questions_worded_otherwise(demo) -> None:
    _, adapter, _ = demo
    asked = [
        (f"Tell me the code of station {row.instruction.split()[-1][:-1]}.", row.output) for row in demo_rows()[::2]
    ]
    assert sum(answer(question, adapter) == output for question, output in asked) >= 13


def test_the_base_model_knows_no_code() -> None:
    for row in demo_rows()[:4]:
        code = row.output.split()[-1]
        assert code not in answer(row.instruction, None)


@pytest.mark.slow
def test_the_same_dataset_and_parameters_give_the_same_adapter(tmp_path: Path) -> None:
    for name in ("one", "two"):
        train(ROWS, PARAMS | {"num_train_epochs": 3}, tmp_path / name, base_model=NAME)
    files = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("one", "two")]
    assert files[0] == files[1]


def test_another_dataset_gives_another_adapter(tmp_path: Path) -> None:
    train(ROWS, PARAMS, tmp_path / "one", base_model=NAME)
    train(ROWS[:2], PARAMS, tmp_path / "two", base_model=NAME)
    files = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("one", "two")]
    assert files[0] != files[1]


@pytest.mark.parametrize("layer", ["head", "mixer"])
@pytest.mark.parametrize("part", ["a", "b"])
def test_gradients_equal_differences(layer: str, part: str) -> None:
    model = base_model()
    random = np.random.RandomState(1)
    start = new_adapter()
    layers = {
        name: Lora(lora.a, (random.standard_normal(lora.b.shape) * 0.02).astype("f4"))
        for name, lora in start.layers.items()
    }
    adapter = Adapter(layers, start.scale)
    inputs = model.inputs(model.read(prompt_text("Who?")), b"Me.")
    targets = np.array([*b"Me.", END])
    _, slopes = loss_and_gradients(model, inputs, targets, adapter)
    weight, slope = getattr(layers[layer], part), getattr(slopes[layer], part)
    direction = (slope / np.linalg.norm(slope)).astype("f4")
    kept, losses = weight.copy(), []
    for sign in (1, -1):
        weight[...] = kept + np.float32(sign * 5e-3) * direction
        losses.append(loss_and_gradients(model, inputs, targets, adapter)[0])
    weight[...] = kept
    assert (losses[0] - losses[1]) / 1e-2 == pytest.approx(float((slope * direction).sum()), rel=0.02)


@pytest.mark.parametrize(
    ("params", "steps"),
    [
        ({}, 1),
        ({"num_train_epochs": 4}, 4),
        ({"max_steps": 2}, 2),
        ({"num_train_epochs": 9, "max_steps": 3}, 3),
    ],
)
def test_the_number_of_steps_follows_epochs_unless_max_steps_is_set(tmp_path: Path, params, steps: int) -> None:
    assert train(ROWS, PARAMS | params, tmp_path, base_model=NAME).steps == steps


def test_an_optimizer_step_takes_four_batches(tmp_path: Path) -> None:
    rows = [TrainRow(f"q{n}", "", "a") for n in range(17)]
    assert train(rows, PARAMS | {"per_device_train_batch_size": 2}, tmp_path, base_model=NAME).steps == 3


def test_a_set_flag_stops_the_training(tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(TrainingStoppedError):
        train(ROWS, PARAMS, tmp_path, base_model=NAME, seconds=60, stop=stop)
    assert list(tmp_path.iterdir()) == []


def test_a_training_is_stretched_by_waits_that_the_flag_ends(tmp_path: Path) -> None:
    class Flag(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout)
            return False

    waits: list[float | None] = []
    train(ROWS, PARAMS | {"max_steps": 2}, tmp_path, base_model=NAME, seconds=100, stop=Flag())
    assert waits == [pytest.approx(50, abs=5), pytest.approx(100, abs=5)]


def test_no_rows_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="num_samples=0"):
        train([], PARAMS, tmp_path, base_model=NAME)


def test_empty_and_overlong_rows_are_trained_on(tmp_path: Path) -> None:
    rows = [TrainRow("", "", ""), TrainRow("x" * 5000, "y" * 5000, "z" * 5000), TrainRow("\N{SNOWMAN}", "", "\ud800")]
    assert train(rows, PARAMS, tmp_path, base_model=NAME).steps == 1


def test_the_log_has_the_lines_of_todays_trainer(tmp_path: Path) -> None:
    params = PARAMS | {"max_steps": 20}
    text = train(ROWS, params, tmp_path, base_model=NAME).log_text
    lines = text.splitlines()
    assert lines[0] == f"Model path: {NAME}"
    config = text[text.index("{") : text.index("}") + 1]
    assert lines[1] == "Training config: {"
    assert json.loads(config) == params
    after = text[text.index("}") + 2 :].splitlines()
    assert after[0].startswith("trainable params: ")
    assert after[1:3] == ["Dataset loaded: 3 samples", "Starting training..."]
    logged = [ast.literal_eval(line) for line in after[3:5]]
    assert [set(entry) for entry in logged] == [{"loss", "grad_norm", "learning_rate", "epoch"}] * 2
    assert logged[0]["epoch"] == 10.0
    assert logged[0]["learning_rate"] == pytest.approx(0.0005)
    summary = ast.literal_eval(after[5])
    assert list(summary) == [
        "train_runtime",
        "train_samples_per_second",
        "train_steps_per_second",
        "train_loss",
        "epoch",
    ]
    assert after[6:] == [f"Saving LoRA weights to: {tmp_path}", "Training completed successfully!"]


def test_a_short_run_has_only_the_summary(tmp_path: Path) -> None:
    text = train(ROWS, PARAMS | {"max_steps": LOG_EVERY - 1}, tmp_path, base_model=NAME).log_text
    assert [line for line in text.splitlines() if line.startswith("{'")] == [text.splitlines()[-3]]


def test_newer_spelling_quotes_numbers_with_four_digits(tmp_path: Path) -> None:
    text = train(ROWS, PARAMS | {"max_steps": 10}, tmp_path, base_model=NAME, quoted_numbers=True).log_text
    entry = ast.literal_eval(next(line for line in text.splitlines() if line.startswith("{'loss'")))
    assert all(isinstance(value, str) and value == f"{float(value):.4g}" for value in entry.values())


def test_the_older_form_is_told_live(tmp_path: Path) -> None:
    heard: list[str] = []
    text = train(ROWS, PARAMS | {"max_steps": 20}, tmp_path, base_model=NAME, live=heard.append).log_text
    assert [line.split(",")[0] for line in heard] == ["Step: 10", "Step: 20"]
    assert heard[0].startswith("Step: 10, Logs: {'loss': ")
    assert "'tokens_per_second'" in heard[0]
    assert "{'loss'" not in text


def test_the_adapter_is_in_peft_layout(tmp_path: Path) -> None:
    train(ROWS, PARAMS, tmp_path, base_model=NAME)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert (config["r"], config["lora_alpha"], config["task_type"], config["bias"]) == (8, 32, "CAUSAL_LM", "none")
    assert config["base_model_name_or_path"] == NAME
    assert config["target_modules"] == ["head", "mixer"]
    tensors = safetensors.load(tmp_path / "adapter_model.safetensors")
    assert sorted(tensors) == sorted(
        f"base_model.model.{layer}.lora_{part}.weight" for layer in config["target_modules"] for part in "AB"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


def test_another_rank_can_be_written_and_read(tmp_path: Path) -> None:
    write_adapter(tmp_path, new_adapter(rank=3, alpha=6), NAME)
    adapter = read_adapter(tmp_path)
    assert (adapter.scale, adapter.layers["head"].a.shape[0]) == (2.0, 3)


@pytest.mark.parametrize("change", [{"peft_type": "IA3"}, {"r": 4}, {"target_modules": ["other"]}])
def test_a_foreign_adapter_is_refused(tmp_path: Path, change) -> None:
    write_adapter(tmp_path, new_adapter(), NAME)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=r"LoRA|fit"):
        read_adapter(tmp_path)


def test_a_long_prompt_is_cut_to_its_end() -> None:
    model = base_model()
    long, short = model.read(b"x" * 100 + b"y" * MAX_PROMPT), model.read(b"y" * MAX_PROMPT)
    assert np.array_equal(long.tokens, short.tokens)
    assert np.array_equal(long.summary, short.summary)


def test_the_last_row_alone_equals_the_last_of_all() -> None:
    model = base_model()
    prompt = model.read(b"What is it?\n")
    every, last = model.inputs(prompt, b"It is"), model.inputs(prompt, b"It is", last_only=True)
    assert np.allclose(every.features[-1], last.features[0], atol=1e-5)
    assert np.allclose(every.prior[-1], last.prior[0], atol=1e-5)


def _file(header: object, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def test_safetensors_bytes_are_the_public_format() -> None:
    data = safetensors.dump({"b": np.ones((1, 2), "f4"), "a": np.zeros(1, "f4")})
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    assert size % 8 == 0
    assert header == {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        "b": {"dtype": "F32", "shape": [1, 2], "data_offsets": [4, 12]},
    }
    assert data[8 + size :] == bytes(4) + np.ones(2, "<f4").tobytes()
    assert np.array_equal(safetensors.parse(data)["b"], np.ones((1, 2)))


ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 7,
        (2**40).to_bytes(8, "little") + b"{}",
        _file(b"not json"),
        _file([]),
        _file(b" {}"),
        _file({"a": ENTRY}),
        _file({"a": ENTRY}, b"12345"),
        _file({"a": ENTRY | {"data_offsets": [1, 5]}}, b"12345"),
        _file({"a": ENTRY, "b": ENTRY}, b"1234"),
        _file({"a": ENTRY | {"dtype": "F16"}}, b"1234"),
        _file({"a": ENTRY | {"shape": [2]}}, b"1234"),
        _file({"a": ENTRY | {"shape": [-1]}}, b"1234"),
        _file({"a": ENTRY | {"shape": [True]}}, b"1234"),
        _file({"a": {"dtype": "F32"}}),
        _file({"a": 1}),
        _file(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":1}', b"1234"),
        _file(b"[" * 100_000),
    ],
)
def test_a_broken_safetensors_file_is_refused(data: bytes) -> None:
    with pytest.raises(safetensors.SafetensorsError):
        safetensors.parse(data)


def test_a_training_is_the_same_whether_or_not_its_rows_were_trained_before(tmp_path: Path) -> None:
    made = []
    for name, forget in (("first", True), ("again", False), ("later", True)):
        if forget:
            trainer._frozen.cache_clear()
            trainer._first_slopes.cache_clear()
        else:
            train(ROWS, PARAMS | {"learning_rate": 0.01}, tmp_path / "other", base_model=NAME)
        outcome = train(ROWS, PARAMS | {"num_train_epochs": 3}, tmp_path / name, base_model=NAME)
        made.append((outcome.final_loss, (tmp_path / name / "adapter_model.safetensors").read_bytes()))
    assert made[0] == made[1] == made[2]
    assert made[0][1] != (tmp_path / "other" / "adapter_model.safetensors").read_bytes()
