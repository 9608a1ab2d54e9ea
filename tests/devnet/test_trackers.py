"""A job's figures arrive at trackers: TensorBoard by its real writer, others by stand-ins of their libraries."""

import sys
import types
from itertools import pairwise

import anyio
import pytest

from tests.devnet.conftest import MODEL, PARAMS
from zg_async import (
    ConfigError,
    JobRunner,
    JobSpec,
    MlflowTracker,
    TensorBoardTracker,
    WandbTracker,
    track_job,
)

pytestmark = pytest.mark.slow
LONG = PARAMS | {"num_train_epochs": 10, "max_steps": 40}  # so that some losses are logged


class Noted:
    """A tracker of one's own."""

    def __init__(self) -> None:
        self.calls = []

    def begin(self, name, params):
        self.calls.append(("begin", name, dict(params)))

    def log(self, step, figures):
        self.calls.append(("log", step, dict(figures)))

    def end(self, summary, succeeded):
        self.calls.append(("end", dict(summary), succeeded))


class Both:
    """Gives each call to several trackers."""

    def __init__(self, *trackers) -> None:
        self._trackers = trackers

    def __getattr__(self, name):
        return lambda *args: [getattr(one, name)(*args) for one in self._trackers]


def fake_mlflow():
    """The calls of MLflow's client that the tracker makes, with its signatures, and what they were given."""
    said = []

    class MlflowClient:
        def __init__(self, tracking_uri=None):
            said.append(("client", tracking_uri))

        def get_experiment_by_name(self, name):
            made = any(one == ("create_experiment", name) for one in said)
            return types.SimpleNamespace(experiment_id="7") if made else None

        def create_experiment(self, name):
            said.append(("create_experiment", name))
            return "7"

        def create_run(self, experiment_id, run_name=None):
            said.append(("create_run", experiment_id, run_name))
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id="r1"))

        def log_param(self, run_id, key, value):
            said.append(("log_param", run_id, key, value))

        def log_metric(self, run_id, key, value, *, step=None):
            said.append(("log_metric", run_id, key, value, step))

        def set_tag(self, run_id, key, value):
            said.append(("set_tag", run_id, key, value))

        def set_terminated(self, run_id, status=None):
            said.append(("set_terminated", run_id, status))

    module = types.ModuleType("mlflow")
    module.MlflowClient = MlflowClient
    return module, said


def fake_wandb():
    """The same of W&B."""
    said = []

    class Run:
        summary = types.SimpleNamespace(update=lambda value: said.append(("summary", value)))

        def define_metric(self, name, *, step_metric=None):
            said.append(("define_metric", name, step_metric))

        def log(self, data):
            said.append(("log", data))

        def finish(self, exit_code=None):
            said.append(("finish", exit_code))

    def init(**options):
        said.append(("init", options))
        return Run()

    module = types.ModuleType("wandb")
    module.init = init
    return module, said


def scalars(folder):
    """What the event files below a folder hold: tag and step to value."""
    from tensorboardX.proto.event_pb2 import Event

    found, texts = {}, []
    for path in folder.rglob("events.out.tfevents.*"):
        data, place = path.read_bytes(), 0
        while place < len(data):  # a length, its checksum, the record, its checksum
            size = int.from_bytes(data[place : place + 8], "little")
            event = Event.FromString(data[place + 12 : place + 12 + size])
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    found[value.tag, event.step] = value.simple_value
                else:
                    texts.append(value.tensor.string_val[0].decode())
            place += 16 + size
    return found, texts


@pytest.mark.goal("OBS-07", part="TensorBoard, by its writer and its files")
@pytest.mark.goal("OBS-07", part="MLflow and W&B, against stand-ins of their libraries")
async def test_a_jobs_figures_arrive_at_each_tracker_as_the_trainer_logged_them(broker, dataset, tmp_path, monkeypatch):
    mlflow, to_mlflow = fake_mlflow()
    wandb, to_wandb = fake_wandb()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    noted = Noted()
    board = TensorBoardTracker(tmp_path / "runs")
    others = MlflowTracker("figures", tracking_uri="http://127.0.0.1:5000"), WandbTracker("figures", mode="offline")
    spec = JobSpec(model=MODEL, dataset=dataset, training_params=LONG, output_dir=tmp_path / "out")
    async with JobRunner(broker, guard=False) as runner:
        job = await runner.submit(spec)
        assert await track_job(job, Both(noted, board, *others)) == "succeeded"
        result = await job.result()
        again = Noted()
        assert await track_job(job, again) == "succeeded"  # from the record of a job that has ended
    points = (await broker.fine_tuning.get_metrics(result.provider, result.task_id)).points
    begun, *logged, ended = noted.calls
    assert begun[:2] == ("begin", f"{result.job_id}/{result.task_id}")
    assert begun[2] == {"model": MODEL, "provider": result.provider} | {k: str(v) for k, v in LONG.items()}
    assert [(step, figures["loss"]) for _, step, figures in logged] == [(p.step, p.loss) for p in points]
    assert len(points) > 1
    assert all(one < other for (_, one, _), (_, other, _) in pairwise(logged))
    assert (ended[0], ended[2]) == ("end", True)
    assert float(ended[1]["fee_0g"]) == result.fee / 10**18
    assert again.calls == noted.calls

    found, texts = scalars(tmp_path / "runs" / begun[1])
    losses = {step: value for (tag, step), value in found.items() if tag == "train/loss"}
    assert losses == {p.step: pytest.approx(p.loss) for p in points}
    assert {tag for tag, _ in found} >= {"train/loss", "train/learning_rate"}
    assert MODEL in texts[0]
    assert "status: succeeded" in texts[1]

    assert to_mlflow[:3] == [
        ("client", "http://127.0.0.1:5000"),
        ("create_experiment", "figures"),
        ("create_run", "7", begun[1]),
    ]
    assert [(c[4], c[3]) for c in to_mlflow if c[:3] == ("log_metric", "r1", "loss")] == [
        (p.step, p.loss) for p in points
    ]
    assert ("log_param", "r1", "model", MODEL) in to_mlflow
    assert to_mlflow[-1] == ("set_terminated", "r1", "FINISHED")

    assert to_wandb[0] == (
        "init",
        {"project": "figures", "name": begun[1], "config": begun[2], "mode": "offline"},
    )
    assert [(c[1]["train/step"], c[1]["train/loss"]) for c in to_wandb if c[0] == "log"] == [
        (p.step, p.loss) for p in points
    ]
    assert to_wandb[-1] == ("finish", 0)


async def test_a_job_that_was_left_or_failed_ends_its_run_as_not_succeeded(devnet, broker, provider, dataset, tmp_path):
    devnet.control("settings", provider=0, train_seconds=3600.0)
    noted = Noted()
    spec = JobSpec(model=MODEL, dataset=dataset, training_params=PARAMS, output_dir=tmp_path / "out", provider=provider)
    try:
        async with JobRunner(broker, guard=False) as runner:
            job = await runner.submit(spec)
            with anyio.move_on_after(60) as scope:
                async with anyio.create_task_group() as group:
                    group.start_soon(track_job, job, noted)
                    while not noted.calls:
                        await anyio.sleep(0.05)
                    group.cancel_scope.cancel()
            assert not scope.cancelled_caught
            assert not (await job.status()).is_terminal
    finally:
        devnet.control("settings", provider=0, train_seconds=0.0)
    assert [call[0] for call in noted.calls] == ["begin", "end"]
    assert noted.calls[-1] == ("end", {}, False)


async def test_what_a_tracker_raises_goes_through_and_the_job_goes_on(broker, dataset, tmp_path):
    class Broken(Noted):
        def begin(self, name, params):
            raise OSError("the tracker's disk is full")

    spec = JobSpec(model=MODEL, dataset=dataset, training_params=PARAMS, output_dir=tmp_path / "out")
    async with JobRunner(broker, guard=False) as runner:
        job = await runner.submit(spec)
        broken = Broken()
        with pytest.raises(OSError, match="disk is full"):
            await track_job(job, broken)
        assert (await job.result()).task_id
    assert broken.calls == []


@pytest.mark.goal("OBS-07", part="extras: a missing one is named")
@pytest.mark.parametrize(
    ("tracker", "module", "extra"),
    [
        (TensorBoardTracker, "tensorboardX", "tensorboard"),
        (MlflowTracker, "mlflow", "mlflow"),
        (WandbTracker, "wandb", "wandb"),
    ],
)
def test_a_missing_library_is_named_with_the_extra_to_install(monkeypatch, tracker, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=f"{module} isn't installed") as caught:
        tracker()
    assert caught.value.hint == f"pip install 'zg-async[{extra}]'"
