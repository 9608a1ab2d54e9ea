"""A fine-tuned adapter on disk: what it is, and how it is loaded elsewhere. Nothing of it is loaded or executed."""

import dataclasses
import os
from pathlib import Path

import anyio.to_thread

from zg_async.errors import ConfigError
from zg_async.text import printable
from zg_async.wire import adapter_files
from zg_async.wire.adapter_files import CONFIG_FILE, CONFIG_LIMIT, WEIGHTS_FILE, AdapterFileError, AdapterInfo

_DEEPEST = 3


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFolder:
    """An adapter's folder."""

    path: Path
    info: AdapterInfo

    @property
    def loading_lines(self) -> tuple[str, ...]:
        """The lines that load it elsewhere: Python with PEFT, and a vLLM server."""
        return self.info.loading_lines(str(self.path))


async def describe_adapter(path: str | os.PathLike[str]) -> AdapterFolder:
    """Read what an unpacked adapter is: rank, targets, size, base model, and the lines that load it elsewhere.

    Args:
        path: Its folder, or one up to three levels above it, such as a job's output folder.

    Raises:
        ConfigError: There is no PEFT adapter, or its files don't belong together.
    """
    return await anyio.to_thread.run_sync(_describe, Path(path))


def _describe(path: Path) -> AdapterFolder:
    folder = _folder(path)
    try:
        config = _beginning(folder / CONFIG_FILE, CONFIG_LIMIT + 1)
        weights = folder / WEIGHTS_FILE
        header = _beginning(weights, adapter_files.header_size(_beginning(weights, 8)))
        info = adapter_files.read_adapter(config, header, weights.stat().st_size)
    except OSError as error:
        raise ConfigError(f"the adapter in {printable(str(folder))} can't be read: {error.strerror}") from error
    except AdapterFileError as error:
        raise ConfigError(
            f"{printable(str(folder))} is no usable adapter: {printable(str(error))}",
            hint="Unpack the delivered model again",
        ) from error
    return AdapterFolder(path=folder, info=info)


def _folder(path: Path) -> Path:
    found = [path] if (path / CONFIG_FILE).is_file() else []
    for depth in range(1, _DEEPEST + 1):
        found = found or sorted(p.parent for p in path.glob("/".join(["*"] * depth + [CONFIG_FILE])))
    if len(found) != 1:
        what = "no adapter" if not found else f"{len(found)} adapters"
        raise ConfigError(f"{printable(str(path))} holds {what}", hint=f"Give the folder that holds {CONFIG_FILE}")
    return found[0]


def _beginning(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        return file.read(size)
