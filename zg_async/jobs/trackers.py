"""Hands the figures of a job's training to an experiment tracker, a run for each task.

`track_job` reads a job as any other reader does: it holds nothing up, and may run in another process than the job.
The libraries are extras, imported when a tracker of theirs is made; they are called in a worker thread, one call at a
time.
"""

import importlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import anyio
import anyio.to_thread

from zg_async.background import Background, Child
from zg_async.errors import ConfigError, ZgError
from zg_async.jobs.state import JobState, JobStatus
from zg_async.logs import get_logger
from zg_async.units import format_amount

if TYPE_CHECKING:
    from zg_async.jobs.handle import JobHandle
    from zg_async.managers.fine_tuning import FineTuningManager
    from zg_async.wire.task_log import Metric

_log = get_logger("zg_async.jobs")
_FIGURES: Final = ("loss", "grad_norm", "learning_rate", "epoch", "tokens_per_second")
_CLOSING: Final = ("loss", "runtime", "samples_per_second", "steps_per_second", "epoch")


class Tracker(Protocol):
    """Where figures go. Its methods block, and are called in this order, once or more for each task of a job."""

    def begin(self, name: str, params: Mapping[str, str]) -> None:
        """A task was created: begin a run.

        Args:
            name: The job's id and the task's.
            params: Model, provider and training parameters; neither wallet nor dataset.
        """

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """The trainer logged figures: `loss` and others. A step may come again: the provider trains a second time."""

    def end(self, summary: Mapping[str, float | str], succeeded: bool) -> None:
        """The task is over.

        Args:
            summary: Closing figures, and the fee in 0G as text.
            succeeded: Whether the job ended well with it.
        """


async def track_job(handle: "JobHandle", tracker: Tracker) -> JobStatus:
    """Follow a job until it has ended, and hand its figures to a tracker.

    Providers may show a training's log only when it is over; then all figures come at once. Each call makes runs of its
    own. Left early, it ends the run as not succeeded; the job goes on.

    Args:
        handle: Which job.
        tracker: One of this module, or your own.

    Returns:
        How the job ended. What a tracker raises goes through.
    """
    run: _Run | None = None
    state = JobState()
    try:
        async with handle.events() as events:
            async for _ in events:
                state = events.state
                if state.task_id is not None and (run is None or run.task_id != state.task_id):
                    if run is not None:  # another provider's task begins anew
                        await run.end(succeeded=False)
                    run = _Run(handle, tracker, state)
                    await run.begin()
        if run is not None:
            await run.read_all()
            await run.end(state, succeeded=state.status is JobStatus.SUCCEEDED)
    finally:
        if run is not None:
            await run.aclose()
    return state.status


class _Run:
    """One task's figures on their way."""

    def __init__(self, handle: "JobHandle", tracker: Tracker, state: JobState) -> None:
        self.task_id = str(state.task_id)
        self._handle, self._tracker, self._state = handle, tracker, state
        self._background = Background()
        self._scope = anyio.CancelScope()
        self._following: Child | None = None
        self._logged = 0
        self._summary: dict[str, float | str] = {}
        self._open = False

    async def begin(self) -> None:
        spec, params = self._state.spec, {"provider": str(self._state.provider)}
        if spec is not None:
            params["model"] = spec.model
            params |= _training_params(str(spec.training_params))
        name = f"{self._state.job_id}/{self.task_id}"
        await anyio.to_thread.run_sync(self._tracker.begin, name, params)
        self._open = True
        self._following = self._background.start(self._follow(), name="zg tracker")

    async def read_all(self) -> None:
        """Log what hasn't been: the last figures may have come after the job had ended."""
        await self._stop_following()
        try:
            series = await self._tuning().get_metrics(str(self._state.provider), self.task_id)
        except ZgError as error:
            _log.info("no more figures for the tracker: %s", error.message)
            return
        for metric in series.points[self._logged :]:
            await self._log_one(metric)
        if series.summary is not None:
            self._summary |= _numbers(series.summary, _CLOSING)

    async def end(self, state: JobState | None = None, *, succeeded: bool) -> None:
        if not self._open:
            return
        await self._stop_following()
        summary = self._summary | ({"fee_0g": format_amount(state.fee, unit="")} if state is not None else {})
        self._open = False
        await anyio.to_thread.run_sync(self._tracker.end, summary, succeeded)

    async def aclose(self) -> None:
        """End what is open, also when nobody waits for it any more."""
        with anyio.CancelScope(shield=True):
            await self.end(succeeded=False)
            await self._background.aclose()

    async def _follow(self) -> None:
        """Log figures as they come; where they can't be followed, the end brings them."""
        try:
            with self._scope:
                async with self._tuning().follow_metrics(str(self._state.provider), self.task_id) as metrics:
                    async for change in metrics:
                        if change.metric is not None:
                            await self._log_one(change.metric)
        except ZgError as error:
            _log.info("the tracker gets its figures at the end: %s", error.message)

    async def _stop_following(self) -> None:
        """Stop the follower and wait for a call that it is in, so that no two calls are under way."""
        self._scope.cancel()
        if self._following is not None:
            await self._following.wait()

    async def _log_one(self, metric: "Metric") -> None:
        self._logged += 1
        await anyio.to_thread.run_sync(self._tracker.log, metric.step, _numbers(metric, _FIGURES))

    def _tuning(self) -> "FineTuningManager":
        """Return the manager of the wallet that ordered the task."""
        broker, wallet = self._handle._runner.broker, self._state.wallet
        return (broker if wallet is None else broker.using(wallet)).fine_tuning


def _numbers(record: object, names: tuple[str, ...]) -> dict[str, float]:
    return {name: value for name in names if (value := getattr(record, name)) is not None}


def _training_params(text: str) -> dict[str, str]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}  # unchecked text, as its owner wished
    return {str(name): str(one) for name, one in value.items()} if isinstance(value, dict) else {}


class TensorBoardTracker:
    """Writes event files for TensorBoard, a folder for each task. Extra `tensorboard`."""

    def __init__(self, folder: str | os.PathLike[str] = "runs") -> None:
        """Write below a folder.

        Args:
            folder: What `tensorboard --logdir` is given.

        Raises:
            ConfigError: The extra isn't installed.
        """
        self._library = _load("tensorboardX", "tensorboard")
        self._folder = Path(folder)
        self._writer: Any = None

    def begin(self, name: str, params: Mapping[str, str]) -> None:
        """Open a run's file."""
        self._writer = self._library.SummaryWriter(str(self._folder / name))
        self._writer.add_text("params", "\n".join(f"    {key}: {value}" for key, value in sorted(params.items())), 0)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Write a step's figures."""
        for key, value in figures.items():
            self._writer.add_scalar(f"train/{key}", value, step)
        self._writer.flush()

    def end(self, summary: Mapping[str, float | str], succeeded: bool) -> None:
        """Write the closing figures and close the file."""
        said = {**summary, "status": "succeeded" if succeeded else "not succeeded"}
        self._writer.add_text("result", "\n".join(f"    {key}: {value}" for key, value in sorted(said.items())), 0)
        self._writer.close()


class MlflowTracker:
    """Makes runs of an MLflow experiment. Extra `mlflow`."""

    def __init__(self, experiment: str = "zg_async", *, tracking_uri: str | None = None) -> None:
        """Take an experiment; it is created if there is none.

        Args:
            experiment: Its name.
            tracking_uri: MLflow's server or store; None: as MLflow is configured.

        Raises:
            ConfigError: The extra isn't installed.
        """
        self._client: Any = _load("mlflow", "mlflow").MlflowClient(tracking_uri=tracking_uri)
        self._experiment = experiment
        self._run = ""

    def begin(self, name: str, params: Mapping[str, str]) -> None:
        """Create a run."""
        known = self._client.get_experiment_by_name(self._experiment)
        id_ = self._client.create_experiment(self._experiment) if known is None else known.experiment_id
        self._run = self._client.create_run(id_, run_name=name).info.run_id
        for key, value in params.items():
            self._client.log_param(self._run, key, value)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Log a step's figures."""
        for key, value in figures.items():
            self._client.log_metric(self._run, key, value, step=step)

    def end(self, summary: Mapping[str, float | str], succeeded: bool) -> None:
        """Log the closing figures and end the run."""
        for key, value in summary.items():
            self._client.set_tag(self._run, f"result.{key}", str(value))
        self._client.set_terminated(self._run, "FINISHED" if succeeded else "FAILED")


class WandbTracker:
    """Makes runs of a Weights & Biases project. Extra `wandb`."""

    def __init__(self, project: str = "zg_async", **options: Any) -> None:
        """Take a project.

        Args:
            project: Its name.
            options: For `wandb.init`, such as `entity`, `mode` and `dir`.

        Raises:
            ConfigError: The extra isn't installed.
        """
        self._library = _load("wandb", "wandb")
        self._project, self._options = project, options
        self._run: Any = None

    def begin(self, name: str, params: Mapping[str, str]) -> None:
        """Begin a run."""
        self._run = self._library.init(project=self._project, name=name, config=dict(params), **self._options)
        self._run.define_metric("train/step")
        self._run.define_metric("train/*", step_metric="train/step")  # its own steps may never go back

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Log a step's figures."""
        self._run.log({"train/step": step, **{f"train/{key}": value for key, value in figures.items()}})

    def end(self, summary: Mapping[str, float | str], succeeded: bool) -> None:
        """Note the closing figures and end the run."""
        self._run.summary.update(dict(summary))
        self._run.finish(exit_code=0 if succeeded else 1)


def _load(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ConfigError(f"{module} isn't installed", hint=f"pip install 'zg-async[{extra}]'") from None
