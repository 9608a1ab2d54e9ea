"""The notebooks in examples/ run as they stand, and show what they should."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow
EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"
EXECUTE = """
import sys, warnings
warnings.simplefilter("ignore")
import nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
client = NotebookClient(notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": sys.argv[2]}})
try:
    client.execute()
finally:
    nbformat.write(notebook, sys.argv[3])
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The outputs of the notebook of the main job, by cell."""
    for library in ("nbclient", "ipykernel"):
        pytest.importorskip(library)
    folder = tmp_path_factory.mktemp("notebook")
    env = os.environ | {"ZG_STATE_DIR": str(folder / "state"), "IPYTHONDIR": str(folder / "ipython")}
    env |= {"PYTHONPATH": str(EXAMPLES.parent), "JUPYTER_PLATFORM_DIRS": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    path = folder / "done.ipynb"
    command = [sys.executable, "-c", EXECUTE, str(EXAMPLES / "fine_tune.ipynb"), str(folder), str(path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return path.read_text(), [c["outputs"] for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]


def html_of(outputs) -> str:
    texts = [o["data"].get("text/html", "") for o in outputs if "data" in o]
    return "".join("".join(text) for text in texts)


def text_of(outputs) -> str:
    parts = [o.get("text") or o.get("data", {}).get("text/plain", "") for o in outputs]
    return "".join("".join(part) for part in parts)


@pytest.mark.goal("NBK-01", part="services, runs, accounts and tasks in a notebook")
def test_services_results_accounts_and_tasks_are_tables(ran):
    _, cells = ran
    services, result, account, tasks = (html_of(cells[i]) for i in (1, 4, 5, 6))
    assert "<th" in services
    assert "price_per_token" in services
    assert "<b>JobResult</b>" in result
    assert "adapter_model.safetensors" in result
    assert "0G</td>" in account
    assert "Finished" in tasks or "UserAcknowledged" in tasks


@pytest.mark.goal("NBK-01", part="a live view during await")
@pytest.mark.goal("NBK-02", part="top-level await")
def test_awaiting_a_job_shows_its_steps_and_its_loss_curve(ran):
    _, cells = ran
    shown = html_of(cells[3])
    assert "succeeded" in shown
    assert shown.count("✓") == 9  # each step is done
    assert "<polyline" in shown
    assert "loss: " in shown


@pytest.mark.goal("NBK-03", part="metrics in a notebook")
def test_figures_are_rows_and_a_data_frame(ran):
    _, cells = ran
    assert "'loss':" in text_of(cells[7])
    try:
        import pandas  # noqa: F401
    except ModuleNotFoundError:
        assert "pip install pandas" in text_of(cells[8])
        pytest.skip("pandas isn't installed")
    assert "learning_rate" in html_of(cells[8])


def test_the_adapter_answers(ran):
    _, cells = ran
    assert text_of(cells[9]).strip()


@pytest.mark.goal("SEC-03", part="notebook outputs")
def test_no_output_holds_a_key_or_a_token(ran):
    from zg_async.devnet.accounts import dev_account

    text, cells = ran
    for number in range(10):
        assert dev_account(number).private_key.hex() not in text.lower()
    assert "app-sk-" not in text
    assert all(output.get("output_type") != "error" for outputs in cells for output in outputs)
