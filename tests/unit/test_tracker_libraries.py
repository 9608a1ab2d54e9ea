"""MLflow and W&B themselves take what the trackers hand them; each is skipped by name where it isn't installed.

`ZG_TRACKERS` may name a folder where they are, for `.ci/run`: they bring more than this package needs for its tests.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
FIGURES = "{'loss': 1.5}, {'loss': 0.5}"
FEED = f"""
tracker.begin('job/task', {{'model': 'm', 'max_steps': '2'}})
for step, figures in enumerate([{FIGURES}], 1):
    tracker.log(step, figures)
tracker.end({{'loss': 0.75, 'fee_0g': '0.01'}}, True)
"""


FOLDER = os.environ.get("ZG_TRACKERS", "")


def lacks(library: str) -> bool:
    return importlib.util.find_spec(library) is None and not (FOLDER and Path(FOLDER, library).is_dir())


def ran(code: str, folder: Path) -> str:
    """A process of its own: the libraries warn, start threads and change what they find."""
    command = [sys.executable, "-W", "ignore", "-c", f"import sys; sys.path.append({FOLDER!r})\n{code}", str(folder)]
    environment = os.environ | {"MLFLOW_ALLOW_FILE_STORE": "true"}  # the store that needs no server and no database
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.skipif(lacks("mlflow"), reason="MLflow isn't installed: pip install 'zg-async[mlflow]'")
@pytest.mark.goal("OBS-07", part="MLflow itself")
def test_mlflow_keeps_params_figures_and_the_end_of_a_run(tmp_path):
    told = ran(
        "import json, pathlib\n"
        "from zg_async import MlflowTracker\n"
        "place = pathlib.Path(sys.argv[1], 'runs').as_uri()\n"
        f"tracker = MlflowTracker('figures', tracking_uri=place){FEED}"
        "from mlflow import MlflowClient\n"
        "client = MlflowClient(place)\n"
        "run, = client.search_runs([client.get_experiment_by_name('figures').experiment_id])\n"
        "loss = [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, 'loss')]\n"
        "print(json.dumps([run.info.run_name, run.info.status, run.data.params, loss]))\n",
        tmp_path,
    )
    assert json.loads(told.splitlines()[-1]) == [
        "job/task",
        "FINISHED",
        {"model": "m", "max_steps": "2"},
        [[1, 1.5], [2, 0.5]],
    ]


@pytest.mark.skipif(lacks("wandb"), reason="W&B isn't installed: pip install 'zg-async[wandb]'")
@pytest.mark.goal("OBS-07", part="W&B itself")
def test_wandb_writes_a_run_without_asking_anybody(tmp_path):
    ran(f"from zg_async import WandbTracker\ntracker = WandbTracker('figures', mode='offline'){FEED}", tmp_path)
    (run,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    data = run.read_bytes()
    assert all(text in data for text in (b"job/task", b"train/loss", b"1.5", b"max_steps"))
