"""The devnet provider's trainer: fits a LoRA adapter of the small frozen model to uploaded rows, and really learns.

It follows the real trainer script where a user could notice: prompt layout, gradient accumulation 4, a log line each
10 optimizer steps, Adam with a linear decay to zero, rank 8 and alpha 32, the PEFT files, the texts of the log. It
differs in three documented ways: the loss counts response bytes only, dropout is 0, and the user's learning rate is
multiplied by `RATE_SCALE`, because a model of this size needs bigger steps than one of half a billion parameters.
`neftune_noise_alpha` is taken and not used, as by the real script. Source: fine-tuning.md sections 6.1, 9, 11.
"""

import dataclasses
import functools
import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from zg_async.devnet import safetensors
from zg_async.devnet.arrays import Array, Tokens, np
from zg_async.devnet.model import END, TARGETS, Adapter, BaseModel, Inputs, Lora, base_model, prompt_text

RANK: Final = 8
ALPHA: Final = 32
ACCUMULATION: Final = 4
"""Batches per optimizer step."""
LOG_EVERY: Final = 10
"""Optimizer steps per line of figures."""
RATE_SCALE: Final = 8.0
"""What the user's learning rate is multiplied by; the log shows the user's own."""
MAX_RESPONSE: Final = 512
"""Bytes of a response that are learned; the rest is cut."""

_BETAS: Final = (0.9, 0.99)
_SEED: Final = 42
_KEPT_ROWS: Final = 16
"""A row of the longest response takes 7 MB."""
_KEPT_STEPS: Final = 8


class TrainingError(Exception):
    """The training can't be done; the text is what a container would print last."""


class TrainingStoppedError(TrainingError):
    """The stop flag was set."""


@dataclasses.dataclass(frozen=True, slots=True)
class TrainRow:
    """One example, in the three columns a provider makes of every row format."""

    instruction: str
    input: str = ""
    output: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOutcome:
    """What a training left behind, besides the files."""

    log_text: str
    """Everything the container printed, without time prefixes."""
    steps: int
    """Optimizer steps made."""
    final_loss: float
    """Mean loss of the last epoch's steps, in nats per byte."""


def train(
    rows: Sequence[TrainRow],
    params: Mapping[str, Any],
    out_dir: Path,
    *,
    base_model: str,
    seconds: float = 0.0,
    stop: threading.Event | None = None,
    live: Callable[[str], None] | None = None,
    quoted_numbers: bool = False,
) -> TrainingOutcome:
    """Fit an adapter to rows and write it. Blocks: call it in a worker thread.

    The same rows and parameters give the same adapter.

    Args:
        rows: The dataset.
        params: The five keys of fine-tuning.md section 9, already checked.
        out_dir: Created if missing; gets `adapter_config.json` and `adapter_model.safetensors`.
        base_model: The name written into the log and the config; the same small model stands behind every name.
        seconds: Stretch the training to at least this long.
        stop: Set it from another thread to end the training before its next step.
        live: Gets each `Step: N, Logs: {...}` line of the older trainers, with its newline, as it happens; called in
            this thread.
        quoted_numbers: Print floats as transformers 5.x does, else as 4.x.

    Returns:
        The log and the figures.

    Raises:
        TrainingError: There are no rows.
        TrainingStoppedError: `stop` was set.
    """
    if not rows:
        raise TrainingError("ValueError: num_samples should be a positive integer value, but got num_samples=0")
    run = _Run(rows, params, stop or threading.Event(), seconds)
    log = _Log(live, quoted_numbers)
    log.begin(run, base_model, params)
    for step in run.steps():
        log.step(step)
    log.end(run, out_dir)
    write_adapter(out_dir, run.adapter, base_model)
    return TrainingOutcome(log_text=log.text, steps=run.total_steps, final_loss=run.recent_loss)


def write_adapter(out_dir: Path, adapter: Adapter, base_model: str) -> None:
    """Write an adapter in PEFT layout.

    Args:
        out_dir: Created if missing.
        adapter: The matrices.
        base_model: Goes to `base_model_name_or_path`.
    """
    rank = next(iter(adapter.layers.values())).a.shape[0]
    config = {
        "base_model_name_or_path": base_model,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": round(adapter.scale * rank),
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": sorted(adapter.layers),
        "task_type": "CAUSAL_LM",
    }
    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    tensors = {}
    for layer, lora in adapter.layers.items():
        tensors[f"base_model.model.{layer}.lora_A.weight"] = lora.a
        tensors[f"base_model.model.{layer}.lora_B.weight"] = lora.b
    safetensors.save(out_dir / "adapter_model.safetensors", tensors)


def read_adapter(folder: Path) -> Adapter:
    """Read an adapter back.

    Args:
        folder: Holds the two files of `write_adapter`.

    Raises:
        ValueError: They aren't an adapter of this model.
        OSError: They can't be read.
    """
    config = json.loads((folder / "adapter_config.json").read_bytes())
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ValueError("adapter_config.json: not a LoRA adapter")
    tensors = safetensors.load(folder / "adapter_model.safetensors")
    sizes = _layer_sizes(base_model())
    layers = {}
    for layer in config.get("target_modules") or ():
        try:
            a = tensors[f"base_model.model.{layer}.lora_A.weight"]
            b = tensors[f"base_model.model.{layer}.lora_B.weight"]
            inputs, outputs = sizes[layer]
        except KeyError as error:
            raise ValueError(f"adapter lacks or doesn't fit {error}") from error
        if a.shape != (config.get("r"), inputs) or b.shape != (outputs, config.get("r")):
            raise ValueError(f"{layer}: shapes don't fit this model")
        layers[layer] = Lora(a, b)
    return Adapter(layers, float(config["lora_alpha"]) / float(config["r"]))


def new_adapter(*, rank: int = RANK, alpha: int = ALPHA, seed: int = _SEED) -> Adapter:
    """Return an adapter that changes nothing yet: A random, B zero."""
    random = np.random.RandomState(seed)
    layers = {}
    for layer, (inputs, outputs) in _layer_sizes(base_model()).items():
        a = (random.standard_normal((rank, inputs)) * inputs**-0.5).astype(np.float32)
        layers[layer] = Lora(a, np.zeros((outputs, rank), dtype=np.float32))
    return Adapter(layers, alpha / rank)


def loss_and_gradients(
    model: BaseModel, inputs: Inputs, targets: Tokens, adapter: Adapter
) -> tuple[float, dict[str, Lora]]:
    """Return the mean cross-entropy of some positions and its gradients by the adapter's matrices.

    Args:
        model: The frozen model.
        inputs: One row for each position.
        targets: The token that should come at each.
        adapter: Where on the surface to stand.

    Returns:
        Nats per position, and for each layer the gradients in place of the matrices.
    """
    hidden, logits = model.forward(inputs, adapter)
    logits -= logits.max(axis=1, keepdims=True)
    powers = np.exp(logits)
    sums = powers.sum(axis=1)
    places = np.arange(len(targets))
    loss = float(np.mean(np.log(sums) - logits[places, targets]))
    slope: Array = powers / sums[:, None]
    slope[places, targets] -= 1.0
    slope /= len(targets)
    head, mixer, scale = adapter.layers["head"], adapter.layers["mixer"], np.float32(adapter.scale)
    back: Array = slope @ model.head
    narrow: Array = slope @ head.b
    back += scale * (narrow @ head.a)
    back *= 1.0 - hidden**2
    return loss, {
        "head": _lora_slope(slope, hidden, head, scale),
        "mixer": _lora_slope(back, inputs.features, mixer, scale),
    }


def _lora_slope(slope: Array, values: Array, lora: Lora, scale: np.float32) -> Lora:
    down: Array = values @ lora.a.T
    up: Array = slope @ lora.b
    a: Array = up.T @ values
    b: Array = slope.T @ down
    a *= scale
    b *= scale
    return Lora(a, b)


def _layer_sizes(model: BaseModel) -> dict[str, tuple[int, int]]:
    """Return inputs and outputs of the layers an adapter changes."""
    weights = {"head": model.head, "mixer": model.mixer}
    return {layer: (weights[layer].shape[1], weights[layer].shape[0]) for layer in TARGETS}


@dataclasses.dataclass(frozen=True, slots=True)
class _Step:
    number: int
    loss: float
    norm: float
    rate: float
    epoch: float
    tokens_per_second: float


class _Run:
    """One training: its plan, its adapter and its optimizer."""

    def __init__(
        self, rows: Sequence[TrainRow], params: Mapping[str, Any], stop: threading.Event, seconds: float
    ) -> None:
        self.rows = rows
        self.adapter = new_adapter()
        self._batch = int(params["per_device_train_batch_size"]) * ACCUMULATION
        self.steps_per_epoch = math.ceil(len(rows) / self._batch)
        limit = int(params["max_steps"])
        self.total_steps = limit if limit > 0 else self.steps_per_epoch * int(params["num_train_epochs"])
        self.losses: list[float] = []
        self.runtime = 0.0
        self._rate = float(params["learning_rate"])
        self._stop = stop
        self._seconds = seconds
        self._moments = {layer: _zeros(lora) + _zeros(lora) for layer, lora in self.adapter.layers.items()}

    @property
    def recent_loss(self) -> float:
        """Mean of the last epoch's steps."""
        return float(np.mean(self.losses[-self.steps_per_epoch :]))

    def steps(self) -> Iterator[_Step]:
        """Make every optimizer step."""
        begin = time.monotonic()
        tokens = 0
        for number, chosen in enumerate(self._batches(), 1):
            if self._stop.is_set():
                raise TrainingStoppedError("stopped")
            rows = tuple(self.rows[int(index)] for index in chosen)
            loss, slopes, positions = _first_slopes(rows) if number == 1 else _slopes(rows, self.adapter)
            rate = self._rate * (1 - (number - 1) / self.total_steps)
            self._update(slopes, rate * RATE_SCALE, number)
            self.losses.append(loss)
            tokens += positions
            self._stop.wait(max(0.0, begin + self._seconds * number / self.total_steps - time.monotonic()))
            self.runtime = time.monotonic() - begin
            norm = math.sqrt(sum(float((m**2).sum()) for lora in slopes.values() for m in (lora.a, lora.b)))
            after = self._rate * (1 - number / self.total_steps)
            yield _Step(number, loss, norm, after, number / self.steps_per_epoch, tokens / max(self.runtime, 1e-6))

    def _batches(self) -> Iterator[Tokens]:
        """Yield the rows of each step: every epoch a new order, the seed's own."""
        random = np.random.RandomState(_SEED)
        left = self.total_steps
        while left:
            order = random.permutation(len(self.rows))
            for start in range(0, len(order), self._batch)[:left]:
                yield order[start : start + self._batch]
                left -= 1

    def _update(self, slopes: Mapping[str, Lora], rate: float, number: int) -> None:
        """Make one Adam step, in place."""
        correct = math.sqrt(1 - _BETAS[1] ** number) / (1 - _BETAS[0] ** number)
        for layer, slope in slopes.items():
            lora, moments = self.adapter.layers[layer], self._moments[layer]
            for weight, g, first, second in zip(
                (lora.a, lora.b), (slope.a, slope.b), moments[:2], moments[2:], strict=True
            ):
                first += (1 - _BETAS[0]) * (g - first)
                second += (1 - _BETAS[1]) * (g * g - second)
                weight -= np.float32(rate * correct) * first / (np.sqrt(second) + 1e-8)


@functools.lru_cache(maxsize=_KEPT_ROWS)
def _frozen(prompt: bytes, response: bytes) -> Inputs:
    """Run the frozen part over a row: most of a step's work, and the same in every epoch and training."""
    model = base_model()
    return model.inputs(model.read(prompt), response)


def _slopes(rows: Sequence[TrainRow], adapter: Adapter) -> tuple[float, dict[str, Lora], int]:
    """Return loss and gradients over some rows, and how many positions that are."""
    parts, targets = [], []
    for row in rows:
        response = row.output.encode("utf-8", "replace")[:MAX_RESPONSE]
        parts.append(_frozen(prompt_text(row.instruction, row.input), response))
        targets.append(np.append(np.frombuffer(response, dtype=np.uint8).astype(np.intp), END))
    inputs = Inputs(
        np.concatenate([part.features for part in parts]),
        np.concatenate([part.prior for part in parts]),
        np.concatenate([part.mixed for part in parts]),
    )
    wanted = np.concatenate(targets)
    loss, slopes = loss_and_gradients(base_model(), inputs, wanted, adapter)
    return loss, slopes, len(wanted)


@functools.lru_cache(maxsize=_KEPT_STEPS)
def _first_slopes(rows: tuple[TrainRow, ...]) -> tuple[float, dict[str, Lora], int]:
    """Return `_slopes` of a first step: every training begins with the same adapter."""
    return _slopes(rows, new_adapter())


def _zeros(lora: Lora) -> tuple[Array, Array]:
    return np.zeros_like(lora.a), np.zeros_like(lora.b)


class _Log:
    """Prints as the trainer scripts do."""

    def __init__(self, live: Callable[[str], None] | None, quoted: bool) -> None:
        self._live = live
        self._quoted = quoted
        self._lines: list[str] = []
        self._losses: list[float] = []

    @property
    def text(self) -> str:
        return "".join(f"{line}\n" for line in self._lines)

    def begin(self, run: _Run, name: str, params: Mapping[str, Any]) -> None:
        trained = sum(lora.a.size + lora.b.size for lora in run.adapter.layers.values())
        everything = trained + base_model().parameters
        self._lines += [
            f"Model path: {name}",
            f"Training config: {json.dumps(dict(params), indent=2)}",
            f"trainable params: {trained:,} || all params: {everything:,} || trainable%: {trained / everything:.4%}"[
                :-1
            ],
            f"Dataset loaded: {len(run.rows)} samples",
            "Starting training...",
        ]

    def step(self, step: _Step) -> None:
        self._losses.append(step.loss)
        if step.number % LOG_EVERY:
            return
        figures = {
            "loss": round(sum(self._losses) / len(self._losses), 4),
            "grad_norm": step.norm,
            "learning_rate": step.rate,
            "epoch": round(step.epoch, 2),
        }
        self._losses.clear()
        if self._live is None:
            self._lines.append(self._dict(figures))
            return
        figures["tokens_per_second"] = round(step.tokens_per_second, 2)
        self._live(f"Step: {step.number}, Logs: {figures}\n")

    def end(self, run: _Run, out_dir: Path) -> None:
        runtime = max(run.runtime, 1e-6)
        epochs = run.total_steps / run.steps_per_epoch
        summary = {
            "train_runtime": round(runtime, 4),
            "train_samples_per_second": round(len(run.rows) * epochs / runtime, 3),
            "train_steps_per_second": round(run.total_steps / runtime, 3),
            "train_loss": float(np.mean(run.losses)),
            "epoch": round(epochs, 2),
        }
        self._lines += [self._dict(summary), f"Saving LoRA weights to: {out_dir}", "Training completed successfully!"]

    def _dict(self, figures: Mapping[str, float]) -> str:
        return str({key: f"{value:.4g}" for key, value in figures.items()} if self._quoted else dict(figures))
