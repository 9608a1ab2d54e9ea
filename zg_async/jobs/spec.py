"""What a user asks for: the specification of one job."""

import dataclasses
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from zg_async.errors import ConfigError
from zg_async.jobs.policies import check_policies
from zg_async.managers.training_params import read_training_params
from zg_async.transport.tee import require_tee
from zg_async.units import Amount, parse_amount

_ROOT: Final = re.compile(r"0x[0-9a-fA-F]{64}")
_AMOUNTS: Final = ("budget", "max_spend", "inference_budget", "batch_max_spend")
_MAX_KEY: Final = 200
_FILE_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    **dict.fromkeys(("model", "dataset", "output_dir", "provider", "wallet", "inference_provider"), (str,)),
    **dict.fromkeys(("tokenizer", "batch", "name", "key", "on_unverified", "when_busy"), (str,)),
    **dict.fromkeys(("deploy", "return_rest", "require_verified"), (bool,)),
    **dict.fromkeys(("stages", "labels"), (dict,)),
    "training_params": (str, dict),
    "wallets": (list,),
    "failovers": (int,),
}
"""What a job file's fields have to be, beside those that `normalise` looks at."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """One fine-tuning run, from dataset to adapter."""

    model: str
    """Name of the base model, e.g. `"Qwen2.5-0.5B-Instruct"`."""
    dataset: str | os.PathLike[str]
    """Path of a JSON Lines file, or the `0x` root hash of a dataset that the provider already has."""
    training_params: str | os.PathLike[str] | Mapping[str, object]
    """Path of a JSON file, JSON text, or a mapping."""
    output_dir: str | os.PathLike[str]
    """The adapter ends up in its subfolder `adapter`."""
    deploy: bool = False
    """Whether to deploy the adapter for chatting once it is there."""
    provider: str | None = None
    """Fine-tuning provider; None: the best free one."""
    wallet: str | None = None
    """One of the broker's wallets; None: its first."""
    wallets: Sequence[str] = ()
    """Instead of `wallet`: wallets of the broker of which the one with the fewest unfinished jobs takes it."""
    inference_provider: str | None = None
    """Where to deploy; None: at the fine-tuning provider, the only one that learns of the adapter by itself."""
    budget: Amount | None = None
    """What to have ready in the fine-tuning sub-account; None: the upper end of the estimate."""
    max_spend: Amount | None = None
    """Most that may be gone for the job, the task's fee and all gas together. A job that may cost more doesn't start,
    and a task that turns out dearer is cancelled. None: the sub-account's balance bounds the fee."""
    max_queue_seconds: float | None = None
    """Longest that the job may wait until it trains, from its submission or the last failure of a provider on. Then it
    is cancelled, if the provider still does that; else it is followed to its end. None: as long as it takes."""
    max_run_seconds: float | None = None
    """The same for the time from the beginning of the training to the delivery. Providers don't cancel a task that
    trains, so this helps only when they put it back into their queue."""
    inference_budget: Amount | None = None
    """What to have ready in the inference sub-account when deploying; None: 2 0G, which the provider asks for."""
    return_rest: bool = False
    """Whether what is left in the fine-tuning sub-account at the end is asked back, so that it holds no more than tasks
    need. It is locked for a while then; the next job there takes from it first."""
    on_unverified: Literal["acknowledge_unverified", "forfeit"] | None = None
    """When the acknowledgement window is about to close without a right copy. None: acknowledge if none could be
    fetched, which keeps the provider usable, and forfeit if one was fetched and is wrong."""
    batch: str | None = None
    """Name of the batch it belongs to; jobs of one batch share `batch_max_spend`."""
    batch_max_spend: Amount | None = None
    """Most that may be gone for all jobs of the batch together; the same in each of them."""
    tokenizer: str | os.PathLike[str] | None = None
    """The model's `tokenizer.json`, to know the fee before it is paid; None: the fee is estimated as a range."""
    stages: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    """Per stage name what differs from `StagePolicy`'s defaults, e.g. `{"upload_dataset": {"timeout": 600}}`."""
    failovers: int = 2
    """How many other providers may be tried when one fails the job before a model is delivered, doesn't answer before
    there is a task, or is registered no more; none is, when the provider was named. The money bound at the one that
    failed stays there until it is retrieved."""
    when_busy: Literal["queue", "fail", "wait_for_free"] = "queue"
    """What to do when other users' tasks are ahead at the provider."""
    require_verified: bool = False
    """Whether the providers' TEEs have to be verified before anything is paid, sent or acknowledged."""
    name: str | None = None
    """For people."""
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """For programs."""
    key: str | None = None
    """Idempotency key: submitting the same specification with the same key again gives the same job."""

    @property
    def dataset_root(self) -> str | None:
        """The dataset's root hash in lower case, if the dataset was given as one."""
        text = os.fspath(self.dataset)
        return text.lower() if _ROOT.fullmatch(text) else None

    @property
    def adapter_dir(self) -> Path:
        """Where the adapter ends up."""
        return Path(self.output_dir) / "adapter"


def read_spec(path: str | os.PathLike[str], **fields: Any) -> JobSpec:
    """Read a job's specification from a JSON file; relative paths in it are relative to it. Blocks.

    Args:
        path: An object with fields of `JobSpec`; `output_dir` is `out` without one.
        fields: What counts instead of what the file says.

    Returns:
        The specification, not yet normalised.

    Raises:
        ConfigError: It isn't one; the message names the field.
    """
    value = read_object(path, "job")
    known = {field.name for field in dataclasses.fields(JobSpec)}
    if wrong := sorted(set(value) - known):
        raise ConfigError(f"{path}: a job has no {', '.join(map(repr, wrong))}", hint=f"It has {', '.join(known)}")
    for name, kinds in _FILE_TYPES.items():
        if value.get(name) is not None and not isinstance(value[name], kinds):
            raise ConfigError(f"{path}: {name} can't be {json.dumps(value[name])[:80]}", hint="See JobSpec's reference")
    folder = Path(path).absolute().parent
    value.setdefault("output_dir", "out")
    for name in ("dataset", "training_params", "output_dir", "tokenizer"):
        if isinstance(text := value.get(name), str) and not (_ROOT.fullmatch(text) or text.lstrip().startswith("{")):
            value[name] = str(folder / Path(text).expanduser())
    value |= fields
    if missing := [name for name in ("model", "dataset", "training_params") if not value.get(name)]:
        raise ConfigError(f"{path}: the job lacks {', '.join(missing)}", hint="Put it into the file")
    return JobSpec(**value)


def read_object(path: str | os.PathLike[str], what: str) -> dict[str, Any]:
    """Read a JSON object from a file. Blocks.

    Args:
        path: The file.
        what: What it is, for the message.

    Raises:
        ConfigError: It can't be read, or isn't one.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"can't read the {what} file {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the {what} file {path} isn't JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"the {what} file {path} holds no JSON object")
    return value


def normalise(spec: JobSpec) -> JobSpec:
    """Bring a specification into the form that is journaled: absolute paths, exact amounts, parameters as text.

    Args:
        spec: As the user wrote it.

    Returns:
        The same job; independent of the current folder and of later changes to the parameter file.

    Raises:
        TrainingParamsError: A parameter is missing, unknown or out of range.
        ConfigError: Something in it can't be used. Reads the parameter file, so call it in a thread.
    """
    if not spec.model or not isinstance(spec.model, str):
        raise ConfigError("the job names no model", hint='For example model="Qwen2.5-0.5B-Instruct"')
    if spec.key is not None and not 0 < len(spec.key) <= _MAX_KEY:
        raise ConfigError(f"a job's key has 1 to {_MAX_KEY} characters")
    if spec.on_unverified not in (None, "acknowledge_unverified", "forfeit"):
        raise ConfigError(
            f"unknown on_unverified {spec.on_unverified!r}", hint='It is "acknowledge_unverified" or "forfeit", or None'
        )
    for name in ("max_queue_seconds", "max_run_seconds"):
        seconds = getattr(spec, name)
        if seconds is not None and (type(seconds) not in (int, float) or not 0 < seconds < float("inf")):
            raise ConfigError(f"{name} has to be a positive number of seconds")
    if spec.wallets and spec.wallet is not None:
        raise ConfigError("a job has wallet or wallets, not both")
    if spec.require_verified:
        require_tee()
    dataset = spec.dataset_root or str(Path(spec.dataset).expanduser().absolute())
    return dataclasses.replace(
        spec,
        dataset=dataset,
        training_params=read_training_params(spec.training_params),
        output_dir=str(Path(spec.output_dir).expanduser().absolute()),
        tokenizer=None if spec.tokenizer is None else str(Path(spec.tokenizer).expanduser().absolute()),
        budget=_amount("budget", spec.budget),
        max_spend=_amount("max_spend", spec.max_spend),
        inference_budget=_amount("inference_budget", spec.inference_budget),
        batch_max_spend=_amount("batch_max_spend", spec.batch_max_spend),
        labels=dict(spec.labels),
        wallets=tuple(spec.wallets),
        stages=check_policies(spec.stages),
    )


def _amount(name: str, amount: Amount | None) -> int | None:
    try:
        return None if amount is None else parse_amount(amount)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name}: {error}") from error


def is_same(one: JobSpec, other: JobSpec) -> bool:
    """Compare normalised specifications; parameters count by value: another version may have spelled them otherwise.

    Of wallets it counts only whether there is one or a choice: with a key, the job stays with the one that took it.
    """
    params = [json.loads(str(spec.training_params)) for spec in (one, other)]
    rest: dict[str, Any] = {"training_params": other.training_params, "wallets": other.wallets}
    if one.wallets and other.wallets:
        rest["wallet"] = other.wallet
    elif one.wallets or other.wallets:
        return False
    return params[0] == params[1] and dataclasses.replace(one, **rest) == other


def check_output(output_dir: str | os.PathLike[str]) -> None:
    """See that an adapter can be put into a folder, which needn't exist yet. Makes nothing; blocks.

    Args:
        output_dir: As in a specification.

    Raises:
        ConfigError: There is one already, or the folder can't be written to.
    """
    folder = Path(output_dir)
    if (folder / "adapter").exists():
        raise ConfigError(f"{folder / 'adapter'} exists already", hint="Give another output folder, or move it away")
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists() or path.is_symlink())
    if not there.is_dir():
        raise ConfigError(f"the output folder can't be {folder}: {there} is not a folder", hint="Give another one")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(
            f"the output folder {folder} can't be written to: no permission in {there}", hint="Give another one"
        )


def make_output(output_dir: str | os.PathLike[str]) -> None:
    """Make the output folder, if it isn't there. Blocks.

    Raises:
        ConfigError: It can't be made.
    """
    try:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"can't make the output folder {output_dir}: {error.strerror}", hint="Give another one"
        ) from error


def spec_to_json(spec: JobSpec) -> dict[str, Any]:
    """Turn a normalised specification into JSON; amounts become decimal strings."""
    value: dict[str, Any] = {f.name: getattr(spec, f.name) for f in dataclasses.fields(spec)}
    return value | {name: None if value[name] is None else str(value[name]) for name in _AMOUNTS}


def spec_from_json(value: Mapping[str, Any]) -> JobSpec:
    """Read `spec_to_json`'s output; unknown fields are left out.

    Raises:
        ValueError: It is not a specification.
    """
    known: dict[str, Any] = {f.name: value[f.name] for f in dataclasses.fields(JobSpec) if f.name in value}
    known["wallets"] = tuple(known.get("wallets") or ())
    amounts: dict[str, Any] = {name: int(known[name]) for name in _AMOUNTS if known.get(name) is not None}
    try:
        return JobSpec(**(known | amounts))
    except TypeError as error:
        raise ValueError(str(error)) from error
