"""`zg demo`: one fine-tuning job on an embedded network, from an empty wallet to a chat answer."""

import contextlib
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from cyclopts import Parameter

from zg_async.cli.job_view import JobView, JsonLines, Screen, show_job

if TYPE_CHECKING:
    from zg_async.broker import Broker
    from zg_async.jobs.state import JobResult

MODEL: Final = "Qwen2.5-0.5B-Instruct"


async def demo(
    *,
    dataset: Annotated[Path | None, Parameter(name="--dataset")] = None,
    params: Annotated[Path | None, Parameter(name="--params")] = None,
    out: Annotated[Path, Parameter(name="--out")] = Path("out"),
    json_lines: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> int:
    """Run a whole fine-tuning job on a local network, and chat with the result.

    Args:
        dataset: A JSONL file with instruction, input and output; without it, a small one that comes along.
        params: The five training parameters as JSON; without it, some that suit the dataset.
        out: Where the adapter goes; a folder of this run's own is made in it.
        json_lines: Print one JSON object per event, and nothing else.
    """
    began = time.monotonic()
    bundled = dataset is None
    dataset, params = dataset or _data("demo.jsonl"), params or _data("demo_params.json")
    out = _fresh(out)
    made = not out.exists()
    await _check_inputs(dataset, params, out)
    question, expected = _first_row(dataset)
    screen: Screen = JsonLines() if json_lines else JobView(leave="Ctrl-C ends it and leaves nothing")
    with tempfile.TemporaryDirectory(prefix="zg-demo-") as state, screen:
        chat = (question, expected if bundled else None)
        try:
            return await _run(screen, dataset, params, out, Path(state), chat, began)
        finally:
            _tidy(out, made=made)


async def _run(
    screen: Screen,
    dataset: Path,
    params: Path,
    out: Path,
    state: Path,
    chat: tuple[str, str | None],
    began: float,
) -> int:
    from zg_async.broker import create_broker
    from zg_async.devnet.process import DevnetProcess
    from zg_async.jobs.runner import JobRunner
    from zg_async.jobs.spec import JobSpec

    question, expected = chat
    screen.working("devnet", "starting a local network")
    async with DevnetProcess("--limits", "off") as network:
        info = network.info
        screen.devnet(info)
        key = info["accounts"][0]["private_key"]
        broker = create_broker(private_key=key, network="local", rpc_url=info["rpc_url"], state_dir=state)
        async with broker, JobRunner(broker) as runner:
            spec = JobSpec(model=MODEL, dataset=dataset, training_params=params, output_dir=out, deploy=True)
            job = await runner.submit(spec)
            await show_job(job, broker, screen)
            result = await job.result()
            answer = await _ask(broker, result, question)
            good = _is_whole(result) and (expected is None or answer.strip() == expected)
            screen.chat(question, answer, expected)
            screen.end(result, elapsed=time.monotonic() - began, good=good)
            return 0 if good else 1


def _tidy(out: Path, *, made: bool) -> None:
    """Remove what a job left that didn't end: it can't be resumed, its network is gone."""
    for work in out.glob(".zg-job-*"):
        shutil.rmtree(work, ignore_errors=True)
    if made:
        with contextlib.suppress(OSError):
            out.rmdir()  # if it is empty


async def _ask(broker: "Broker", result: "JobResult", question: str) -> str:
    answer = await broker.inference.lora.chat(result.provider, result.adapter_name or "", question)
    return answer.content


def _is_whole(result: "JobResult") -> bool:
    folder = Path(result.adapter_path)
    return all((folder / name).is_file() for name in ("adapter_config.json", "adapter_model.safetensors"))


def _fresh(out: Path) -> Path:
    """Return a folder that holds no adapter yet: `out`, `out-2`, ..."""
    candidates = (out if n == 1 else out.with_name(f"{out.name}-{n}") for n in range(1, 10_000))
    return next(c for c in candidates if not (c / "adapter").exists())


async def _check_inputs(dataset: Path, params: Path, out: Path) -> None:
    """Say what is wrong before anything is started."""
    from zg_async.jobs.spec import check_output
    from zg_async.managers.dataset import check_dataset, require_usable
    from zg_async.managers.training_params import read_training_params

    check_output(out)
    read_training_params(params)
    require_usable(dataset, await check_dataset(dataset))


def _data(name: str) -> Path:
    import zg_async.devnet

    return Path(zg_async.devnet.__file__).parent / "data" / name


def _first_row(dataset: Path) -> tuple[str, str]:
    """Return the first row's question and answer, to ask the adapter about."""
    with dataset.open("rb") as file:
        return _question(json.loads(next(line for line in file if line.strip())))


def _question(row: dict[str, Any]) -> tuple[str, str]:
    if isinstance(messages := row.get("messages"), list):
        texts = {m.get("role"): str(m.get("content", "")) for m in messages if isinstance(m, dict)}
        return texts.get("user", "Hello"), texts.get("assistant", "")
    question = "\n".join(str(row[k]) for k in ("instruction", "input") if row.get(k))
    return question or "Hello", str(row.get("output", ""))
